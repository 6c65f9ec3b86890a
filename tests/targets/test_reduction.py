"""Reductions, softmax and scans against the NumPy references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_lab import Lab, check

from llmc.compiler.dims import symbol
from llmc.compiler.graph import DTYPES, Node
from llmc.compiler.ops import input_, make
from llmc.errors import LlmcError

Array = np.ndarray[Any, Any]
BATCH, SEQ = symbol("batch"), symbol("seq")
SIZES = (1, 2, 15, 16, 17, 33, 100)
SHAPES: dict[str, tuple[Any, ...]] = {
    "m": (BATCH, SEQ),
    "v": (SEQ,),
    "t": (BATCH, SEQ, 20),
    "q": (BATCH, 2, SEQ, 3),
}
AXES = {"m": ((0,), (1,), (0, 1)), "v": ((0,),), "t": ((0, 1), (1,), (2,)), "q": ((1, 3), (0, 2))}


def inputs_of(dtype: str, size: int) -> dict[str, Array]:
    rng = np.random.default_rng(size)
    shapes = {n: tuple({BATCH: 3, SEQ: size}.get(d, d) for d in s) for n, s in SHAPES.items()}
    if DTYPES[dtype].kind == "f":
        return {n: rng.normal(0, 2, s).astype(DTYPES[dtype]) for n, s in shapes.items()}
    return {
        n: rng.integers(0, 2 if dtype == "bool" else 100, s).astype(DTYPES[dtype]) for n, s in shapes.items()
    }


def reductions(dtype: str) -> dict[str, Node]:
    """Every reduction that `dtype` allows over every pattern of axes."""
    nodes = {}
    for op in ("sum", "mean", "max", "min", "any", "all"):
        for name, shape in SHAPES.items():
            for axes in AXES[name]:
                try:
                    node = make(op, (input_(name, dtype, shape),), axes=axes, keepdims=len(nodes) % 2 == 0)
                except LlmcError:
                    continue
                nodes[f"{op} {name} {axes}"] = node
    return nodes


@pytest.mark.parametrize("dtype", sorted(DTYPES.keys() - {"f64"}))
def test_reductions(kernels: Lab, dtype: str) -> None:
    nodes = reductions(dtype)
    assert nodes
    for size in SIZES:
        check(kernels, nodes, inputs_of(dtype, size))


@pytest.mark.parametrize("dtype", ["f32", "f16", "i32", "i64"])
def test_scans(kernels: Lab, dtype: str) -> None:
    nodes = {}
    for name, axis in (("m", 1), ("m", 0), ("t", 1), ("v", 0)):
        x = input_(name, dtype, SHAPES[name])
        nodes[f"cumsum {name} {axis}"] = make("cumsum", (x,), axis=axis)
        nodes[f"argmax {name} {axis}"] = make("argmax", (x,), axis=axis, keepdims=axis == 0)
    for size in SIZES:
        check(kernels, nodes, inputs_of(dtype, size))


def test_softmax(kernels: Lab) -> None:
    nodes = {
        f"{op} {name} {axis}": make(op, (input_(name, "f32", SHAPES[name]),), axis=axis)
        for op in ("softmax", "log_softmax")
        for name, axis in (("m", 1), ("m", 0), ("t", 1), ("t", 2), ("v", 0), ("q", 2))
    }
    for size in SIZES:
        check(kernels, nodes, inputs_of("f32", size))


def test_special_values(kernels: Lab) -> None:
    """NaN spreads, infinities and rows of -inf behave as in NumPy; the first of equal maxima wins."""
    m = input_("m", "f32", SHAPES["m"])
    ops = ("sum", "mean", "max", "min")
    nodes = {f"{op}{a}": make(op, (m,), axes=(a,)) for op in ops for a in (0, 1)}
    along = ("softmax", "log_softmax", "argmax")
    nodes |= {f"{op}{a}": make(op, (m,), axis=a) for op in along for a in (0, 1)}
    for size in (1, 16, 21):
        x = np.random.default_rng(size).normal(0, 40, (6, size)).astype(np.float32)
        x[0] = -np.inf
        x[1, 0] = -np.inf
        x[2, -1] = np.nan
        x[3, size // 2] = np.inf
        x[4] = 7.0
        check(kernels, nodes, {"m": x})


def test_products(kernels: Lab) -> None:
    """Of numbers around 1: others leave the range of floats."""
    m = input_("m", "f32", SHAPES["m"])
    nodes = {f"prod{a}": make("prod", (m,), axes=(a,)) for a in (0, 1)}
    for size in (1, 21, 40):
        check(
            kernels,
            nodes,
            {"m": np.random.default_rng(size).uniform(-1.5, 1.5, (6, size)).astype(np.float32)},
        )


def test_integers_wrap(kernels: Lab) -> None:
    m = input_("m", "i64", SHAPES["m"])
    nodes = {op: make(op, (m,), axes=(1,)) for op in ("sum", "prod", "max", "min")}
    limits = np.iinfo(np.int64)
    check(kernels, nodes, {"m": np.array([[limits.max, 1, 5], [limits.min, -1, limits.min]])})
