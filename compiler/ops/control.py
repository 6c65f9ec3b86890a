"""Loops and branches: nodes with several results whose attributes are graphs, and the op that picks a result.

A body is a graph whose inputs stand for what the node hands to it, in order; it sees nothing else of the graph around
it but the names of its dims. `loop` is the scan of JAX and ONNX: slices along axis 0 in, slices along axis 0 out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import sympy

from llmc.compiler.dims import evaluate
from llmc.compiler.graph import DTYPES, Graph, Results, TensorType
from llmc.compiler.ops.declare import REQUIRED, op
from llmc.compiler.ops.rules import Array, same_dim, same_shape, want_int
from llmc.errors import LlmcError

Run = Callable[
    ..., tuple[Array, ...]
]  # (body, operands, sizes) -> its outputs: the interpreter, which lends itself


def _result_reference(values: tuple[Array, ...], *, index: int) -> Array:
    return values[index]


@op("result", _result_reference, index=REQUIRED)
def _result(node: TensorType, *, index: int) -> TensorType:
    if not isinstance(node, Results):
        raise LlmcError("the input is a tensor, not a node with several results")
    if want_int(index, "index", 0) >= len(node.types):
        raise LlmcError(f"there is no result {index}", hint=f"there are {len(node.types)}, counted from 0")
    return node.types[index]


def _loop_reference(
    *operands: Array,
    body: Graph,
    count: Any,
    scanned: int,
    carried: int,
    reverse: bool,
    sizes: Mapping[str, int],
    run: Run,
) -> tuple[Array, ...]:
    trips = evaluate(count, sizes)
    slices, state, captured = (
        operands[:scanned],
        operands[scanned : scanned + carried],
        operands[scanned + carried :],
    )
    rest = tuple(body.outputs.values())[carried:]
    stacked = [np.zeros((trips, *(evaluate(d, sizes) for d in n.shape)), DTYPES[n.dtype]) for n in rest]
    for trip in range(trips):
        at = trips - 1 - trip if reverse else trip
        made = run(body, (*(s[at] for s in slices), *state, *captured), sizes)
        state = made[:carried]
        for whole, part in zip(stacked, made[carried:], strict=True):
            whole[at] = part
    return (*state, *stacked)


@op(
    "loop",
    _loop_reference,
    traits={"symbolic": True, "bodies": True},
    body=REQUIRED,
    count=REQUIRED,
    scanned=0,
    carried=0,
    reverse=False,
)
def _loop(
    *operands: TensorType, body: Any, count: Any, scanned: int, carried: int, reverse: bool
) -> TensorType:
    _want_bound(count)
    want_int(scanned, "scanned", 0)
    want_int(carried, "carried", 0)
    if not isinstance(reverse, bool):
        raise LlmcError(f"reverse is {reverse!r}, not True or False")
    given, made = _signature(body, "the body")
    if scanned + carried > len(operands):
        raise LlmcError(
            f"{scanned} scanned and {carried} carried operands are announced, given are {len(operands)}"
        )
    slices = tuple(_slice(operand, count, i) for i, operand in enumerate(operands[:scanned]))
    _want_operands((*slices, *operands[scanned:]), given, "the body")
    state = operands[scanned : scanned + carried]
    if len(made) < carried:
        raise LlmcError(f"the body has {len(made)} outputs, carried are {carried} values")
    for i, (before, after) in enumerate(zip(state, made, strict=False)):
        if not _same(before, after):
            raise LlmcError(f"carried value {i} is {before} before an iteration and {after} after it")
    return Results((*state, *(TensorType(t.dtype, (count, *t.shape)) for t in made[carried:])))


def _want_bound(count: Any) -> None:
    """Refuse a loop whose number of iterations is not known before it begins."""
    known = isinstance(count, int | sympy.Expr) and not isinstance(count, bool)
    if not known or (isinstance(count, int) and count < 0):
        raise LlmcError(
            f"a loop without bound: count is {count!r}",
            hint="count is how often the body runs: an integer, or an expression of dims such as seq",
        )


def _slice(operand: TensorType, count: Any, number: int) -> TensorType:
    """What one iteration sees of a scanned operand."""
    if not operand.rank or not same_dim(operand.shape[0], count):
        raise LlmcError(f"scanned operand {number} is {operand}: its axis 0 has not the size {count}")
    return TensorType(operand.dtype, operand.shape[1:])


def _signature(body: Any, what: str) -> tuple[list[TensorType], list[TensorType]]:
    if not isinstance(body, Graph):
        raise LlmcError(f"{what} is {body!r}, not a graph")
    return [n.type for n in body.inputs], [n.type for n in body.outputs.values()]


def _same(a: TensorType, b: TensorType) -> bool:
    return a.dtype == b.dtype and same_shape(a.shape, b.shape)


def _want_operands(operands: Iterable[TensorType], inputs: list[TensorType], what: str) -> None:
    operands = list(operands)
    if len(operands) != len(inputs):
        raise LlmcError(f"{what} has {len(inputs)} inputs, it is given {len(operands)}")
    for i, (operand, wanted) in enumerate(zip(operands, inputs, strict=True)):
        if not _same(operand, wanted):
            raise LlmcError(f"{what} is given {operand} for its input {i}, which is {wanted}")


def _branch_reference(
    condition: Array, *operands: Array, then: Graph, otherwise: Graph, sizes: Mapping[str, int], run: Run
) -> tuple[Array, ...]:
    return run(then if condition else otherwise, operands, sizes)


@op("branch", _branch_reference, traits={"symbolic": True, "bodies": True}, then=REQUIRED, otherwise=REQUIRED)
def _branch(condition: TensorType, *operands: TensorType, then: Any, otherwise: Any) -> TensorType:
    if condition.dtype != "bool" or condition.rank:
        raise LlmcError(f"the condition is {condition}, not bool[]")
    results = []
    for body, what in ((then, "then"), (otherwise, "otherwise")):
        given, made = _signature(body, what)
        _want_operands(operands, given, what)
        results.append(made)
    if len(results[0]) != len(results[1]):
        raise LlmcError(f"then has {len(results[0])} outputs, otherwise {len(results[1])}")
    for i, (a, b) in enumerate(zip(*results, strict=True)):
        if not _same(a, b):
            raise LlmcError(f"result {i} is {a} of then and {b} of otherwise")
    return Results(results[0])
