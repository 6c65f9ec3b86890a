"""`states`: keys and values in fewer bits, where attention alone reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from stateful_graphs import WIDTH, accumulator, normal, windowed

from llmc.compiler.effects import listening
from llmc.compiler.graph import Graph
from llmc.compiler.interpret import step
from llmc.compiler.module import Module
from llmc.compiler.ops import make
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.plan_windows import windows
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES
from llmc.passes.quantise.states import States


def optimised(graph: Graph, level: int = 3) -> Graph:
    return Pipeline.parse(",".join(p for p in ("append", LEVELS[level]) if p), PASSES).run(graph)[0]


def told(graph: Graph, dtype: str = "int8") -> tuple[Graph, dict[str, int], int]:
    """What the pass makes, what it left, and how many states it changed."""
    with listening() as heard:
        after = States(dtype).run(graph)
    (effect,) = heard
    return after, dict(effect.left), effect.changed


def played(graph: Graph, calls: tuple[int, ...]) -> Any:
    text, states, found, at = normal(3, 1, sum(calls), WIDTH), {}, [], 0
    for rows in calls:
        outputs, states = step(graph, {"x": text[:, at : at + rows]}, states)
        found.append(outputs["y"])
        at += rows
    return np.concatenate(found, 1)


@pytest.mark.parametrize(
    ("dtype", "row", "most"), [("fp16", "f16[past, 1, 2, 16]", 1e-3), ("int8", "u8[past, 1, 2, 32]", 2e-2)]
)
def test_they_are_near_what_they_were(dtype: str, row: str, most: float) -> None:
    layers = optimised(windowed(9, 300))
    after = States(dtype).run(layers)
    assert [str(state.type) for state in after.states] == [row] * 4
    whole, parts = played(after, (20,)), played(after, (7, 1, 1, 11))
    np.testing.assert_array_equal(whole, parts)
    wanted = played(layers, (20,))
    assert 0 < np.abs(whole - wanted).max() / np.abs(wanted).max() < most
    assert windows(Module.of(after)) == [9, 9, 300, 300]


def test_once_is_enough() -> None:
    after, left, changed = told(States("int8").run(optimised(windowed(9))))
    assert (left, changed) == ({"of u8": 2}, 0)
    assert States("fp16").run(after) is after


def test_what_is_left_and_why() -> None:
    total = accumulator()
    assert told(total) == (total, {"read by other than attention": 1}, 0)
    low = optimised(windowed(9), level=0)
    assert told(low) == (low, {"read by other than attention": 2}, 0)


def test_keys_and_values_go_together() -> None:
    """Where the keys are an output too they stay, and so do the values beside them; the other layer changes."""
    layers = optimised(windowed(9, 8))
    shown = make("sum", (layers.updates["0.keys"],), axes=(0,), keepdims=False)
    after, left, changed = told(replace(layers, outputs={**layers.outputs, "shown": shown}))
    assert (left, changed) == ({"read by other than attention": 1, "read beside one that is left": 1}, 2)
    assert [state.dtype for state in after.states] == ["f32", "f32", "u8", "u8"]


def test_no_such_dtype() -> None:
    with pytest.raises(LlmcError, match=r"there are no states of 'fp8'"):
        States("fp8")
