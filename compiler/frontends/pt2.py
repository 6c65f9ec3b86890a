"""A .pt2 file, written by `torch.export.save` -> Imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmc.compiler.dims import Bounds
from llmc.compiler.frontends import beside
from llmc.compiler.frontends.axes import SEGMENTS, AxisNames
from llmc.compiler.frontends.imported import MAX_BATCH, Imported
from llmc.compiler.frontends.inputs import Input
from llmc.compiler.frontends.versions import warn_if_untested
from llmc.errors import LlmcError


def load(
    path: str | Path, task: str = "auto", max_batch: int = MAX_BATCH, max_seq: int | None = None
) -> Imported:
    """Import an exported program.

    Args:
        path: the file.
        task: "auto" leaves arrays in and arrays out; a name in `tasks.TASKS` says what the outputs mean.
        max_batch, max_seq: upper bounds of the dims, which the program's own bounds limit too.

    Raises:
        LlmcError: the file is damaged or holds code, or ops, dtypes or shapes of it are not supported.
    """
    from llmc.compiler.frontends.pt2_file import read

    path = Path(path)
    extras = beside.read(path, task)
    bounds = beside.first_bounds(max_batch)
    warn_if_untested("torch")
    file = read(path)
    from llmc.compiler.frontends.torch_export import to_graph  # a file that is refused needs no torch

    names, dims = AxisNames(), {}
    declared = []
    for name in file.inputs:
        sizes = _sizes(file.program, name, path)
        axes = [_axis(names, name, axis, len(sizes), size) for axis, size in enumerate(sizes)]
        for size, axis in zip(sizes, axes, strict=True):
            if isinstance(axis, str):
                dims[axis] = _bounds(file.program, size, bounds.get(axis, bounds[""]))
        declared.append(Input(name, tuple(axes), **_ranges(name)))
    graph = to_graph(_without_memory(file.program, path), declared, file.outputs, dims, _root(file.program))
    writer = f"torch {file.torch_version}".strip()
    return beside.imported(path, beside.bounded(graph, extras, max_seq, path), extras, writer)


def _without_memory(program: Any, path: Path) -> Any:
    """The program with no in-place op, which must leave its buffers as they are: an artifact would forget them."""
    from llmc.compiler.frontends.torch_export import functional

    pure = functional(program)
    if changed := sorted(pure.graph_signature.buffers_to_mutate.values()):
        raise LlmcError(
            "the program changes its own buffers when it runs",
            at=str(path),
            found=", ".join(changed[:5]),
            hint="call model.eval() before the export, or make them inputs and outputs",
        )
    return pure


def _ranges(name: str) -> Mapping[str, Any]:
    if name == "attention_mask":
        return {"default": 1, "low": 0, "high": 1}
    return {"default": 0} if name in SEGMENTS else {}


def _sizes(program: Any, name: str, path: Path) -> list[Any]:
    node = next((n for n in program.graph.nodes if n.op == "placeholder" and n.name == name), None)
    value = node.meta.get("val") if node is not None else None
    if value is None or not hasattr(value, "shape"):
        raise LlmcError(
            f"input {name!r} is not a tensor", at=str(path), hint="export with tensor inputs only"
        )
    return list(value.shape)


def _axis(names: AxisNames, tensor: str, axis: int, rank: int, size: Any) -> str | int:
    return size if isinstance(size, int) else names.name(tensor, axis, rank, str(size.node.expr))


def _bounds(program: Any, size: Any, ours: tuple[int, int]) -> Bounds:
    """What llmc allows, within what the program was exported for."""
    stated = program.range_constraints.get(size.node.expr)
    if stated is None:
        return Bounds(*ours)
    high = int(stated.upper) if stated.upper.is_Integer else ours[1]
    return Bounds(ours[0], max(min(ours[1], high), 1))


def _root(program: Any) -> str:
    """The prefix that all weights share, such as `model.`: the module that was wrapped for export."""
    heads = {name.partition(".")[0] for name in program.state_dict}
    return f"{heads.pop()}." if len(heads) == 1 else ""
