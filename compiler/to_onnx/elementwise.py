"""Element-wise ops. Integers of 8 bits are computed in 32, for ONNX Runtime has no arithmetic on them, and cut back."""

from __future__ import annotations

from collections.abc import Mapping

from llmc.compiler.bounded import never_negative
from llmc.compiler.dims import dim
from llmc.compiler.graph import Node
from llmc.compiler.ops import make
from llmc.compiler.ops.elementwise import chain_value
from llmc.compiler.to_onnx.emitter import Emitter
from llmc.compiler.to_onnx.table import exports

_BYTES = frozenset({"i8", "u8"})
_FLOATS = frozenset({"f32", "f16"})
_SAME: Mapping[str, str] = {
    **{"neg": "Neg", "abs": "Abs", "floor": "Floor", "ceil": "Ceil", "exp": "Exp", "log": "Log"},
    **{"sqrt": "Sqrt", "sin": "Sin", "cos": "Cos", "tanh": "Tanh", "sigmoid": "Sigmoid", "erf": "Erf"},
    **{"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow"},
    **{"maximum": "Max", "minimum": "Min", "and": "And", "or": "Or", "xor": "Xor", "not": "Not"},
    **{"bitand": "BitwiseAnd", "bitor": "BitwiseOr", "bitxor": "BitwiseXor"},
}
_COMPARED: Mapping[str, str] = {
    **{"eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual"},
}


def operands(e: Emitter, node: Node) -> tuple[list[str], str]:
    """What a node reads, integers of 8 bits as i32, and the dtype they have then."""
    dtype = node.inputs[-1].dtype
    wide = "i32" if dtype in _BYTES else dtype
    return [e.cast(e.value(i), i.dtype, wide if i.dtype == dtype else i.dtype) for i in node.inputs], wide


@exports(*_SAME)
def _same(e: Emitter, node: Node) -> str:
    inputs, dtype = operands(e, node)
    return e.cast(e.op(_SAME[node.op], *inputs), dtype, node.dtype)


@exports(*_COMPARED)
def _compared(e: Emitter, node: Node) -> str:
    return e.op(_COMPARED[node.op], *operands(e, node)[0])


@exports("ne")
def _unequal(e: Emitter, node: Node) -> str:
    return e.op("Not", e.op("Equal", *operands(e, node)[0]))


@exports("cast")
def _cast(e: Emitter, node: Node) -> str:
    return e.cast(e.value(node.inputs[0]), node.inputs[0].dtype, node.dtype)


@exports("sign")
def _sign(e: Emitter, node: Node) -> str:
    """(x > 0) - (x < 0): NaN gives 0."""
    (x,), dtype = operands(e, node)
    zero = e.number(0, dtype)
    above, below = (e.cast(e.op(kind, x, zero), "bool", dtype) for kind in ("Greater", "Less"))
    return e.cast(e.op("Sub", above, below), dtype, node.dtype)


@exports("relu")
def _relu(e: Emitter, node: Node) -> str:
    (x,), dtype = operands(e, node)
    made = e.op("Relu", x) if dtype in _FLOATS else e.op("Max", x, e.number(0, dtype))
    return e.cast(made, dtype, node.dtype)


@exports("rsqrt")
def _rsqrt(e: Emitter, node: Node) -> str:
    return e.op("Reciprocal", e.op("Sqrt", e.value(node.inputs[0])))


@exports("silu")
def _silu(e: Emitter, node: Node) -> str:
    return silu(e, e.value(node.inputs[0]))


def silu(e: Emitter, x: str) -> str:
    """x * sigmoid(x)"""
    return e.op("Mul", x, e.op("Sigmoid", x))


@exports("gelu")
def _gelu(e: Emitter, node: Node) -> str:
    return e.op("Gelu", e.value(node.inputs[0]), approximate=node.attributes["approximate"])


@exports("where")
def _where(e: Emitter, node: Node) -> str:
    """Of flags it is logic: ONNX Runtime has no Where of them."""
    (condition, a, b), dtype = operands(e, node)
    if dtype == "bool":
        return e.op("Or", e.op("And", condition, a), e.op("And", e.op("Not", condition), b))
    return e.cast(e.op("Where", condition, a, b), dtype, node.dtype)


@exports("chain")
def _chain(e: Emitter, node: Node) -> Node:
    """The steps, one after the other."""
    results: list[Node] = []
    for name, refs, attributes in node.attributes["body"]:
        arguments = [chain_value(ref, node.inputs, results) for ref in refs]
        results.append(make(name, arguments, node.source, **dict(attributes)))
    last = results[-1]
    return last if last.shape == node.shape else make("expand", (last,), node.source, shape=node.shape)


# --- quotients: the IR rounds them toward minus infinity, and integers by 0 are 0


@exports("mod")
def _mod(e: Emitter, node: Node) -> str:
    (a, b), dtype = operands(e, node)
    return e.cast(_remainder(e, a, b, dtype, _is_safe(e, node)), dtype, node.dtype)


@exports("floordiv")
def _floordiv(e: Emitter, node: Node) -> str:
    (a, b), dtype = operands(e, node)
    rest = _remainder(e, a, b, dtype, _is_safe(e, node))
    if dtype in _FLOATS:
        return _float_quotient(e, a, b, rest, dtype)
    safe = b if _is_safe(e, node) else _without_zeros(e, b, dtype)
    made = e.op("Div", e.op("Sub", a, rest), safe)
    return e.cast(made if safe == b else _zero_where(e, b, made, dtype), dtype, node.dtype)


def _is_safe(e: Emitter, node: Node) -> bool:
    """Whether the divisor is known to have no zero."""
    divisor = node.inputs[1]
    if divisor.op == "dim":
        return never_negative(dim(divisor.attributes["value"] - 1), e.graph.dims)
    return divisor.op == "constant" and bool(divisor.attributes["value"].array.all())


def _remainder(e: Emitter, a: str, b: str, dtype: str, safe: bool) -> str:
    """What is left of a, with the sign of b."""
    if dtype in _FLOATS:
        rest, zero = e.op("Mod", a, b, fmod=1), e.number(0, dtype)
        apart = e.op("Less", e.op("Mul", e.op("Sign", rest), e.op("Sign", b)), zero)
        return e.op("Where", apart, e.op("Add", rest, b), rest)
    if safe:
        return e.op("Mod", a, b)
    return _zero_where(e, b, e.op("Mod", a, _without_zeros(e, b, dtype)), dtype)


def _float_quotient(e: Emitter, a: str, b: str, rest: str, dtype: str) -> str:
    """(a - rest) / b is whole but for its rounding."""
    whole = e.op("Round", e.op("Div", e.op("Sub", a, rest), b))
    return e.op("Where", e.op("Equal", b, e.number(0, dtype)), e.op("Div", a, b), whole)


def _without_zeros(e: Emitter, b: str, dtype: str) -> str:
    return e.op("Where", e.op("Equal", b, e.number(0, dtype)), e.number(1, dtype), b)


def _zero_where(e: Emitter, b: str, made: str, dtype: str) -> str:
    return e.op("Where", e.op("Equal", b, e.number(0, dtype)), e.number(0, dtype), made)
