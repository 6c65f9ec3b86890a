"""The passes of a compile, place by place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from glob import escape
from typing import Any

from llmc import done, gains
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.given import Given, giving
from llmc.compiler.graph import Graph
from llmc.compiler.kept_statistics import Statistics
from llmc.compiler.module import Module
from llmc.compiler.pipeline import Observer, Pass, PassRun, Pipeline, Step
from llmc.compiler.places import PLACES, Placed
from llmc.compiler.promises import run_verified
from llmc.compiler.samples import Arrays
from llmc.compiler.trail import Loss, Trail
from llmc.compiler.verify import verify_module
from llmc.done import OWN, Asked
from llmc.errors import LlmcError
from llmc.kept_answers import plays
from llmc.options import MATMUL, STATES, Order
from llmc.passes import PASSES
from llmc.passes.append import Append, append_steps
from llmc.passes.layout.channels_last import channels_last_steps
from llmc.passes.layout.winograd import Winograd, winograd_steps
from llmc.passes.rows.ragged import ragged_steps
from llmc.quantisation import observer, own_steps
from llmc.report import Stages
from llmc.runtime.selftest import Case
from llmc.selfcheck import answers, blanked_answers, outputs_of, played_alone, replayed

Run = Callable[[Pipeline, Graph, Observer], tuple[Graph, Any]]


@dataclass(frozen=True)
class Optimised:
    """What the passes made.

    Args:
        pipeline: all that ran, but what was asked for and changed nothing; where functions differ, those of each.
        noted: sessions with the answers of the imported module, from before any pass ran.
        source: the same with zeros at padding where they are meant.
        cases: the same sessions with what the artifact is to answer: after a lossy pass what is left after it.
        trails: the passes of each function.
        losses: what lossy passes did.
        effects: what each option did, as the manifest has it.
        quantisation: the mode of `--quant`, if it changed anything.
        left: products that int8 would slow down, which stay float.
    """

    module: Module
    pipeline: str
    noted: Sequence[Case]
    source: Sequence[Case]
    cases: Sequence[Case]
    trails: Mapping[str, Trail]
    losses: Sequence[Loss]
    effects: Sequence[Mapping[str, Any]]
    quantisation: str
    left: tuple[gains.Gain, ...] = ()


@dataclass(frozen=True)
class _Function:
    """What the passes made of one function; `packing` are those by which it skips padding, `asked` those of options."""

    graph: Graph
    pipeline: Pipeline
    packing: Pipeline
    trail: Trail
    asked: tuple[Asked, ...]
    left: tuple[gains.Gain, ...] = ()


class _Road:
    """A graph on its way through the pipeline: passes wait until somebody looks at the graph."""

    def __init__(self, graph: Graph, run: Run) -> None:
        self._graph, self._run = graph, run
        self._waiting = Pipeline(())
        self.pipeline, self.packing = Pipeline(()), Pipeline(())
        self.trail, self.runs = Trail(graph), list[tuple[Step, PassRun]]()

    def pack(self, passes: Pipeline) -> None:
        """Add the passes by which encoders skip padding: zeros there are meant."""
        self.packing = passes
        self.add(passes)

    def add(self, passes: Pipeline) -> None:
        self._waiting = Pipeline((*self._waiting.steps, *passes.steps))
        self.pipeline = Pipeline((*self.pipeline.steps, *passes.steps))

    @property
    def graph(self) -> Graph:
        """After all passes that were added."""
        if self._waiting.steps:
            noting = self.trail.noting(self._waiting, self.packing)
            self._graph, report = self._run(self._waiting, self._graph, noting)
            self.runs += zip(self._waiting.steps, report.runs, strict=True)
            self._waiting = Pipeline(())
        return self._graph


def optimise(
    imported: Imported, order: Order, stages: Stages, compile_graph: Callable[..., Any]
) -> Optimised:
    """The passes over every function.

    Args:
        compile_graph: as `llmc.driver.compile_graph`: makes the native code that calibration runs.
    """
    alone = played_alone(imported.module)
    noted = answers(imported.module, alone)
    parts = _functions(imported, order, stages, compile_graph)
    module = Module({name: part.graph for name, part in parts.items()})
    verify_module(module)
    texts = {name: str(part.pipeline) for name, part in parts.items()}
    same = len(set(texts.values())) == 1
    text = next(iter(texts.values())) if same else "; ".join(f"{name}: {t}" for name, t in texts.items())
    asked = [one for part in parts.values() for one in part.asked]
    if not order.allow_noop:
        done.want_all(asked)
    trails = {name: part.trail for name, part in parts.items()}
    lossy = any(trail.lossy for trail in trails.values())
    # Machine code that this machine does not run shows nothing: the graphs have to.
    held = lossy or not order.backend.runs_here(order.target)
    losses = [
        loss
        for name, trail in trails.items()
        if held
        for loss in trail.hold(alone or outputs_of(noted, name, trail.first), plays)
    ]
    source = blanked_answers(noted, imported.module, {name: part.packing for name, part in parts.items()})
    cases = replayed(module, source, _last(trails) if alone else ()) if lossy else source
    mode = order.quant.mode if done.changed(asked, order.quant.option) else "none"
    left = tuple({gain.place: gain for part in parts.values() for gain in part.left}.values())
    return Optimised(module, text, noted, source, cases, trails, losses, done.told(asked), mode, left)


def passed(
    imported: Imported, order: Order, compile_graph: Callable[..., Any], kept: Statistics | None = None
) -> Mapping[str, Graph]:
    """Each function after the passes, which nothing holds to their promises.

    Args:
        compile_graph: as of `optimise`.
        kept: keeps what is gathered of samples; None: as `order` says.
    """
    parts = _functions(imported, order, Stages(None), compile_graph, kept)
    if not order.allow_noop:
        done.want_all([one for part in parts.values() for one in part.asked])
    module = Module({name: part.graph for name, part in parts.items()})
    verify_module(module)
    return module.functions


@dataclass(frozen=True)
class Gathered:
    """What calibration has seen.

    Args:
        walks: for each walk over the samples "walk", its number, "kind", and how many samples were "there", were
            "added", and "merged" of other parts.
        waits: what the rest waits for; empty if there is all.
    """

    walks: Sequence[Mapping[str, Any]]
    waits: str = ""


def gathered(imported: Imported, order: Order, compile_graph: Callable[..., Any], parts: int = 1) -> Gathered:
    """Run the passes for what they want to know of samples, which is kept in the folder of `order`.

    Args:
        compile_graph: as of `optimise`.
        parts: as `Statistics` has it.

    Raises:
        LlmcError: as `optimise`; or no pass walks over the samples.
    """
    kept = Statistics(order.quant.stats, order.quant.merged, parts, order.say)
    try:
        passed(imported, order, compile_graph, kept)
    except LlmcError:
        if kept.waits is None:
            raise
        return Gathered(kept.walks, str(kept.waits))
    if not kept.walks:
        raise LlmcError("no pass wants to know anything of samples of this model", at=order.quant.option)
    return Gathered(kept.walks)


def before_quantising(
    imported: Imported, order: Order, compile_graph: Callable[..., Any]
) -> tuple[Mapping[str, Graph], Callable[[Graph], Graph]]:
    """Each function at the end of the place `quantise`, and what the places after it make of such a graph.

    Args:
        compile_graph: as of `optimise`.
    """
    caught: list[Graph] = []
    probe = Step("look", _Look(caught.append))
    order.placed = order.placed.joined(Placed({"quantise": (probe,)}))
    functions = passed(imported, order, compile_graph)
    return dict(zip(functions, caught, strict=True)), partial(_finished, order=order)


def _finished(graph: Graph, order: Order) -> Graph:
    """After the places that come after `quantise`."""
    later = [step for place in ("layout", "target", "final") for step in order.placed.at(place).steps]
    own = winograd_steps(graph) if _by_tiles(order) else Pipeline(())
    return Pipeline((*own.steps, *later)).run(graph)[0]


class _Look(Pass):
    """Shows the graph at one place to whoever asks."""

    def __init__(self, see: Callable[[Graph], None]) -> None:
        object.__setattr__(self, "see", see)

    def enters(self) -> bool:
        return False

    def run(self, graph: Graph) -> Graph:
        self.see(graph)  # type: ignore[attr-defined]
        return graph


def _last(trails: Mapping[str, Trail]) -> Sequence[Arrays]:
    """The answers of the one function there is, after all passes."""
    (trail,) = trails.values()
    return trail.answers


def _functions(
    imported: Imported,
    order: Order,
    stages: Stages,
    compile_graph: Callable[..., Any],
    kept: Statistics | None = None,
) -> Mapping[str, _Function]:
    quant = order.quant
    if kept is None and (quant.stats is not None or quant.merged):
        kept = Statistics(quant.stats, quant.merged, say=order.say)
    with nullcontext() if kept is None else kept.opened():
        functions = imported.module.functions.items()
        return {n: _function(graph, imported, order, stages, compile_graph, kept) for n, graph in functions}


def _function(
    graph: Graph,
    imported: Imported,
    order: Order,
    stages: Stages,
    compile_graph: Callable[..., Any],
    kept: Statistics | None,
) -> _Function:
    """The passes that are asked for, and those that states, a target, `--quant` and `--matmul` bring along."""
    read = (
        partial(order.quant.samples, tokenizer=imported.tokenizer, preprocess=imported.preprocess)
        if order.quant.calib is not None
        else None
    )
    verified = partial(run_verified, say=order.say)
    added: Mapping[str, Pipeline] = {}
    left: tuple[gains.Gain, ...] = ()
    native = partial(observer, compile_graph=compile_graph)
    place = None if order.quant.calib is None else str(order.quant.calib)
    with giving(Given(read, imported.tokenizer, native, place, kept)):
        road = _Road(graph, verified if order.verify_each else Pipeline.run)
        road.add(_appending(imported, order))
        first, own = own_steps(graph, _on_integers(order)) if not order.only else (Pipeline(()), Pipeline(()))
        road.add(first)
        needed = {} if order.only else order.backend.passes(order.target)
        for place in PLACES:
            road.add(order.placed.at(place))
            road.add(Pipeline.parse(needed.get(place, ""), PASSES))
            if place == "fuse" and order.backend.channels_last and order.level > 1 and not order.only:
                road.add(channels_last_steps(road.graph))
            if place == "compress":
                road.pack(_packing(road, order))
            if place == "quantise":
                road.add(own)
                left = gains.slower(road.graph, order, _finished, compile_graph)
                added = {**_quantise(road, imported, order, stages, compile_graph, left), OWN: own}
            if place == "layout" and _by_tiles(order):
                road.add(winograd_steps(road.graph))
        after = road.graph
    options = order.options_by_step | {id(step): o for o, p in added.items() for step in p.steps}
    asked = tuple(Asked(options[id(step)], step, run) for step, run in road.runs if id(step) in options)
    shared = any(one.step.change.name == "share" and one.run.changed for one in asked)
    if "bitmask" not in order.backend.decodes:
        reason = f"where products for {order.target.name} multiply zeros too"
        asked = tuple(done.with_zeros_multiplied(one, reason) for one in asked)
    elif shared:  # zeros of plain weights; a bitmask is not shared
        reason = "whose values are shared: all are multiplied"
        asked = tuple(
            done.with_zeros_multiplied(one, reason) if getattr(one.step.change, "whole", False) else one
            for one in asked
        )
    idle = {id(step) for step in done.idle(asked)}
    ran = Pipeline(tuple(step for step in road.pipeline.steps if id(step) not in idle))
    return _Function(after, ran, road.packing, road.trail, asked, left)


def _appending(imported: Imported, order: Order) -> Pipeline:
    """The passes that states which grow need first: not if the user's own say where, as a manifest's text does."""
    named = any(isinstance(step.change, Append) for step in order.placed.pipeline.steps)
    return append_steps(imported.module) if order.level and not order.only and not named else Pipeline(())


def _on_integers(order: Order) -> bool:
    """Whether the passes find the products that integer kernels are for."""
    return order.level > 1 and order.backend.zero_points


def _by_tiles(order: Order) -> bool:
    """Whether convolutions are computed by tiles where that is faster: not if the user's own passes say where."""
    named = any(isinstance(step.change, Winograd) for step in order.placed.pipeline.steps)
    return order.backend.winograd and order.level > 1 and not order.only and not named


def _packing(road: _Road, order: Order) -> Pipeline:
    """The passes by which encoders skip padding."""
    if order.only or not order.whole or not order.backend.ragged:
        return Pipeline(())
    return ragged_steps(road.graph, blank=order.padding == "zero")


def _quantise(
    road: _Road,
    imported: Imported,
    order: Order,
    stages: Stages,
    compile_graph: Callable[..., Any],
    left: tuple[gains.Gain, ...],
) -> Mapping[str, Pipeline]:
    """What `--quant` and `--matmul` ask for, by option; products that are `left` stay float."""
    quant = replace(order.quant, slower=tuple(escape(gain.place) for gain in left))
    scales: tuple[float, ...] = ()
    before = Pipeline(())
    if quant.static:
        stages.enter("calibrate", 0.42)
        before = quant.smoothing(road.graph)
        road.add(before)
        graph = road.graph
        scales = quant.scales(graph, imported.tokenizer, compile_graph, imported.preprocess)
    backend = order.backend
    quantising = quant.pipeline(
        backend.integer_attention, backend.integer_rows, scales, stateful=bool(road.graph.states)
    )
    road.add(quantising)
    quantising = Pipeline((*before.steps, *quantising.steps))
    road.add(MATMUL[order.matmul])
    road.add(STATES[order.state_dtype])
    return {
        order.quant.option: quantising,
        f"--matmul {order.matmul}": MATMUL[order.matmul],
        f"--state-dtype {order.state_dtype}": STATES[order.state_dtype],
    }
