"""What each layer gains by what was asked for: bytes, and seconds by the model of costs, before and after."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from glob import escape
from math import prod
from typing import TYPE_CHECKING, Any

from llmc.compiler.calls import Call, Packed, every_call
from llmc.compiler.graph import Graph, Node
from llmc.compiler.module import Module
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.watch import watching
from llmc.costs import Figures, figures, kind_of, measured, seconds, variant_of
from llmc.errors import LlmcError
from llmc.kernels import Kernels
from llmc.passes import PASSES
from llmc.passes.quantise import STATIC
from llmc.targets.target import Target

if TYPE_CHECKING:
    from llmc.compiler.frontends.imported import Imported
    from llmc.options import Order

THIS = "this machine"
_LONG = 128  # tokens, or whatever an axis counts
_HELD = 512  # positions that states hold
_LARGE = (
    1 << 20
)  # values of a weight: `linear` of so many is never slower on int8, and rounding them takes time
_LEAST = 4096  # bytes; weights below are biases and norms
_UNTOLD = ("batch", "kept", "tokens")  # always 1, or what others come to
_SKIPPING = "sparse_qlinear"  # its constants have their zeros in place
_ROUNDING = ("quantize_rows", "int16_rows", "int8_rows", "bf16_rows", "quantize", "row_scale")
Runs = Mapping[str, Mapping[str, Mapping[str, int]]]  # as a run is told -> function -> sizes


@dataclass(frozen=True)
class Gain:
    """Of one layer, before and after.

    Args:
        place: its module path.
        kinds: kernels that read its weights (`costs.kind_of`).
        bytes: of its weights.
        seconds: of each run, on one thread; empty where there are no figures.
    """

    place: str
    kinds: tuple[str, str]
    bytes: tuple[int, int]
    seconds: tuple[tuple[float, float], ...] = ()

    @property
    def slower(self) -> bool:
        """Whether every run takes longer than before."""
        return bool(self.seconds) and all(after > before for before, after in self.seconds)

    @property
    def changed(self) -> bool:
        return self.kinds[0] != self.kinds[1] or self.bytes[0] != self.bytes[1]


@dataclass(frozen=True)
class Gains:
    """Of a model.

    Args:
        variant: the instruction set whose figures are taken, "this machine" where kernels were timed, or empty.
        runs: what was run, such as "seq=128".
        whole: of everything.
        layers: those that changed.
        left: those that stay as they were, as all runs would take longer, with what they would be.
        slower_on: other instruction sets of the target on which everything takes longer than before -> seconds.
    """

    variant: str
    runs: tuple[str, ...]
    whole: Gain
    layers: tuple[Gain, ...]
    left: tuple[Gain, ...] = ()
    slower_on: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def gains(
    before: Kernels, after: Kernels, target: Target, own: Figures | None = None, left: tuple[Gain, ...] = ()
) -> Gains:
    """What the layers of one module are in another, by figures of the target, or `own`."""
    table, variant = _figures(target, own)
    runs = runs_of(before.module) if table else {}
    old, new = _layers(before, runs, table), _layers(after, runs, table)
    gone = _Layer([0.0] * len(runs))
    every = [_gain(place, old.get(place, gone), new.get(place, gone)) for place in {**old, **new}]
    layers = tuple(g for g in every if g.changed and max(g.bytes) >= _LEAST)
    others = [cpu.name for cpu in target.cpus if variant not in (cpu.name, THIS) and cpu.name in figures()]
    wholes = {name: _whole(*(_layers(k, runs, figures()[name]) for k in (before, after))) for name in others}
    slower_on = {name: whole.seconds for name, whole in wholes.items() if whole.slower}
    return Gains(variant, tuple(runs), _whole(old, new), layers, left, slower_on)


def slower(
    graph: Graph, order: Order, finished: Callable[[Graph, Order], Graph], compile_graph: Any
) -> tuple[Gain, ...]:
    """The products of a graph that int8 would slow down, if int8 is asked for.

    Args:
        graph: before it is quantised.
        finished: a graph after the passes that come later.
        compile_graph: as `llmc.driver.compile_graph`.
    """
    if order.quant.mode not in ("int8", STATIC):
        return ()
    change = order.quant.change()
    products = [n for n in change.products(graph) if n.op == "linear" and not order.measure]
    large = [n for n in products if prod(n.inputs[1].shape) > _LARGE]
    probe = replace(change, slower=tuple(escape(n.source.path) for n in large))
    probe = replace(probe, scales=(1.0,) * len(probe.sites(graph)) if order.quant.static else ())
    quantising = Pipeline.of(probe, *(step.change for step in Pipeline.parse("qfuse,cse", PASSES).steps))
    with watching(None):
        graphs = (finished(g, order) for g in (graph, quantising.run(graph)[0]))
        before, after = (Kernels.of(Module.of(g), order.target) for g in graphs)
        own = timed(before, after, compile_graph) if order.measure else None
    places = {n.source.path for n in probe.products(graph)}
    found = gains(before, after, order.target, own)
    return tuple(gain for gain in found.layers if gain.place in places and gain.slower)


def of_compile(
    imported: Imported, order: Order, after: Kernels, left: tuple[Gain, ...], compile_graph: Any
) -> Gains | None:
    """What was gained by all that was asked for; None where nothing was.

    Args:
        after: what was made.
        left: as `slower` found them.
    """
    from llmc.optimise import passed

    plain = order.plain()
    if plain is None:
        return None
    before = Kernels.of(Module(dict(passed(imported, plain, compile_graph))), order.target)
    own = timed(before, after, compile_graph) if order.measure else None
    return gains(before, after, order.target, own, left)


def timed(before: Kernels, after: Kernels, compile_graph: Any) -> Figures:
    """Figures of this machine for the kernels of two modules, at the sizes that `gains` asks for.

    Args:
        compile_graph: as `llmc.driver.compile_graph`.

    Raises:
        LlmcError: a function reads states that it does not write.
    """
    runs = runs_of(before.module).values()
    for name, graph in before.module.functions.items():
        if others := [n for node in graph.states if (n := node.attributes["name"]) not in graph.updates]:
            raise LlmcError(
                f"the function {name} begins with what another has made: it cannot be timed alone",
                at="--measure",
                found=", ".join(others[:3]),
                hint="leave it out: the cost model has figures",
            )
    functions = [item for kernels in (before, after) for item in kernels.module.functions.items()]
    asked = ((graph, [sizes[name] for sizes in runs]) for name, graph in functions)
    return measured(asked, before.target, compile_graph)


def runs_of(module: Module) -> Runs:
    """A run of one token (or whatever its axes count) and one of 128; one run where nothing is open but the batch."""
    made: dict[str, dict[str, dict[str, int]]] = {}
    for size in (1, _LONG):
        sizes = {name: _sizes(graph, size) for name, graph in module.functions.items()}
        told = {dim: n for one in sizes.values() for dim, n in one.items() if dim not in _UNTOLD}
        made.setdefault(", ".join(f"{dim}={n}" for dim, n in told.items()) or "batch=1", sizes)
    return made


def _sizes(graph: Graph, size: int) -> dict[str, int]:
    wanted = {"batch": 1, "kept": 1, "past": _HELD}
    return {
        dim: min(max(wanted.get(dim, size), bounds.low), bounds.high) for dim, bounds in graph.dims.items()
    }


def _figures(target: Target, own: Figures | None) -> tuple[Figures, str]:
    if own is not None:
        return own, THIS
    try:
        variant = variant_of(target)
    except LlmcError:
        return {}, ""
    return figures()[variant], variant


class _Layer:
    """What is read and done at one place."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds = seconds
        self.kinds: dict[str, int] = {}  # -> bytes of the weights that they read
        self.weights: dict[str, int] = {}  # digest -> bytes, as equal ones are stored once


def _gain(place: str, old: _Layer, new: _Layer) -> Gain:
    kinds = _told(old.kinds), _told(new.kinds)
    sizes = sum(old.weights.values()), sum(new.weights.values())
    return Gain(place, kinds, sizes, tuple(zip(old.seconds, new.seconds, strict=True)))


def _told(kinds: Mapping[str, int]) -> str:
    """Kernels that read much, or the one that reads most."""
    large = [kind for kind, size in kinds.items() if size >= _LEAST]
    return ", ".join(large or sorted(kinds, key=lambda kind: -kinds[kind])[:1])


def _whole(old: Mapping[str, _Layer], new: Mapping[str, _Layer]) -> Gain:
    """All layers together; a weight that several read counts once."""
    joined = []
    for layers in (old, new):
        whole = _Layer(
            [sum(times) for times in zip(*(layer.seconds for layer in layers.values()), strict=True)]
        )
        for layer in layers.values():
            whole.weights |= layer.weights
        joined.append(whole)
    return _gain("", *joined)


def _layers(kernels: Kernels, runs: Runs, table: Figures) -> dict[str, _Layer]:
    """By place; what only rounds the inputs of products counts where these are."""
    found: dict[str, _Layer] = defaultdict(lambda: _Layer([0.0] * len(runs)))
    for name, program in kernels.calls.items():
        calls = list(every_call(program))
        written = {call.operands[-1]: call for call in calls}
        readers: dict[int, list[str]] = defaultdict(list)
        reads = {id(call): list(_reads(call, written)) for call in calls}
        for call in calls:
            for node in reads[id(call)]:
                if node in written:
                    readers[id(written[node])].append(call.source.path)
        for call in calls:
            places = readers[id(call)] if call.kernel.family in _ROUNDING else []
            places = places or [call.source.path]
            times = [seconds(call, sizes[name], table) for sizes in runs.values()]
            for place in places:
                layer = found[place]
                layer.seconds = [t + own / len(places) for t, own in zip(layer.seconds, times, strict=True)]
            held = {
                n.attributes["value"].digest: _stored(n, call) for n in reads[id(call)] if n.op == "constant"
            }
            layer = found[call.source.path]
            layer.weights |= held
            if held:
                layer.kinds[kind_of(call)] = sum(held.values())
    return found


def _reads(call: Call, written: Mapping[Any, Call]) -> Iterator[Node]:
    """The nodes that a call reads: constants, inputs, and what other calls write."""
    end = call.operands[-1]
    assert isinstance(end, Node)
    waiting, seen = list(end.inputs), set[Node]()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in written or not node.inputs:
            yield node
        else:
            waiting += node.inputs


def _stored(node: Node, call: Call) -> int:
    """Bytes of a constant that a call reads, as it stores them where it leaves out zeros."""
    weight = node.attributes["value"]
    if call.kernel.family != _SKIPPING:
        return int(weight.array.nbytes)
    parts = [p.pack(weight.array) for p in call.operands if isinstance(p, Packed) and p.weight is weight]
    return sum(int(part.nbytes) for part in parts) or int(weight.array.nbytes)
