"""The passes of a compile, place by place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmc.compiler.frontends.imported import Imported
from llmc.compiler.given import Given, giving
from llmc.compiler.graph import Graph
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.places import PLACES
from llmc.compiler.promises import run_verified
from llmc.options import MATMUL, Order
from llmc.passes import PASSES
from llmc.passes.rows.ragged import blanked, ragged_steps
from llmc.report import Stages

Run = Callable[[Pipeline, Graph], tuple[Graph, Any]]


@dataclass(frozen=True)
class Optimised:
    """What the passes made.

    Args:
        pipeline: all that ran.
        source: what an artifact without lossy passes is to compute.
        answering: the graph that the self-test's answers are of.
    """

    graph: Graph
    pipeline: Pipeline
    source: Graph
    answering: Graph


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
    """The passes that are asked for, and those that a target, `--quant` and `--matmul` bring along.

    Args:
        compile_graph: as `llmc.driver.compile_graph`: makes the native code that calibration runs.
    """
    read = (
        partial(order.quant.samples, tokenizer=imported.tokenizer) if order.quant.calib is not None else None
    )
    packing = Pipeline(())
    with giving(Given(read, imported.tokenizer)):
        road = _Road(imported.graph, run_verified if order.verify_each else Pipeline.run)
        needed = {} if order.only else order.backend.passes(order.target)
        for place in PLACES:
            road.add(order.placed.at(place))
            road.add(Pipeline.parse(needed.get(place, ""), PASSES))
            if place == "compress":
                packing = _packing(road, order)
                road.add(packing)
            if place == "quantise":
                _quantise(road, imported, order, stages, compile_graph)
        graph = road.graph
    source = blanked(imported.graph, packing)
    # A lossy pass is meant to change the answers: the artifact then answers for the graph after it.
    own = {id(step) for step in packing.steps}
    lossy = Pipeline(tuple(step for step in road.pipeline.steps if id(step) not in own)).lossy
    return Optimised(graph, road.pipeline, source, graph if lossy else source)


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
