"""Identities of element-wise ops that hold bit for bit, for floats too (NaN payloads aside).

`x + 0.0 -> x` is not among them: it turns -0.0 into 0.0. Adding -0.0 and subtracting 0.0 change nothing.
"""

from __future__ import annotations

import numpy as np

from llmc.compiler.graph import DTYPES, Node, Weight
from llmc.compiler.ops import constant, make
from llmc.passes.match import is_scalar, reshaped, resized, scalar, weight

_UNIFORM_LIMIT = 1 << 20  # elements: longer constants are not searched


def drop_neutral(node: Node) -> Node | None:
    """x*1, x/1, x**1, x-0, x+(-0.0), integer x+0 -> x"""
    match node:
        case Node("mul" | "div" | "pow", (x, one)) if is_scalar(one, 1):
            return resized(x, node)
        case Node("mul", (one, x)) if is_scalar(one, 1):
            return resized(x, node)
        case Node("add", (x, zero)) if _is_neutral_zero(zero):
            return resized(x, node)
        case Node("add", (zero, x)) if _is_neutral_zero(zero):
            return resized(x, node)
        case Node("sub", (x, zero)) if is_scalar(zero, 0) and not np.signbit(scalar(zero)):
            return resized(x, node)


def _is_neutral_zero(node: Node) -> bool:
    return is_scalar(node, 0) and (node.dtype not in ("f32", "f64") or bool(np.signbit(scalar(node))))


def drop_double(node: Node) -> Node | None:
    """not(not x), neg(neg x) -> x"""
    match node:
        case Node("not", (Node("not", (x,)),)) | Node("neg", (Node("neg", (x,)),)):
            return x


def drop_same(node: Node) -> Node | None:
    """and(x, x), or(x, x), minimum(x, x), maximum(x, x), where(c, x, x) -> x"""
    match node:
        case Node("and" | "or" | "minimum" | "maximum", (x, y)) if x is y:
            return x
        case Node("where", (_, x, y)) if x is y:
            return resized(x, node)


def drop_logic(node: Node) -> Node | None:
    """and(x, True), or(x, False) -> x; and(x, False) -> False; or(x, True) -> True"""
    match node:
        case Node("and" | "or" as op, (x, y)):
            for value, other in ((scalar(x), y), (scalar(y), x)):
                if value is not None:
                    neutral = bool(value) == (op == "and")
                    return resized(other if neutral else constant(np.bool_(value), source=node.source), node)


def choose_where(node: Node) -> Node | None:
    """where(True, a, b) -> a; where(False, a, b) -> b"""
    match node:
        case Node("where", (condition, a, b)) if scalar(condition) is not None:
            return resized(a if scalar(condition) else b, node)


def where_of_not(node: Node) -> Node | None:
    """where(not c, a, b) -> where(c, b, a)"""
    match node:
        case Node("where", (Node("not", (c,)), a, b)):
            return make("where", (c, b, a), node.source)
        case Node("where", (Node("reshape", (Node("not", (c,)),)) as view, a, b)):
            return make("where", (reshaped(c, view.shape), b, a), node.source)


def drop_cast(node: Node) -> Node | None:
    """cast(x) to its own dtype -> x"""
    match node:
        case Node("cast", (x,)) if x.dtype == node.dtype:
            return x


_HOLDS = {  # dtype -> the dtypes whose every value it holds
    "f32": {"bool", "i8", "u8", "f16"},
    "f16": {"bool", "i8", "u8"},
    "i8": {"bool"},
    "u8": {"bool"},
    "i32": {"bool", "i8", "u8"},
    "i64": {"bool", "i8", "u8", "i32"},
    "bool": set(),
    "f64": {"bool", "i8", "u8", "i32", "f32"},
}


def cast_of_cast(node: Node) -> Node | None:
    """cast(cast(x)) -> cast(x) when the inner cast loses nothing"""
    match node:
        case Node("cast", (Node("cast", (x,)) as inner,)) if x.dtype in _HOLDS[inner.dtype]:
            return make("cast", (x,), node.source, dtype=node.dtype)


def compare_flag(node: Node) -> Node | None:
    """ne(cast(bool x), 0), eq(cast(bool x), 1) -> x; ne(cast(bool x), 1), eq(cast(bool x), 0) -> not x"""
    match node:
        case Node("eq" | "ne" as op, (Node("cast", (x,)), n)) if x.dtype == "bool" and is_scalar(n, 0, 1):
            same = (op == "eq") == bool(scalar(n))
            return resized(x if same else make("not", (x,), node.source), node)


def invert_flag(node: Node) -> Node | None:
    """1 - cast(bool x) -> cast(not x)"""
    match node:
        case Node("sub", (one, Node("cast", (x,)))) if x.dtype == "bool" and is_scalar(one, 1):
            return resized(
                make("cast", (make("not", (x,), node.source),), node.source, dtype=node.dtype), node
            )


def invert_comparison(node: Node) -> Node | None:
    """not(a == b) -> a != b; not(a != b) -> a == b; orders only of integers, where there is no NaN"""
    opposite = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}
    match node:
        case Node("not", (Node("eq" | "ne" | "lt" | "ge" | "gt" | "le" as op, (a, b)),)):
            if op in ("eq", "ne") or a.dtype in ("i32", "i64"):
                return make(opposite[op], (a, b), node.source)


def full_to_expand(node: Node) -> Node | None:
    """full(shape, v) -> expand(v, shape)"""
    if node.op == "full":
        value = np.asarray(node.attributes["value"]).astype(DTYPES[node.dtype])
        return resized(constant(Weight(value), source=node.source), node)


def uniform_to_expand(node: Node) -> Node | None:
    """a constant of equal integers or flags -> expand(one of them); buffers of zeros are such"""
    if node.op != "constant":
        return None
    value = weight(node)
    if value is None or DTYPES[node.dtype].kind == "f" or not 1 < value.array.size <= _UNIFORM_LIMIT:
        return None
    if node.dtype in ("i8", "u8"):  # levels of a weight, that kernels pack
        return None
    first = value.array.flat[0]
    if (value.array == first).all():
        return resized(constant(first, value.name, node.source), node)


RULES = (
    full_to_expand,
    uniform_to_expand,
    drop_neutral,
    drop_double,
    drop_same,
    drop_logic,
    choose_where,
    where_of_not,
    drop_cast,
    cast_of_cast,
    compare_flag,
    invert_flag,
    invert_comparison,
)
