"""Kernels that move elements: exactly the references' values at every size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_lab import Lab, check

from llmc.compiler.dims import symbol
from llmc.compiler.graph import DTYPES, Node
from llmc.compiler.ops import input_, make
from llmc.targets.cpu.lower import LOWERINGS

Array = np.ndarray[Any, Any]
BATCH, SEQ = symbol("batch"), symbol("seq")
SIZES = (1, 2, 16, 33)


def values(dtype: str, *shape: int) -> Array:
    return np.random.default_rng(len(shape)).integers(0, 100, shape).astype(DTYPES[dtype])


def copies(dtype: str) -> dict[str, Node]:
    """Nodes that walk `x[batch, seq, 4, 20]` or `v[batch, seq]` or `s[]` with other strides."""
    x, v = input_("x", dtype, (BATCH, SEQ, 4, 20)), input_("v", dtype, (BATCH, SEQ))
    s, column = input_("s", dtype, ()), input_("c", dtype, (SEQ, 1))
    nodes = {
        f"transpose{''.join(map(str, perm))}": make("transpose", (x,), perm=perm)
        for perm in ((0, 2, 1, 3), (3, 2, 1, 0), (0, 2, 3, 1), (0, 1, 2, 3), (1, 0, 2, 3))
    }
    nodes |= {
        "matrix": make("transpose", (v,), perm=(1, 0)),
        "expand": make("expand", (v,), shape=(3, BATCH, SEQ)),
        "expand scalar": make("expand", (s,), shape=(BATCH, SEQ)),
        "expand column": make("expand", (column,), shape=(BATCH, SEQ, 33)),
        "part": make("slice", (x,), axis=3, start=3, stop=17),
        "steps": make("slice", (x,), axis=3, start=1, stop=20, step=3),
        "every second": make("slice", (x,), axis=1, start=0, stop=SEQ, step=2),
        "last": make("slice", (x,), axis=1, start=SEQ - 1, stop=SEQ),
        "rows": make("slice", (v,), axis=0, start=1, stop=BATCH),
    }
    return nodes


def joins(dtype: str) -> dict[str, Node]:
    """Concatenations, paddings and constants."""
    x, v = input_("x", dtype, (BATCH, SEQ, 4, 20)), input_("v", dtype, (BATCH, SEQ))
    nodes = {f"concat{axis}": make("concat", (x, x), axis=axis) for axis in range(4)}
    nodes |= {
        "pad rows": make("pad", (x,), before=(0, 2, 0, 0), after=(1, 0, 0, 0), value=1),
        "pad columns": make("pad", (x,), before=(0, 0, 0, 3), after=(0, 0, 0, 19), value=0),
        "pad nothing": make("pad", (v,), before=(0, 0), after=(0, 0)),
        "pad both": make("pad", (v,), before=(1, 17), after=(2, 1), value=1),
        "full": make("full", (), shape=(BATCH, SEQ * 13), value=1, dtype=dtype),
    }
    if dtype not in ("bool", "f64"):
        nodes["iota"] = make("iota", (), length=SEQ * 11, start=BATCH, step=3, dtype=dtype)
    return nodes


@pytest.mark.parametrize("make_nodes", [copies, joins])
@pytest.mark.parametrize("dtype", ["f32", "i64", "bool", "f16", "f64"])
def test_moves(kernels: Lab, make_nodes: Any, dtype: str) -> None:
    for size in SIZES:
        inputs = {"x": values(dtype, 3, size, 4, 20), "v": values(dtype, 3, size)}
        inputs |= {"s": values(dtype), "c": values(dtype, size, 1)}
        nodes = make_nodes(dtype)
        nodes["anchor"] = make("concat", (input_("v", dtype, (BATCH, SEQ)),), axis=0)
        check(kernels, nodes, inputs)


@pytest.mark.parametrize("dtype", ["f32", "i32", "bool"])
@pytest.mark.parametrize("index_dtype", ["i32", "i64"])
def test_indices_are_clamped(kernels: Lab, dtype: str, index_dtype: str) -> None:
    limits = np.iinfo(DTYPES[index_dtype])
    table, line = input_("table", dtype, (30, 33)), input_("line", dtype, (30,))
    x, column = input_("x", dtype, (BATCH, 29)), input_("column", dtype, (31, SEQ, 3))
    index = input_("index", index_dtype, (BATCH, SEQ))
    deep = input_("deep", index_dtype, (BATCH, SEQ, 3))
    nodes = {
        "rows": make("embedding", (table, index)),
        "elements": make("embedding", (line, index)),
        "gather last": make("gather", (x, index), axis=1),
        "gather first": make("gather", (column, deep), axis=0),
    }
    for size in SIZES:
        rng = np.random.default_rng(size)
        indices = rng.integers(-3, 40, (3, size, 3)).astype(DTYPES[index_dtype])
        indices[0, 0, 0], indices[2, -1, 0] = limits.max, limits.min
        inputs = {"table": values(dtype, 30, 33), "line": values(dtype, 30), "x": values(dtype, 3, 29)}
        inputs |= {"column": values(dtype, 31, size, 3), "index": indices[:, :, 0], "deep": indices}
        check(kernels, nodes, inputs)


def test_size_of_a_dim(kernels: Lab) -> None:
    v = input_("v", "f32", (BATCH, SEQ))
    nodes = {"dim": make("dim", (), value=2 * SEQ + BATCH), "v": make("transpose", (v,), perm=(1, 0))}
    check(kernels, nodes, {"v": values("f32", 2, 5)})


def test_long_rows_are_cut(kernels: Lab) -> None:
    x, row = input_("x", "f32", (40, 3000)), input_("row", "f32", (1, 3000))
    nodes = {
        "transpose": make("transpose", (x,), perm=(1, 0)),
        "expand": make("expand", (row,), shape=(3, 3000)),
        "part": make("slice", (x,), axis=1, start=5, stop=2900),
        "full": make("full", (), shape=(3000,), value=float("-inf"), dtype="f32"),
        "iota": make("iota", (), length=5000),
    }
    check(kernels, nodes, {"x": values("f32", 40, 3000), "row": values("f32", 1, 3000)})


def test_layers_share_kernels(kernels: Lab) -> None:
    """Shapes and dim names are no part of a kernel's key."""
    a, b = input_("a", "f32", (BATCH, SEQ, 4, 20)), input_("b", "f32", (2, symbol("other"), 12, 64))
    calls = [kernels.call_of(make("transpose", (x,), perm=(0, 2, 1, 3))) for x in (a, b)]
    assert calls[0].kernel == calls[1].kernel
    assert calls[0].kernel.symbol == calls[1].kernel.symbol


def test_bytes_are_those_that_are_moved() -> None:
    """Of a table, or of what a slice is cut out of, only what the result holds."""
    table, index = input_("table", "f32", (1000, 8)), input_("index", "i64", (3,))
    line = input_("line", "i64", (3, 8))
    cases = {
        "rows": (make("embedding", (table, index)), 2 * 3 * 8 * 4 + 3 * 8),
        "elements": (make("gather", (table, line), axis=0), 2 * 3 * 8 * 4 + 3 * 8 * 8),
        "a part": (make("slice", (table,), axis=0, start=5, stop=8), 2 * 3 * 8 * 4),
        "few columns": (make("slice", (table,), axis=1, start=0, stop=2), 2 * 1000 * 2 * 4),
        "all": (make("transpose", (table,), perm=(1, 0)), 2 * 1000 * 8 * 4),
        "one row for many": (make("expand", (line,), shape=(4, 3, 8)), 5 * 3 * 8 * 8),
    }
    for name, (node, bytes_) in cases.items():
        assert LOWERINGS[node.op](node).bytes == bytes_, name
