"""Steps of float32 to the last bit, for graphs that round what comes of them to levels (`ops/float_steps.py`).

A level is a thousand times the last bit that decided it, so a file of a model on int8 gives llmc's answers only if its
sums have llmc's order. ONNX has no fused multiply-add: it is a product and a sum of doubles, rounded to float32, which
is the same but where the double lies in the middle between two floats (one in 2^29).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from llmc.compiler.dims import Dim
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.ops.elementwise import GELU_LIMIT, GELU_POLY
from llmc.compiler.ops.float_steps import LANES
from llmc.compiler.to_onnx.emitter import Body, Emitter, Scope

Step = Callable[[Sequence[Node], Sequence[Node]], Sequence[Node]]  # (carried, slices) -> carried


def number(value: float) -> Node:
    """A rank-0 f32."""
    return constant(np.float32(value))


def fma(e: Emitter, a: Node, b: Node, c: Node) -> Node:
    """a * b + c, rounded once."""
    return _as_floats(e, make("add", (make("mul", (a, b)), c)), "Add", _double_product(e, a, b), _wide(e, c))


def whole(e: Emitter, a: Node, b: Node) -> Node:
    """a * b rounded half to even to a whole number, from the exact product."""
    return _as_floats(e, make("mul", (a, b)), "Round", _double_product(e, a, b))


def _double_product(e: Emitter, a: Node, b: Node) -> str:
    return e.op("Mul", _wide(e, a), _wide(e, b))


def _wide(e: Emitter, x: Node) -> str:
    """f64; of a constant the constant."""
    if x.op == "constant":
        return e.array(x.attributes["value"].array.astype(np.float64))
    return e.cast(e.value(x), "f32", "f64")


def _as_floats(e: Emitter, like: Node, kind: str, *doubles: str) -> Node:
    """A node that stands for the result of an op of doubles, as f32 of `like`'s shape."""
    return e.standing(like, e.cast(e.op(kind, *doubles), "f64", "f32"))


def scan(e: Emitter, carried: Sequence[Node], slices: Sequence[Node], step: Step) -> list[Node]:
    """What is carried after a `step` for each place of the first axis of `slices`, in order."""
    given = [*map(e.value, (*carried, *slices))]
    with e.within(Scope(e.scope)) as scope:
        own = [_inside(e, x.dtype, x.shape) for x in carried]
        parts = [_inside(e, x.dtype, x.shape[1:]) for x in slices]
        after = step([node for _, node in own], [node for _, node in parts])
        outputs = [(e.copy(e.value(node), e.free("carried_out")), node) for node in after]
    body = Body([*own, *parts], outputs, scope.steps)
    made = e.several("Scan", given, len(carried), body=body, num_scan_inputs=len(slices))
    return [e.standing(make("neg", (x,)), value) for x, value in zip(carried, made, strict=True)]


def _inside(e: Emitter, dtype: str, shape: Sequence[Dim]) -> tuple[str, Node]:
    """An input of a body."""
    name = e.free("carried_in")
    return name, e.standing(input_(name, dtype, tuple(shape)), name)


def norm(
    e: Emitter, x: Node, weight: Node | None, bias: Node | None, eps: float, centre: bool = True
) -> Node:
    """`norm32` of `ops/float_steps.py`."""
    size = number(float(x.shape[-1]))
    if centre:
        mean = make("div", (_row_sum(e, x, lambda total, part: make("add", (total, part))), size))
        x = make("sub", (x, mean))
    variance = make("div", (_row_sum(e, x, lambda total, part: fma(e, part, part, total)), size))
    value = make("mul", (x, inverse(e, _root(e, make("add", (variance, number(eps)))))))
    if bias is not None:
        return fma(e, value, number(1) if weight is None else weight, bias)
    return value if weight is None else make("mul", (value, weight))


def _root(e: Emitter, x: Node) -> Node:
    """sqrt(x); that of doubles rounds to that of floats, which some libraries only come near."""
    return _as_floats(e, make("sqrt", (x,)), "Sqrt", _wide(e, x))


def inverse(e: Emitter, x: Node) -> Node:
    """1 / x, by doubles: ONNX Runtime's optimiser makes a / x of a * (1 / x), which rounds once, not twice."""
    return e.standing(make("neg", (x,)), inverted(e, e.value(x)))


def inverted(e: Emitter, x: str) -> str:
    """`inverse` of a value of the file."""
    return e.cast(e.op("Div", e.array(np.float64(1)), e.cast(x, "f32", "f64")), "f64", "f32")


def _row_sum(e: Emitter, x: Node, step: Callable[[Node, Node], Node]) -> Node:
    """f32 [..., n] -> [..., 1]: 16 sums of every 16th value in turn, joined as i with i + 8, + 4, + 2, + 1."""
    lead, size = x.shape[:-1], int(x.shape[-1])
    last = len(lead)
    if missing := -size % LANES:
        x = make("concat", (x, make("expand", (number(0),), shape=(*lead, missing))), axis=last)
    apart = make("reshape", (x,), shape=(*lead, (size + missing) // LANES, LANES))
    turned = make("transpose", (apart,), perm=(last, *range(last), last + 1))
    zeros = make("expand", (number(0),), shape=(*lead, LANES))
    (total,) = scan(e, [zeros], [turned], lambda sums, parts: [step(sums[0], parts[0])])
    lanes = LANES
    while lanes > 1:
        lanes //= 2
        halves = [make("slice", (total,), axis=last, start=at, stop=at + lanes) for at in (0, lanes)]
        total = make("add", halves)
    return total


def gelu_poly(e: Emitter, x: Node) -> Node:
    """`gelu_poly32` of `ops/float_steps.py`."""
    x = make("maximum", (x, number(-GELU_LIMIT)))
    t = make("minimum", (x, number(GELU_LIMIT)))
    square = make("mul", (t, t))
    total = number(GELU_POLY[0])
    for coefficient in GELU_POLY[1:]:
        total = fma(e, total, square, number(coefficient))
    return fma(e, x, make("mul", (t, total)), make("mul", (x, number(0.5))))
