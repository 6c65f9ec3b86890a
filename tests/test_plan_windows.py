"""Which states have a window: those that nothing but attention with one reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from stateful_graphs import PAST, SEQ, WIDTH, causal, windowed

from llmc.compiler.graph import Graph, Node
from llmc.compiler.module import Module
from llmc.compiler.ops import input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.plan_windows import windows
from llmc.passes import LEVELS, PASSES


def optimised(graph: Graph, level: int = 3) -> Graph:
    return Pipeline.parse(",".join(p for p in ("append", LEVELS[level]) if p), PASSES).run(graph)[0]


def found(graph: Graph) -> dict[str, int]:
    module = Module.of(graph)
    return dict(zip(module.states, windows(module), strict=True))


def test_each_layer_has_its_own() -> None:
    layers = found(optimised(windowed(32, None, 8)))
    assert layers == {
        **{"0.keys": 32, "0.values": 32},
        **{"1.keys": 0, "1.values": 0},
        **{"2.keys": 8, "2.values": 8},
    }


def test_the_widest_of_several_functions_counts() -> None:
    narrow, wide = (optimised(windowed(window)) for window in (8, 20))
    module = Module({"narrow": narrow, "wide": wide})
    assert windows(module) == [20, 20]
    whole = optimised(windowed(None))
    assert windows(Module({"narrow": narrow, "whole": whole})) == [0, 0]


def test_no_window_no_bound() -> None:
    assert set(found(optimised(causal())).values()) == {0}


def test_copies_of_a_state_read_all_of_it() -> None:
    """Below -O2 keys are moved to where heads come first."""
    assert set(found(optimised(windowed(8), level=1)).values()) == {0}


def also_read(graph: Graph, read: Callable[[Node, Node], Node]) -> Graph:
    """A graph with an output made of the first state and its next value."""
    state = graph.states[0]
    more = read(state, graph.updates[state.attributes["name"]])
    return replace(graph, outputs={**graph.outputs, "more": more})


READERS: dict[str, Callable[[Node, Node], Node]] = {
    "the state itself": lambda state, after: make("sum", (state,), axes=(0,), keepdims=False),
    "an output": lambda state, after: after,
    "an output that is the state": lambda state, after: state,
    "a view as output": lambda state, after: make("reshape", (after,), shape=(after.shape[0], WIDTH)),
    "another op": lambda state, after: make("sum", (after,), axes=(0,), keepdims=False),
}


@pytest.mark.parametrize("how", READERS)
def test_whatever_else_reads_it_reads_all(how: str) -> None:
    layer = optimised(windowed(8))
    assert found(also_read(layer, READERS[how])) == {"0.keys": 0, "0.values": 8}


def test_queries_have_to_be_the_newest() -> None:
    """Of attention whose last query is not the last position a window begins elsewhere."""
    layer = optimised(windowed(8))
    core = next(n for n in layer.nodes if n.op == "mha")
    more = input_("more", "f32", (1, 3, WIDTH))
    other = make("mha", (more, *core.inputs[1:]), **core.attributes)
    wider = replace(layer, inputs=(*layer.inputs, more), outputs={**layer.outputs, "more": other})
    assert set(found(wider).values()) == {0}
    assert str(core.inputs[1].shape[1] - core.inputs[0].shape[1]) == str(PAST + SEQ - SEQ)
