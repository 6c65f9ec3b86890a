"""What a graph costs on a target: bytes of its weights as they are stored, and seconds by a model of its kernels.

A call takes a * flops + b * bytes + d * decoded weights + c seconds; a, b, c and d were measured for each kind of
kernel and instruction set (`bench/costs.py`, costs.json), on one thread.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from llmc.compiler.calls import Call, Operand, Packed
from llmc.compiler.dims import evaluate
from llmc.compiler.graph import Graph, Node
from llmc.compiler.module import Module
from llmc.errors import LlmcError
from llmc.kernels import Kernels
from llmc.targets.target import Target

FILE = Path(__file__).with_name("costs.json")
ROWS = 192  # that share one decoding of a weight
OTHERS = "others"  # kinds of kernels that have no figures of their own
_ALIGNED = 64
_PROFILES = 4  # whose least times count
Sizes = Mapping[str, int]
Figures = Mapping[str, Sequence[float]]  # kind of kernel -> a, b, d and c


@dataclass(frozen=True)
class Cost:
    """Bytes of weights, and seconds of one run."""

    bytes: int
    seconds: float


@dataclass
class Costs:
    """Asks for costs on a target, of graphs that have most weights in common.

    Args:
        sizes: dim -> size of the run whose seconds are told.
        variant: the instruction set whose figures are taken; empty: no time is told.
        own: figures to take instead, as `measured` has them.
    """

    target: Target
    sizes: Sizes
    variant: str
    own: Figures | None = None
    _sizes: dict[tuple[int, str], tuple[Any, int]] = field(default_factory=dict)

    def of(self, graph: Graph) -> Cost:
        """Of a graph after all passes."""
        calls = Kernels.of(Module.of(graph), self.target).every
        table = self.table
        return Cost(self._bytes(calls), sum(seconds(call, self.sizes, table) for call in calls if table))

    @property
    def table(self) -> Figures:
        """The figures that are taken."""
        return self.own or (figures()[self.variant] if self.variant else {})

    def _bytes(self, calls: Iterable[Call]) -> int:
        stored = {_key(operand): operand for call in calls for operand in _weights(call)}
        return sum(self._size(key, operand) for key, operand in stored.items())

    def _size(self, key: tuple[int, str], operand: Operand) -> int:
        """Weights are packed once to see how large they become; they are held, as they are known by identity."""
        known = self._sizes.get(key)
        if known is not None:
            return known[1]
        weight = operand.weight if isinstance(operand, Packed) else operand.attributes["value"]
        array = operand.pack(weight.array) if isinstance(operand, Packed) else weight.array
        size = -(-int(array.nbytes) // _ALIGNED) * _ALIGNED
        self._sizes[key] = weight, size
        return size


def _weights(call: Call) -> Iterator[Operand]:
    for operand in call.operands[:-1]:
        if isinstance(operand, Packed) or operand.op == "constant":
            yield operand


def _key(operand: Operand) -> tuple[int, str]:
    if isinstance(operand, Packed):
        return id(operand.weight), operand.layout
    return id(operand.attributes["value"]), ""


# --- time


def kind_of(call: Call) -> str:
    """The kernels that are alike: a family, and how the weight is stored that it reads."""
    node = call.operands[-1]
    family = call.kernel.family
    if not isinstance(node, Node) or len(node.inputs) < 2:
        return family
    weight = node.inputs[1]
    if node.op == "linear" and weight.op != "constant":
        form = weight.attributes.get("bits") or (
            weight.attributes.get("height", 1) > 1 and weight.attributes["height"]
        )
        return f"{family} {weight.op} {form or ''}".strip()
    if node.op == "linear" and weight.dtype != "f32":
        return f"{family} {weight.dtype}"
    return f"{node.op} {node.attributes['bits']}" if "bits" in node.attributes else family


def features(call: Call, sizes: Sizes) -> tuple[float, float, float, float]:
    """What its time is a sum of: FLOP, bytes, weights that are decoded, and 1 for the call."""
    flops, traffic = float(_number(call.flops, sizes)), float(_number(call.bytes, sizes))
    return flops, traffic, _decoded(call, flops), 1.0


def _decoded(call: Call, flops: float) -> float:
    """Values of the weight, as often as rows have it decoded anew."""
    node = call.operands[-1]
    stored = isinstance(node, Node) and node.op == "linear" and node.inputs[1].op != "constant"
    if not stored:
        return 0.0
    assert isinstance(node, Node)
    values = prod(int(d) for d in node.inputs[1].shape)
    rows = flops / (2 * values)
    return values * -(-rows // ROWS)


def _number(value: Any, sizes: Sizes) -> int:
    """A dim that is counted, as tokens are, is at most what it is counted in: the product of all."""
    try:
        return int(evaluate(value, sizes))
    except KeyError:
        from llmc.compiler.dims import dim_names

        whole = prod(sizes.values())
        return int(evaluate(value, {**dict.fromkeys(dim_names(value), whole), **sizes}))


def seconds(call: Call, sizes: Sizes, table: Figures) -> float:
    """Of one call, by the model."""
    weights = table.get(kind_of(call)) or table.get(call.kernel.family) or table[OTHERS]
    return sum(a * f for a, f in zip(weights, features(call, sizes), strict=True))


@cache
def figures() -> Mapping[str, Figures]:
    """Instruction set -> kind of kernel -> seconds for each FLOP, byte, decoded weight and call."""
    found: Mapping[str, Any] = json.loads(FILE.read_text())["seconds"]
    return found


def fitted(samples: Sequence[tuple[Sequence[float], float]]) -> list[float]:
    """Figures of least squares of the relative error, none below 0: of features and the seconds that they took."""
    from scipy.optimize import nnls

    rows, times = np.array([f for f, _ in samples]), np.array([t for _, t in samples])
    scale = np.maximum(rows.max(0), 1.0)
    found, _ = nnls(rows / scale / times[:, None], np.ones(len(times)))
    return [float(f"{value:.4g}") for value in found / scale]


def measured(
    graphs: Iterable[tuple[Graph, Sequence[Sizes]]], target: Target, compile_graph: Callable[..., Any]
) -> Figures:
    """Figures of this machine, on one thread, of the kernels that compute graphs, at these sizes alone.

    Args:
        graphs: each with the sizes that it is run at; one set of figures is to fit all runs.
        compile_graph: as `llmc.driver.compile_graph`.
    """
    import llmc

    found: dict[str, list[tuple[Sequence[float], float]]] = {}
    with tempfile.TemporaryDirectory(prefix="llmc-") as place:
        for number, (graph, every_sizes) in enumerate(graphs):
            artifact = Path(place) / f"{number}.llmc"
            compile_graph(graph, artifact, target=target.name, only_passes="")
            calls = Kernels.of(Module.of(graph), target).every
            with llmc.load(artifact, threads=1) as model:
                for sizes in every_sizes:
                    for call, least in zip(calls, _least_times(model, sizes), strict=True):
                        found.setdefault(kind_of(call), []).append((features(call, sizes), least))
    every = [sample for samples in found.values() for sample in samples]
    return {OTHERS: fitted(every), **{kind: fitted(samples) for kind, samples in found.items()}}


def _least_times(model: Any, sizes: Sizes) -> list[float]:
    """Of each call of a run."""
    given = {name: size for name, size in sizes.items() if name in model.dims}
    runs = [model.benchmark(**given, duration=0.2, profile=True).steps or () for _ in range(_PROFILES)]
    return [max(min(step.seconds for step in steps), 1e-9) for steps in zip(*runs, strict=True)]


def variant_of(target: Target) -> str:
    """The best instruction set of the target that figures are there for, whatever this machine is.

    Raises:
        LlmcError: there are none for the target.
    """
    known = figures()
    for name in (cpu.name for cpu in target.cpus):
        if name in known:
            return name
    raise LlmcError(
        "there are no figures of the time that kernels take on this target",
        at=f"--target {target.name}",
        found=", ".join(cpu.name for cpu in target.cpus),
        hint=f"--minimise size without --max-latency needs none; there are figures for {', '.join(known)}",
    )
