"""Whether a model will compile, for which targets and precisions, and how large it will be: before any work is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.errors import LlmcError

if TYPE_CHECKING:
    from llmc.compiler.graph import Graph, Node
    from llmc.targets.backend import Backend
    from llmc.targets.target import Target

STATIC = "int8-static"
STORED = ("w8", "w4", "w4a8")  # what has groups
QUANTISATIONS = ("none", "fp16", "bf16", "bf16a16", "int8", STATIC, *STORED)
_WEIGHTS = ("f32", "f16", "i8", "u8")  # levels of quantised files among them
COPIES = 3  # of the f32 weights that a compile holds at a time: as read, as packed, as written


@dataclass(frozen=True)
class Foresight:
    """What a compile of a model would come to.

    Args:
        path: the model.
        task, architecture, model_type: what it is.
        parameters: number of weights.
        layers: how many there are, and how many were looked at.
        inputs: name -> type.
        weights: `--quant` -> bytes of weights.bin, about.
        needed: bytes of memory that compiling takes, about.
        problems: what stands in the way of any compile, each with its place.
        certain: whether they do; a model may fail to be traced without its weights alone.
        targets: target -> what it has no kernel for; empty lists where it will compile.
        precisions: target -> modes of `--quant` it has.
        idle: target -> those of them that find nothing to quantise, of models whose weights were read.
        without_zeros: targets that have no kernels for groups with zero points, where these are asked for.
        quantised: whether weights of a file came in levels, which no mode stores anew on CPUs.
        keeps_states: whether its functions do, which `int8-static` does not calibrate.
    """

    path: str
    task: str
    architecture: str
    model_type: str
    parameters: int
    layers: tuple[int, int]
    inputs: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, int] = field(default_factory=dict)
    needed: int = 0
    problems: tuple[str, ...] = ()
    certain: bool = True
    targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    precisions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    idle: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    without_zeros: tuple[str, ...] = ()
    quantised: bool = False
    keeps_states: bool = False

    def serves(self, target: str, quant: str) -> bool:
        """Whether a compile for `target` with `--quant quant` is foreseen to succeed."""
        wanted = quant in self.precisions[target] and quant not in self.idle.get(target, ())
        wanted = wanted and not (self.keeps_states and quant == STATIC)
        wanted = wanted and not (target in self.without_zeros and quant in STORED)
        return not self.problems and not self.targets[target] and wanted


def foresee(
    path: str | Path,
    task: str,
    max_seq: int | None,
    targets: Iterable[str],
    base: Path | None = None,
    adapter: Path | None = None,
    dims: Mapping[str, Any] | None = None,
    fixed: Mapping[str, Any] | None = None,
    group: int | None = None,
    zero_points: bool = False,
) -> Foresight:
    """Look at a model: a folder by its config.json and headers of its weights, a file by all of it.

    Args:
        base, adapter, dims, fixed, group, zero_points: as `llmc.compile` takes them.

    Raises:
        LlmcError: it is no model, or nothing of it can be told.
    """
    from llmc.compiler.frontends.dispatch import is_model_file, want_onnx

    want_onnx(Path(path), dims, fixed)
    targets = list(targets)
    zeros = _without_zeros(targets) if zero_points else ()
    if is_model_file(path):
        options = {"base": base, "adapter": adapter, "dims": dims, "fixed": fixed}
        return replace(_of_file(path, task, max_seq, targets, **options), without_zeros=zeros)
    from llmc.compiler.frontends.outline import outline, weight_bytes
    from llmc.compiler.frontends.plain_folder import origin, plain
    from llmc.compiler.frontends.tasks import GENERATION

    with plain(origin(path, base, adapter), weights=False) as made:
        found = outline(made.path, task, max_seq)
        weights = weight_bytes(found, group, zero_points)
    facts: dict[str, Any] = {
        "task": found.summary.task.name,
        "architecture": found.architecture,
        "model_type": found.summary.model_type,
        "parameters": found.parameters,
        "layers": found.layers,
        "weights": weights,
        "needed": COPIES * weights["none"],
        "problems": () if found.problem is None else _lines(found.problem),
        "certain": found.certain,
        "keeps_states": found.summary.task.name == GENERATION,
        "without_zeros": zeros,
    }
    return Foresight(str(path), **facts, **_of_graphs([] if found.graph is None else [found.graph], targets))


def _without_zeros(targets: Iterable[str]) -> tuple[str, ...]:
    from llmc.targets.backends import backend_of
    from llmc.targets.host import find_target

    return tuple(name for name in targets if not backend_of(find_target(name)).group_zeros)


def _of_file(
    path: str | Path, task: str, max_seq: int | None, targets: Iterable[str], **options: Any
) -> Foresight:
    from llmc.compiler.frontends import dispatch
    from llmc.passes.match import is_levels

    bounds: dict[str, Any] = {} if max_seq is None else {"max_seq": max_seq}
    imported = dispatch.load(path, task=task, **options, **bounds)
    graphs = list(imported.module.functions.values())
    count, size = _weights_of(graphs)
    facts: dict[str, Any] = {
        "task": imported.task,
        "architecture": imported.architecture,
        "model_type": imported.model_type,
        "parameters": count,
        "layers": (0, 0),
        "weights": {"none": size},
        "needed": COPIES * size,
        "quantised": any(is_levels(node) for graph in graphs for node in graph.everywhere()),
        "keeps_states": any(graph.states for graph in graphs),
    }
    names = list(targets)
    told = _of_graphs(graphs, names)
    return Foresight(str(path), **facts, **told, idle={name: _idle(graphs, name) for name in names})


def _idle(graphs: Sequence[Graph], target: str) -> tuple[str, ...]:
    """Modes of `--quant` that find no weight in the graphs as they are where a compile quantises."""
    from llmc.compiler.pipeline import Pipeline
    from llmc.passes import LEVEL_PARTS, PASSES
    from llmc.passes.compress.bfloat16 import Bfloat16
    from llmc.passes.compress.blockwise import Blockwise
    from llmc.passes.layout.channels_last import channels_last_steps
    from llmc.passes.quantise import QUANTISATIONS as STEPS
    from llmc.passes.quantise import Quantize
    from llmc.quantisation import own_steps
    from llmc.targets.backends import backend_of
    from llmc.targets.host import find_target

    if any(len(list(graph.everywhere())) > len(graph.nodes) for graph in graphs):
        return ()  # what is in bodies is not looked at
    backend, whole = backend_of(find_target(target)), []
    for graph in graphs:
        first, own = own_steps(graph, backend.zero_points)
        graph, _ = first.run(graph)
        for place in ("simplify", "fuse"):
            graph, _ = Pipeline.parse(LEVEL_PARTS[-1][place], PASSES).run(graph)
        if backend.channels_last:
            graph, _ = channels_last_steps(graph).run(graph)
        whole.append(own.run(graph)[0])
    changes = {mode: Pipeline.parse(text, PASSES).steps[0].change for mode, text in STEPS.items() if text}
    known = {mode: c for mode, c in changes.items() if isinstance(c, Quantize | Blockwise | Bfloat16)}
    return tuple(mode for mode, change in known.items() if not any(map(change.finds, whole)))


def _weights_of(graphs: Sequence[Graph]) -> tuple[int, int]:
    """How many numbers the weights of functions stand for, and in how many bytes they are stored, about."""
    from llmc.compiler.ops import OPS

    nodes = list(dict.fromkeys(node for graph in graphs for node in graph.everywhere()))
    stored: dict[Node, int] = {}  # a part of a weight that is stored compressed -> numbers that it stands for
    for node in (n for n in nodes if OPS[n.op].stored):
        parts = [i.inputs[0] if i.op == "embedding" else i for i in node.inputs]
        for position, part in enumerate(p for p in parts if p.op == "constant"):
            rows = prod(part.shape[:-1])
            stored[part] = 0 if position else rows * int(node.shape[-1])
    plain = {n: prod(n.shape) for n in nodes if n.op == "constant" and n.dtype in _WEIGHTS}
    once = {n.attributes["value"]: size for n, size in {**plain, **stored}.items()}  # functions share them
    return sum(once.values()), sum(weight.array.nbytes for weight in once)


def _of_graphs(graphs: Sequence[Graph], targets: Iterable[str]) -> dict[str, Any]:
    """Inputs of the first function, and what each target has for the ops of all."""
    from llmc.targets.backends import backend_of
    from llmc.targets.host import find_target

    lacks: dict[str, tuple[str, ...]] = {}
    has: dict[str, tuple[str, ...]] = {}
    lacking: dict[Backend, tuple[str, ...]] = {}  # targets of one backend lack the same
    for name in targets:
        backend = backend_of(find_target(name))
        has[name] = tuple(q for q in QUANTISATIONS if q == "none" or q in backend.quantisations)
        if backend not in lacking:
            found = (line for graph in graphs for line in _lacking(graph, backend, find_target(name)))
            lacking[backend] = tuple(dict.fromkeys(found))
        lacks[name] = lacking.get(backend, ())
    inputs = {n.attributes["name"]: str(n.type) for graph in graphs[:1] for n in graph.inputs}
    return {"inputs": inputs, "targets": lacks, "precisions": has}


def _lacking(graph: Graph, backend: Backend, target: Target) -> tuple[str, ...]:
    """What there is no kernel for, after the passes that the target wants: some store weights as it reads them."""
    from llmc.compiler.places import placed
    from llmc.passes import PASSES
    from llmc.quantisation import own_steps

    for steps in own_steps(graph, backend.zero_points):
        graph, _ = steps.run(graph)
    try:
        backend.lower(placed(backend.passes(target), PASSES).pipeline.run(graph)[0])
    except LlmcError as error:
        return tuple(line.strip() for line in str(error.found).splitlines())
    return ()


def _lines(error: LlmcError) -> tuple[str, ...]:
    """A report of several problems, each on a line of its own; else the problem with its place."""
    several = [line.strip() for line in str(error.found or "").splitlines() if " x" in line]
    where = f" at {error.at}" if error.at else ""
    hint = f" ({error.hint})" if error.hint and not several else ""
    return tuple(several) or (f"{error.problem}{where}{hint}",)
