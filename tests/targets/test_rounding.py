"""Roundings and what is left of them, to the sign of zero: interpreter and kernels beside NumPy and PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from kernel_lab import Lab, run_all

from llmc.compiler import interpret
from llmc.compiler.frontends.composed_rounding import nearest_even, truncated, truncated_rest
from llmc.compiler.graph import DTYPES, Graph, Node, Source
from llmc.compiler.ops import input_, make

Array = np.ndarray[Any, Any]
_EDGES = [0.0, 0.3, 0.5, 0.7, 1.0, 1.5, 2.5, 3.5, 1023.5, 2048.0, 6e-8, 6e4, np.inf, np.nan]
_FLOATS = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "trunc": np.trunc,
    "sign": lambda x: np.where(np.isnan(x), 0, np.sign(x)),  # of NaN 0, as in PyTorch
    "neg": np.negative,
    "abs": np.abs,
}


class _Maker:
    """What converters write with."""

    source = Source()

    def op(self, name: str, *inputs: Node, **attributes: Any) -> Node:
        return make(name, inputs, **attributes)


_WRITTEN: dict[str, Callable[[Any, Node], Node]] = {"round": nearest_even, "trunc": truncated}


def _node(name: str, x: Node) -> Node:
    return _WRITTEN[name](_Maker(), x) if name in _WRITTEN else make(name, (x,))


def _want_same(found: Array, wanted: Array) -> None:
    """Equal, NaN for NaN, and zeros of the same sign."""
    np.testing.assert_array_equal(found, wanted)
    zero = wanted == 0
    np.testing.assert_array_equal(np.signbit(found[zero]), np.signbit(wanted[zero]))


def _values(dtype: str) -> Array:
    rng = np.random.default_rng(0)
    return np.array([*_EDGES, *(-v for v in _EDGES), *rng.normal(0, 2, 30)]).astype(DTYPES[dtype])


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_zeros_keep_their_sign(kernels: Lab, dtype: str) -> None:
    values = _values(dtype)
    x = input_("x", dtype, (len(values),))
    graph = Graph((x,), {name: _node(name, x) for name in _FLOATS})
    for made in (interpret.run(graph, {"x": values}), run_all(kernels, graph, {"x": values}, {})):
        for name, found in made.items():
            _want_same(found, _FLOATS[name](values).astype(values.dtype))


@pytest.mark.parametrize("dtype", ["i8", "u8", "i32", "i64"])
def test_integers_are_round(kernels: Lab, dtype: str) -> None:
    limits = np.iinfo(DTYPES[dtype])
    values = np.array([limits.min, limits.max, 0, 1, 7], DTYPES[dtype])
    x = input_("x", dtype, (len(values),))
    graph = Graph((x,), {"sign": make("sign", (x,)), "abs": make("abs", (x,))})
    assert nearest_even(_Maker(), x) is x
    for made in (interpret.run(graph, {"x": values}), run_all(kernels, graph, {"x": values}, {})):
        _want_same(made["sign"], np.sign(values))
        _want_same(made["abs"], np.abs(values))


def test_what_is_left_has_the_sign_of_the_dividend(kernels: Lab) -> None:
    """fmod, every pair: of -0 it is -0."""
    values = _values("f32")
    a, b = np.repeat(values, len(values)), np.tile(values, len(values))
    x, y = (input_(name, "f32", (len(a),)) for name in "ab")
    graph = Graph((x, y), {"rest": truncated_rest(_Maker(), x, y)})
    with np.errstate(all="ignore"):
        wanted = np.fmod(a, b)
    for made in (interpret.run(graph, {"a": a, "b": b}), run_all(kernels, graph, {"a": a, "b": b}, {})):
        _want_same(made["rest"], wanted)


def test_as_pytorch_rounds() -> None:
    values = torch.from_numpy(_values("f32"))
    x = input_("x", "f32", (len(values),))
    graph = Graph((x,), {name: _node(name, x) for name in _FLOATS})
    made = interpret.run(graph, {"x": values.numpy()})
    for name in _FLOATS:
        _want_same(made[name], getattr(torch, name)(values).numpy())
