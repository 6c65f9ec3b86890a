"""The passes of a compile, place by place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmc.compiler.frontends.imported import Imported
from llmc.compiler.given import Given, giving
from llmc.compiler.graph import Graph
from llmc.compiler.module import Module
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.places import PLACES
from llmc.compiler.promises import run_verified
from llmc.compiler.verify import verify_module
from llmc.options import MATMUL, Order
from llmc.passes import PASSES
from llmc.passes.append import append_steps
from llmc.passes.rows.ragged import blanked, ragged_steps
from llmc.report import Stages

Run = Callable[[Pipeline, Graph], tuple[Graph, Any]]


@dataclass(frozen=True)
class Optimised:
    """What the passes made.

    Args:
        pipeline: all that ran; where functions differ in that, those of each.
        source: what an artifact without lossy passes is to compute.
        answering: the module that the self-test's answers are of.
    """

    module: Module
    pipeline: str
    source: Module
    answering: Module


@dataclass(frozen=True)
class _Function:
    """What the passes made of one function, what it is to compute without lossy ones, and whether one was."""

    graph: Graph
    pipeline: Pipeline
    source: Graph
    lossy: bool


class _Road:
    """A graph on its way through the pipeline: passes wait until somebody looks at the graph."""

    def __init__(self, graph: Graph, run: Run) -> None:
        self._graph, self._run = graph, run
        self._waiting = Pipeline(())
        self.pipeline = Pipeline(())

    def add(self, passes: Pipeline) -> None:
        self._waiting = Pipeline((*self._waiting.steps, *passes.steps))
        self.pipeline = Pipeline((*self.pipeline.steps, *passes.steps))

    @property
    def graph(self) -> Graph:
        """After all passes that were added."""
        if self._waiting.steps:
            self._graph, _ = self._run(self._waiting, self._graph)
            self._waiting = Pipeline(())
        return self._graph


def optimise(
    imported: Imported, order: Order, stages: Stages, compile_graph: Callable[..., Any]
) -> Optimised:
    """The passes over every function.

    Args:
        compile_graph: as `llmc.driver.compile_graph`: makes the native code that calibration runs.
    """
    functions = imported.module.functions.items()
    parts = {name: _function(graph, imported, order, stages, compile_graph) for name, graph in functions}
    module = Module({name: part.graph for name, part in parts.items()})
    verify_module(module)
    source = Module({name: part.source for name, part in parts.items()})
    # A lossy pass is meant to change the answers: the artifact then answers for what is left after it.
    lossy = any(part.lossy for part in parts.values())
    texts = {name: str(part.pipeline) for name, part in parts.items()}
    same = len(set(texts.values())) == 1
    text = next(iter(texts.values())) if same else "; ".join(f"{name}: {t}" for name, t in texts.items())
    return Optimised(module, text, source, module if lossy else source)


def _function(
    graph: Graph, imported: Imported, order: Order, stages: Stages, compile_graph: Callable[..., Any]
) -> _Function:
    """The passes that are asked for, and those that states, a target, `--quant` and `--matmul` bring along."""
    read = (
        partial(order.quant.samples, tokenizer=imported.tokenizer) if order.quant.calib is not None else None
    )
    packing = Pipeline(())
    with giving(Given(read, imported.tokenizer)):
        road = _Road(graph, run_verified if order.verify_each else Pipeline.run)
        road.add(append_steps(imported.module) if order.level and not order.only else Pipeline(()))
        needed = {} if order.only else order.backend.passes(order.target)
        for place in PLACES:
            road.add(order.placed.at(place))
            road.add(Pipeline.parse(needed.get(place, ""), PASSES))
            if place == "compress":
                packing = _packing(road, order)
                road.add(packing)
            if place == "quantise":
                _quantise(road, imported, order, stages, compile_graph)
        after = road.graph
    own = {id(step) for step in packing.steps}
    lossy = Pipeline(tuple(step for step in road.pipeline.steps if id(step) not in own)).lossy
    return _Function(after, road.pipeline, blanked(graph, packing), lossy)


def _packing(road: _Road, order: Order) -> Pipeline:
    """The passes by which encoders skip padding."""
    if order.only or not order.whole or not order.backend.ragged:
        return Pipeline(())
    return ragged_steps(road.graph, blank=order.padding == "zero")


def _quantise(
    road: _Road, imported: Imported, order: Order, stages: Stages, compile_graph: Callable[..., Any]
) -> None:
    """What `--quant` and `--matmul` ask for."""
    if order.quant.static:
        graph = road.graph
        stages.enter("calibrate", 0.42)
        scales = order.quant.scales(graph, imported.tokenizer, compile_graph)
        road.add(order.quant.pipeline(order.backend.integer_attention, scales))
    else:
        road.add(order.quant.pipeline(order.backend.integer_attention))
    road.add(MATMUL[order.matmul])
