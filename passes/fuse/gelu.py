"""GELU written out in elementary ops, by the error function or by tanh; helpers say which part is not GELU's."""

from __future__ import annotations

import math

from llmc.compiler.graph import Node
from llmc.compiler.ops import make
from llmc.compiler.rewrite import Miss
from llmc.passes.match import is_scalar, number_text, scalar

_CUBIC = 0.044715
_VERBS = {"mul": "multiplies", "div": "divides"}


def gelu_from_erf(node: Node) -> Node | Miss | None:
    """x * 0.5 * (1 + erf(x / sqrt 2)) -> gelu(x)"""
    if node.op != "mul":
        return None
    found = _half_times(node, "erf")
    if isinstance(found, Miss):
        return found
    x, argument = found
    miss = _not_scaled(argument, x, math.sqrt(0.5))
    return make("gelu", (x,), node.source) if miss is None else miss


def gelu_from_tanh(node: Node) -> Node | Miss | None:
    """0.5 * x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x**3))) -> gelu{tanh}(x)"""
    if node.op != "mul":
        return None
    found = _half_times(node, "tanh")
    if isinstance(found, Miss):
        return found
    x, argument = found
    inner = _divided(argument, math.sqrt(2 / math.pi))
    if isinstance(inner, Miss):
        return inner
    miss = _not_cubic(inner, x)
    return make("gelu", (x,), node.source, approximate="tanh") if miss is None else miss


def _half_times(node: Node, op: str) -> tuple[Node, Node] | Miss:
    """x, argument of `x * 0.5 * (1 + op(argument))` in any order of the factors."""
    leaves = _factors(node, 3)
    sums = [f for f in leaves if _has(f, op)]
    if not sums:
        return Miss(node, f"has no factor 1 + {op}(...)", 1)
    argument = _one_plus(sums[0], op)
    if isinstance(argument, Miss):
        return argument
    rest = [f for f in leaves if f is not sums[0]]
    halves = [f for f in rest if is_scalar(f, 0.5)]
    if len(rest) != 2 or len(halves) != 1:
        return _no_half(node, rest)
    x = next(f for f in rest if f is not halves[0])
    if not x.type == node.type == argument.type:
        return Miss(x, f"is {x.type}, not {node.type} as the whole is", 4)
    return x, argument


def _no_half(node: Node, factors: list[Node]) -> Miss:
    """Which multiplication is by another number than 0.5, beside `1 + erf(...)`, which is there."""
    known = [f for f in factors if scalar(f) is not None]
    if len(factors) != 2 or not known:
        return Miss(node, "has not two factors beside 1 + ..., x and 0.5", 2)
    at = next((i for i in node.inputs if known[0] in i.inputs), node)
    return Miss(at, f"multiplies by {number_text(known[0])}, not by 0.5", 4)


def _factors(node: Node, limit: int) -> list[Node]:
    if node.op != "mul" or limit < 2:
        return [node]
    left, right = node.inputs
    return [*_factors(left, limit - 1), *_factors(right, limit - 1)]


def _has(node: Node, op: str) -> bool:
    return node.op == "add" and op in (i.op for i in node.inputs)


def _one_plus(node: Node, op: str) -> Node | Miss:
    """argument of 1 + op(argument)"""
    left, right = node.inputs
    f, one = (left, right) if left.op == op else (right, left)
    return f.inputs[0] if is_scalar(one, 1) else Miss(node, f"adds {number_text(one)}, not 1", 3)


def _near(node: Node, value: float) -> bool:
    found = scalar(node)
    return found is not None and math.isclose(float(found), value, rel_tol=1e-6)


def _not_scaled(node: Node, x: Node, factor: float) -> Miss | None:
    """Why `node` is not x * factor, or x / (1 / factor)"""
    match node:
        case Node("div", (a, c)) if a is x:
            wanted = 1 / factor
        case Node("mul", (a, c)) if a is x:
            wanted = factor
        case Node("mul", (c, a)) if a is x:
            wanted = factor
        case _:
            return Miss(node, f"is {node.op}, not a multiple of the value outside")
    if not _near(c, wanted):
        return Miss(node, f"{_VERBS[node.op]} by {number_text(c)}, not by {wanted:.7g}")


def _divided(node: Node, factor: float) -> Node | Miss:
    """y of y * factor"""
    if node.op != "mul":
        return Miss(node, f"is {node.op}, not mul")
    for y, c in (node.inputs, node.inputs[::-1]):
        if _near(c, factor):
            return y
    found = next((i for i in node.inputs if scalar(i) is not None), node.inputs[1])
    return Miss(node, f"multiplies by {number_text(found)}, not by {factor:.7g}")


def _not_cubic(node: Node, x: Node) -> Miss | None:
    """Why `node` is not x + 0.044715 * x**3"""
    if node.op != "add" or x not in node.inputs:
        return Miss(node, f"is {node.op}, not a sum with the value outside")
    cubic = node.inputs[1] if node.inputs[0] is x else node.inputs[0]
    factors = [f for f in _factors(cubic, 4) if not _near(f, _CUBIC)]
    number = next((f for f in factors if scalar(f) is not None), None)
    if number is not None:
        return Miss(cubic, f"multiplies by {number_text(number)}, not by {_CUBIC}")
    match factors:
        case [Node("pow", (y, three)) as power] if y is x:
            return None if is_scalar(three, 3) else Miss(power, f"is to the {number_text(three)}, not 3")
    if cubic.op != "mul" or len(factors) != 3 or any(f is not x for f in factors):
        return Miss(cubic, f"is not {_CUBIC} * x**3")


RULES = (gelu_from_erf, gelu_from_tanh)
