"""Orders, values written at indices, and rows by the matrix of their group."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_lab import Lab, check

from llmc.compiler.dims import symbol
from llmc.compiler.graph import DTYPES, Node
from llmc.compiler.ops import input_, make

Array = np.ndarray[Any, Any]
BATCH, SEQ = symbol("batch"), symbol("seq")


def few(rng: Any, dtype: str, *shape: int) -> Array:
    """Values of which many are equal."""
    low, high = (-4, 4) if DTYPES[dtype].kind != "u" else (0, 6)
    return rng.integers(low, high, shape).astype(DTYPES[dtype])


@pytest.mark.parametrize("dtype", ["f32", "f16", "i64", "u8"])
def test_order(kernels: Lab, dtype: str) -> None:
    x, m = input_("x", dtype, (BATCH, SEQ)), input_("m", dtype, (BATCH, 3, 20))
    nodes: dict[str, Node] = {}
    for down in (False, True):
        nodes[f"all {down}"] = make("argsort", (x,), count=SEQ, descending=down)
        nodes[f"one {down}"] = make("argsort", (x,), count=1, descending=down)
        nodes[f"some {down}"] = make("argsort", (m,), count=7, descending=down)
    for size in (1, 2, 17, 130):
        rng = np.random.default_rng(size)
        found = {"x": few(rng, dtype, 3, size), "m": few(rng, dtype, 3, 3, 20)}
        if dtype[0] == "f":
            found["x"][0, ::3], found["x"][1, 0], found["x"][2, -1] = np.nan, -np.inf, -0.0
        check(kernels, nodes, found)


@pytest.mark.parametrize("dtype", ["f32", "i64", "f16", "bool"])
def test_scatter(kernels: Lab, dtype: str) -> None:
    """Places that are written to several times, and indices from outside, which are clamped."""
    x, v = input_("x", dtype, (BATCH, 9, 70)), input_("v", dtype, (BATCH, SEQ))
    u, w = input_("u", dtype, (BATCH, SEQ, 70)), input_("w", dtype, (BATCH, 5))
    at, here = input_("at", "i64", (BATCH, SEQ, 70)), input_("here", "i32", (BATCH, 5))
    rows = input_("rows", "i64", (SEQ,))
    reduces = {"f32": ("none", "add", "max"), "i64": ("none", "add", "mul", "min")}.get(dtype, ("none",))
    nodes: dict[str, Node] = {}
    for reduce in reduces:
        nodes[f"lines {reduce}"] = make("scatter", (x, at, u), axis=1, reduce=reduce)
        nodes[f"rows {reduce}"] = make("scatter", (x, rows, u), axis=1, reduce=reduce)
        nodes[f"last {reduce}"] = make("scatter", (v, here, w), axis=1, reduce=reduce)
    for size in (1, 3, 40):
        rng = np.random.default_rng(size)
        made = {n: rng.normal(0, 9, s) for n, s in (("x", (2, 9, 70)), ("v", (2, size)))}
        made |= {n: rng.normal(0, 9, s) for n, s in (("u", (2, size, 70)), ("w", (2, 5)))}
        inputs = {n: a.astype(DTYPES[dtype]) for n, a in made.items()}
        inputs |= {"at": rng.integers(-2, 12, (2, size, 70)), "rows": rng.integers(-2, 12, size)}
        inputs["here"] = rng.integers(-2, size + 2, (2, 5)).astype(np.int32)
        results = check(kernels, nodes, inputs)
        for name in ("lines none", "rows none", "last none"):
            node = nodes[name]
            arrays = [inputs[i.attributes["name"]] for i in node.inputs]
            assert np.array_equal(results[name], last_written(*arrays, node.attributes["axis"])), name


def last_written(x: Array, index: Array, updates: Array, axis: int) -> Array:
    """One element after the other."""
    result = x.copy()
    for place in np.ndindex(updates.shape):
        at = list(place)
        at[axis] = int(np.clip(index[place] if index.ndim > 1 else index[place[axis]], 0, x.shape[axis] - 1))
        result[tuple(at)] = updates[place]
    return result


@pytest.mark.parametrize("columns", [5, 70, 800])
def test_grouped_products(kernels: Lab, columns: int) -> None:
    """Groups of no row, of one and of many; rows behind all groups; ends that go back or beyond the rows."""
    x, w = input_("x", "f32", (SEQ, 33)), input_("w", "f32", (4, 33, columns))
    ends = input_("ends", "i32", (4,))
    nodes: dict[str, Node] = {"y": make("grouped_matmul", (x, w, ends))}
    rng = np.random.default_rng(columns)
    weights = rng.normal(size=(4, 33, columns)).astype(np.float32)
    for rows, stops in ((1, (0, 1, 1, 1)), (29, (1, 14, 14, 27)), (20, (5, 3, 9, 40)), (7, (-3, 0, 0, 0))):
        inputs = {"x": rng.normal(size=(rows, 33)).astype(np.float32), "w": weights}
        check(kernels, nodes, {**inputs, "ends": np.array(stops, np.int32)})
