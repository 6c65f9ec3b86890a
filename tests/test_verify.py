"""The verifier accepts what the builders make and catches each planted breach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node, Source, TensorType, Weight
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.verify import verify
from llmc.errors import LlmcError

BATCH, SEQ, TOKENS = symbol("batch"), symbol("seq"), symbol("tokens")
HERE = Source("encoder.0", "model.py:7")
DIMS = {"batch": (1, 8), "seq": (1, 64), "tokens": (1, 512)}


def x(name: str = "x", **attributes: Any) -> Node:
    return input_(name, "f32", (BATCH, SEQ), **attributes)


def mask(name: str = "m", **attributes: Any) -> Node:
    return input_(name, "i64", (BATCH, SEQ), **attributes)


def packed(of: Node, tokens: Any = TOKENS) -> Node:
    return make("pack_index", (of,), tokens=tokens)


def one(node: Node, **dims: tuple[Any, Any]) -> Graph:
    """A graph around one node and its inputs."""
    leaves = tuple(n for n in Graph((), {"y": node}).nodes if n.op == "input")
    return Graph(leaves, {"y": node}, {**DIMS, **dims})


def raw(
    op: str, inputs: tuple[Node, ...], attributes: dict[str, Any], kind: TensorType | None = None
) -> Node:
    """A node the builders would refuse."""
    return Node(op, inputs, attributes, kind or inputs[0].type, HERE)


def cyclic() -> Graph:
    first = make("neg", (x(),), HERE)
    second = make("neg", (first,), HERE)
    object.__setattr__(first, "inputs", (second,))
    return Graph((), {"y": second}, DIMS)


def unlisted() -> Graph:
    return Graph((), {"y": make("neg", (x(),), HERE)}, DIMS)


def twins() -> Graph:
    a, b = x(), x()
    return Graph((a, b), {"y": make("add", (a, b))}, DIMS)


def wrong_constant() -> Graph:
    return one(raw("constant", (), {"value": Weight(np.ones(2, np.float32))}, TensorType("f32", (3,))))


def dim_of_optional_input() -> Graph:
    return one(make("neg", (x(default=0),)))


def numpy_attribute() -> Graph:
    return one(raw("softmax", (x(),), {"axis": np.int64(1)}))


BREACHES: list[tuple[Callable[[], Graph], str]] = [
    (lambda: Graph((), {}, DIMS), "no outputs"),
    (lambda: Graph((), {"": x()}, DIMS), "non-empty string"),
    (lambda: Graph((), {"y": "x"}, DIMS), "not a node"),  # type: ignore[dict-item] # the breach
    (cyclic, "reads its own result"),
    (lambda: one(raw("conv", (x(),), {})), "no op 'conv'"),
    (lambda: one(raw("softmax", (x(),), {})), "unknown attributes: axis"),
    (lambda: one(raw("neg", (x(),), {"axis": 1})), "unknown attributes: axis"),
    (lambda: one(raw("sum", (x(),), {"axes": [1], "keepdims": True})), "axes has no allowed value"),
    (numpy_attribute, "axis has no allowed value"),
    (wrong_constant, "array differs from its type"),
    (lambda: one(raw("neg", (x(),), {}, TensorType("f32", (SEQ, BATCH)))), "the op gives f32[batch, seq]"),
    (lambda: one(raw("not", (x(),), {})), "dtype f32"),
    (lambda: one(raw("add", (x(),), {})), "wrong number of inputs"),
    (lambda: Graph((make("neg", (x(),), HERE),), {"y": x()}, DIMS), "not an `input` node"),
    (twins, "two inputs are called 'x'"),
    (unlisted, "not listed"),
    (lambda: one(x(default=5, low=0, high=1)), "default 5 is not within 0..1"),
    (lambda: one(make("neg", (input_("x", "f32", ("other",)),))), "dim 'other' has no bounds"),
    (lambda: one(input_("x", "f32", (sympy.Symbol("seq"),))), "not made by `dims.symbol`"),
    (lambda: one(x(), seq=(0, 4)), "bounds 0..4"),
    (lambda: one(x(), seq=(5, 4)), "bounds 5..4"),
    (lambda: one(x(), seq=(1.0, 4)), "bounds 1.0..4"),
    (lambda: one(x(), nan=(1, 4)), "'nan' cannot be the name"),
    (lambda: one(make("iota", (), length=SEQ)), "no required input has an axis of size 'seq'"),
    (dim_of_optional_input, "no required input"),
    (lambda: one(packed(make("neg", (mask(),)))), "is not an input"),
    (lambda: one(packed(mask(default=0))), "or 0 by default"),
    (lambda: one(make("add", (packed(mask()), packed(mask("n"))))), "counted from two masks"),
    (lambda: one(packed(mask(), SEQ)), "and the size of an input"),
]


@pytest.mark.parametrize(("build", "message"), BREACHES, ids=[m for _, m in BREACHES])
def test_planted_breach_is_caught(build: Callable[[], Graph], message: str):
    graph = build()
    with pytest.raises(LlmcError) as caught:
        verify(graph)
    assert message in str(caught.value)


def test_inputs_that_nothing_reads_may_be_empty():
    """Their dims may be 0 if nothing else has them: not the shape of an output, not the value of a node."""
    idle, size = input_("idle", "f32", ("rows",)), make("dim", (), HERE, value=symbol("rows"))
    bounds = {**DIMS, "rows": (0, 4)}
    verify(Graph((x(), idle), {"y": constant(np.ones(3))}, bounds))
    for inputs, y in (
        ((x(), idle), size),
        ((x(), idle), idle),
        ((idle, other := input_("o", "f32", ("rows",))), other),
    ):
        with pytest.raises(LlmcError, match=r"bounds 0\.\.4"):
            verify(Graph(inputs, {"y": y}, bounds))


def test_inputs_that_are_joined_with_more_may_be_empty():
    """As a past is: not where it is computed with first, and not another input of the same size."""
    past, new = input_("past", "f32", (BATCH, symbol("rows"))), x()
    bounds = {**DIMS, "rows": (0, 4)}

    def joined(first):
        return make("concat", (first, new), HERE, axis=1)

    moved = make("transpose", (make("transpose", (past,), HERE, perm=(1, 0)),), HERE, perm=(1, 0))
    for fine in (joined(past), joined(moved)):
        verify(Graph((past, new), {"y": fine}, bounds))
    other = input_("other", "f32", (BATCH, symbol("rows")))
    for inputs, y in (
        ((past, new), joined(make("exp", (past,), HERE))),
        ((past, new), make("neg", (past,), HERE)),
        ((past, other, new), make("add", (joined(past), joined(other)), HERE)),
    ):
        graph = Graph(
            inputs, {"y": y, "z": make("neg", (other,), HERE)} if other in inputs else {"y": y}, bounds
        )
        with pytest.raises(LlmcError, match=r"bounds 0\.\.4"):
            verify(graph)


def test_errors_name_the_source():
    with pytest.raises(LlmcError) as caught:
        verify(one(raw("softmax", (x(),), {})))
    assert "encoder.0 (model.py:7)" in str(caught.value.at)
    with pytest.raises(LlmcError) as caught:
        verify(one(raw("not", (x(),), {})))
    assert "encoder.0 (model.py:7)" in str(caught.value.at)


def test_random_graphs_are_valid(random_graph):
    for seed in range(40):
        verify(random_graph(seed)[0])


def test_deep_graphs_are_verified():
    node = start = x()
    for _ in range(10_000):
        node = make("neg", (node,))
    verify(Graph((start,), {"y": node}, DIMS))


def test_equal_dims_written_differently_are_one_type():
    node = make("reshape", (x(),), shape=(BATCH * SEQ,))
    verify(one(raw("neg", (node,), {}, TensorType("f32", (SEQ * BATCH,)))))


def test_constants_need_no_input():
    verify(Graph((), {"y": constant(np.ones(3))}))
