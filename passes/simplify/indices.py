"""Index arithmetic that is known at compile time.

An integer value is affine when element (i0, i1, ...) is `start + i0*step0 + i1*step1 + ...`. Position ids
and the index tensors of attention masks are; then reading by them is a slice or a reshape, and comparing
them may have one answer everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy

from llmc.compiler.dims import Dim, dim, product
from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops import constant, make
from llmc.compiler.rewrite import Context
from llmc.passes.match import reshaped, resized

Names = frozenset[str]  # of dims that may be 0

_INTEGERS = ("i32", "i64")
_DEPTH = 24  # of the expression; real ones are below 10


@dataclass(frozen=True)
class Affine:
    """Value at index (i0, i1, ...): `start + sum(steps[a] * i_a)`."""

    start: Dim
    steps: tuple[Dim, ...]

    def plus(self, other: Affine, sign: int = 1) -> Affine:
        """The sum (or difference) of two with as many axes."""
        steps = tuple(dim(a + sign * b) for a, b in zip(self.steps, other.steps, strict=True))
        return Affine(dim(self.start + sign * other.start), steps)

    def times(self, factor: Dim) -> Affine:
        return Affine(dim(self.start * factor), tuple(dim(s * factor) for s in self.steps))

    @property
    def fixed(self) -> bool:
        """Whether every element is `start`."""
        return all(s == 0 for s in self.steps)


def affine(node: Node, depth: int = _DEPTH) -> Affine | None:
    """`node` as an affine function of its index, if it is one that is known here."""
    if node.dtype not in _INTEGERS or not depth:
        return None
    match node:
        case Node("constant", (), {"value": weight}):
            return _of_array(weight)
        case Node("iota", (), {"start": start, "step": step}):
            return Affine(dim(start), (step,))
        case Node("dim", (), {"value": value}):
            return Affine(dim(value), ())
        case Node("full", (), {"value": value}):
            return Affine(int(value), (0,) * node.type.rank)
        case Node("add" | "sub" | "mul" as op, (a, b)):
            return _of_arithmetic(node, op, affine(a, depth - 1), affine(b, depth - 1))
        case Node("cast" | "expand" | "reshape" | "transpose" | "slice" | "embedding", (x, *_)):
            inner = affine(x, depth - 1)
            return inner and _of_move(node, inner, depth)


def _of_array(weight: Weight) -> Affine | None:
    """A constant that counts along at most one axis."""
    array = weight.array
    long = [a for a, n in enumerate(array.shape) if n > 1]
    if len(long) > 1 or array.size == 0:
        return None
    flat = array.reshape(-1)
    step = int(flat[1]) - int(flat[0]) if flat.size > 1 else 0
    if not np.array_equal(flat, int(flat[0]) + step * np.arange(flat.size)):
        return None
    return Affine(int(flat[0]), tuple(step if a in long else 0 for a in range(array.ndim)))


def _of_arithmetic(node: Node, op: str, a: Affine | None, b: Affine | None) -> Affine | None:
    if a is None or b is None:
        return None
    rank = node.type.rank
    a, b = (Affine(x.start, (0,) * (rank - len(x.steps)) + x.steps) for x in (a, b))
    if op != "mul":
        return a.plus(b, 1 if op == "add" else -1)
    if b.fixed:
        return a.times(b.start)
    return b.times(a.start) if a.fixed else None


def _of_move(node: Node, inner: Affine, depth: int) -> Affine | None:
    """The elements of `inner` at other places."""
    x = node.inputs[0]
    match node:
        case Node("cast"):
            return inner if x.dtype in _INTEGERS else None
        case Node("expand"):
            added = (0,) * (node.type.rank - len(inner.steps))
            return Affine(inner.start, added + inner.steps)
        case Node("transpose", _, {"perm": perm}):
            return Affine(inner.start, tuple(inner.steps[p] for p in perm))
        case Node("slice", _, {"axis": axis, "start": start, "step": step}):
            steps = tuple(dim(s * step) if a == axis else s for a, s in enumerate(inner.steps))
            return Affine(dim(inner.start + inner.steps[axis] * start), steps)
        case Node("reshape"):
            return _of_reshape(x.shape, node.shape, inner)
        case Node("embedding", (_, index)) if len(inner.steps) == 1:
            place = affine(index, depth - 1)
            return place and place.times(inner.steps[0]).plus(Affine(inner.start, (0,) * index.type.rank))


def _of_reshape(old: tuple[Dim, ...], new: tuple[Dim, ...], inner: Affine) -> Affine | None:
    """Axes of size 1 come and go; nothing else is followed, unless all elements are equal."""
    if inner.fixed:
        return Affine(inner.start, (0,) * len(new))
    kept = [(d, s) for d, s in zip(old, inner.steps, strict=True) if d != 1]
    if [d for d, _ in kept] != [d for d in new if d != 1]:
        return None
    steps = iter([s for _, s in kept])
    return Affine(inner.start, tuple(0 if d == 1 else next(steps) for d in new))


def _least(value: Affine, shape: tuple[Dim, ...], zero: Names) -> Dim:
    """The smallest element, if the signs of the steps are known; else a symbol of unknown sign."""
    least = value.start
    for step, length in zip(value.steps, shape, strict=True):
        if _above(step, zero).is_nonnegative:
            continue
        if not _above(step, zero).is_negative:
            return sympy.Dummy()
        least = least + step * (length - 1)
    return least


def _above(value: Dim, zero: Names) -> Any:
    """`value` in what dims have above their least size, 0 for those of `zero` and 1 for all others."""
    expr = sympy.sympify(value)
    from_one = {s: s + 1 for s in expr.free_symbols if s.is_nonnegative and s.name not in zero}
    return sympy.expand(expr.subs(from_one, simultaneous=True))


def _always(value: Affine, shape: tuple[Dim, ...], least: int, zero: Names) -> bool:
    """Whether every element is at least `least`."""
    return bool(_above(_least(value, shape, zero) - least, zero).is_nonnegative)


def decide_comparison(node: Node, context: Context) -> Node | None:
    """a >= b, ... -> True or False, where index arithmetic knows the answer"""
    match node:
        case Node("ge" | "gt" | "le" | "lt" | "eq" | "ne" as op, (a, b)) if a.dtype in _INTEGERS:
            x, y = affine(a), affine(b)
            difference = _of_arithmetic(node, "sub", x, y)
            if difference is None:
                return None
            answer = _answer(op, difference, node.shape, context.zero)
            return None if answer is None else resized(constant(np.bool_(answer), source=node.source), node)


def _answer(op: str, value: Affine, shape: tuple[Dim, ...], zero: Names) -> bool | None:
    """The truth of `value op 0` if it is the same at every index."""
    back = value.times(-1)

    def at_least(x: Affine, least: int) -> bool:
        return _always(x, shape, least, zero)

    facts = {
        "ge": lambda: (at_least(value, 0), at_least(back, 1)),
        "gt": lambda: (at_least(value, 1), at_least(back, 0)),
        "le": lambda: (at_least(back, 0), at_least(value, 1)),
        "lt": lambda: (at_least(back, 1), at_least(value, 0)),
        "eq": lambda: (_is_zero(value), at_least(value, 1) or at_least(back, 1)),
        "ne": lambda: (at_least(value, 1) or at_least(back, 1), _is_zero(value)),
    }
    true, false = facts[op]()
    return True if true else False if false else None


def _is_zero(value: Affine) -> bool:
    return value.fixed and value.start == 0


def read_in_order(node: Node) -> Node | None:
    """embedding(reshape(x), 0 1 2 ...) -> reshape(x), where the index counts all rows in order"""
    match node:
        case Node("embedding", (table, index)) if table.op != "constant":
            place = affine(index)
            if place and place.start == 0 and _counts_all(place.steps, index.shape, table.shape[0]):
                return reshaped(table, node.shape)


def _counts_all(steps: tuple[Dim, ...], shape: tuple[Dim, ...], rows: Dim) -> bool:
    if product(shape) != rows:
        return False
    stride: Dim = 1
    for step, length in zip(reversed(steps), reversed(shape), strict=True):
        if length != 1 and step != stride:
            return False
        stride = dim(stride * length)
    return True


def read_range(node: Node, context: Context) -> Node | None:
    """embedding(x, start, start+step, ...) -> x[start::step], except from tables of float weights

    Those stay: `embed_norm` reads them by index.
    """
    match node:
        case Node("embedding", (table, index)) if table.op != "constant" or table.dtype in _INTEGERS:
            place = affine(index)
            moving = [] if place is None else [a for a, n in enumerate(index.shape) if n != 1]
            if place is None or len(moving) > 1:
                return None
            length, step = (index.shape[moving[0]], place.steps[moving[0]]) if moving else (1, 1)
            if not isinstance(step, int) or step <= 0:
                return None
            if _inside(place.start, step, length, table.shape[0], context.zero):
                return _sliced(node, table, (place.start, step, length))


def _inside(start: Dim, step: int, length: Dim, rows: Dim, zero: Names) -> bool:
    """Whether the range lies inside the rows at all sizes; an embedding clamps, a slice does not."""
    last = start + step * (length - 1)
    return all(_always(Affine(dim(value), ()), (), 0, zero) for value in (start, rows - 1 - last))


def _sliced(node: Node, table: Node, span: tuple[Dim, int, Dim]) -> Node:
    start, step, length = span
    stop = dim(start + step * (length - 1) + 1)
    rows = make("slice", (table,), node.source, axis=0, start=start, stop=stop, step=step)
    return reshaped(rows, node.shape)


def plain_iota(node: Node) -> Node | None:
    """an integer expression that counts along its one long axis -> reshape(iota)"""
    if node.op not in ("add", "sub", "mul", "cast", "slice", "embedding") or node.dtype not in _INTEGERS:
        return None
    value = affine(node)
    long = [a for a, n in enumerate(node.shape) if n != 1]
    if value is None or len(long) != 1 or not isinstance(value.steps[long[0]], int):
        return None
    if value.fixed and isinstance(value.start, int):
        return None
    made = {"length": node.shape[long[0]], "start": value.start, "step": value.steps[long[0]]}
    return reshaped(make("iota", (), node.source, dtype=node.dtype, **made), node.shape)


RULES = (decide_comparison, read_in_order, read_range, plain_iota)
