"""An ONNX file -> Imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from llmc.compiler.frontends import beside
from llmc.compiler.frontends.axes import Asked
from llmc.compiler.frontends.imported import HUGE, MAX_BATCH, Imported
from llmc.compiler.frontends.onnx_file import read, values
from llmc.compiler.frontends.onnx_fixed import fix
from llmc.compiler.frontends.onnx_graph import to_graph
from llmc.compiler.frontends.onnx_kinds import DTYPES
from llmc.compiler.graph import Weight
from llmc.errors import LlmcError


def load(
    path: str | Path,
    task: str = "auto",
    max_batch: int = MAX_BATCH,
    max_seq: int | None = None,
    dims: Mapping[str, Asked] = MappingProxyType({}),
    fixed: Mapping[str, float] = MappingProxyType({}),
) -> Imported:
    """Import an .onnx file, as exported by `torch.onnx` or optimum.

    Args:
        path: the file; external data must lie in its folder.
        task: "auto" leaves arrays in and arrays out; a name in `tasks.TASKS` says what the outputs mean.
        max_batch, max_seq: upper bounds of the dynamic dims; the default of max_seq is what the model's tables
            of positions allow.
        dims: dynamic axes that always have one size, or whose least and largest size are these; by the names that
            the graph would have for them.
        fixed: inputs that always have one value, all elements of them.

    Raises:
        LlmcError: the file is damaged, `dims` names no axis or `fixed` no input of it, or ops, dtypes or shapes of it
            are not supported.
    """
    path = Path(path)
    if max_batch > HUGE:
        raise LlmcError(f"max_batch of an ONNX file is at most {HUGE}", at=str(path), found=str(max_batch))
    extras = beside.read(path, task)
    file = read(path)
    fix(file.model.graph, fixed, path)
    graph = to_graph(file, beside.first_bounds(max_batch), dims)
    return beside.imported(path, beside.bounded(graph, extras, max_seq, path), extras, file.producer)


def weights(path: Path) -> dict[str, Weight]:
    """digest -> Weight of a file's initialisers of tensors that llmc has.

    Raises:
        LlmcError: the file is damaged.
    """
    file = read(path)
    tensors = file.model.graph.initializer
    found = (Weight(values(t, path, file.doubles), t.name) for t in tensors if t.data_type in DTYPES)
    return {weight.digest: weight for weight in found}
