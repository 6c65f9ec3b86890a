"""ONNX's ops that make tensors or give them another shape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import sympy

from llmc.compiler.dims import ceil_div, dim, product
from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.frontends.onnx_sizes import as_value, floor_div
from llmc.compiler.frontends.onnx_values import Value, known, want_room
from llmc.compiler.frontends.parts import tiled
from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops import constant
from llmc.compiler.ops.rules import INTEGERS, broadcast

# --- sizes


@onnx_op("Shape")
def _shape(call: Call) -> Value:
    shape = call.node(0).shape
    return as_value(
        np.array(shape, object)[call.attribute("start", 0) : call.attributes.get("end")], "i64", call.source
    )


@onnx_op("Size")
def _size(call: Call) -> Value:
    return as_value(product(call.node(0).shape), "i64", call.source)


# --- new tensors


@onnx_op("Constant")
def _constant(call: Call) -> Node:
    if "value" in call.attributes:
        return constant(Weight(call.attributes["value"], ""), source=call.source)
    for name, dtype in _CONSTANTS.items():
        if name in call.attributes:
            return constant(np.asarray(call.attributes[name], dtype), source=call.source)
    raise UnsupportedError("a constant of texts, or a sparse one")


_CONSTANTS = {
    **{"value_int": np.int64, "value_ints": np.int64},
    **{"value_float": np.float32, "value_floats": np.float32},
}


@onnx_op("ConstantOfShape")
def _constant_of_shape(call: Call) -> Node:
    shape = call.known_dims(0)
    shape = call.shape_of_result("a shape") if shape is None else shape
    call.require(not any(isinstance(d, int) and d < 0 for d in shape), f"a shape of {list(shape)}")
    value = call.attribute("value", None)
    fill = np.zeros(1, np.float32) if value is None else value
    if all(isinstance(d, int) for d in shape) and product(shape) <= 64:
        return constant(np.full(shape, fill.item(), fill.dtype), source=call.source)
    return call.expand(constant(fill.reshape(()), source=call.source), shape)


@onnx_op("Range")
def _range(call: Call) -> Node:
    given = [_known_or_size(call.value(i)) for i in range(3)]
    call.attribute("stash_type", 1)
    if any(g is None for g in given):
        return _running_range(call)
    start, limit, step = _whole([g.reshape(()).item() for g in given if g is not None])
    call.require(not isinstance(step, (int, float)) or step != 0, "a Range by steps of 0")
    if any(isinstance(n, float) for n in (start, limit, step)):
        call.require(
            not any(isinstance(n, sympy.Expr) for n in (start, limit, step)), "a Range of parts of a size"
        )
        length = max(math.ceil((limit - start) / step), 0)
        want_room((length,))
        return constant((start + np.arange(length) * step).astype(np.float32), source=call.source)
    call.require(isinstance(step, int), "a Range by a size")
    length = ceil_div(dim(limit - start) if step > 0 else dim(start - limit), abs(step))
    length = max(length, 0) if isinstance(length, int) else length
    kind = call.node(0).dtype
    counted = kind if kind in INTEGERS else "i64"
    return call.cast(call.op("iota", length=length, start=dim(start), step=step, dtype=counted), kind)


def _whole(numbers: list[Any]) -> list[Any]:
    """Beside a size whole numbers that are floats are ints: a grid of places is made so."""
    if not any(isinstance(n, sympy.Expr) for n in numbers):
        return numbers
    return [int(n) if isinstance(n, float) and n.is_integer() else n for n in numbers]


def _known_or_size(value: Value) -> np.ndarray[Any, Any] | None:
    """The numbers; those of a size that was cast to float too."""
    match value:
        case Node("cast", (Node("dim", _, {"value": size}),)):
            return np.asarray(size, object)
    return known(value)


def _running_range(call: Call) -> Node:
    """Bounds that are given at run time: the file says how many there are."""
    (length,) = call.shape_of_result("the bounds of a Range")
    start, step = call.node(0), call.node(2)
    call.value(1)
    places = call.cast(call.op("iota", length=length), start.dtype)
    return call.op("add", call.reshape(start, ()), call.op("mul", places, call.reshape(step, ())))


@onnx_op("Trilu")
def _triangle(call: Call) -> Node:
    """Keeps j - i >= k (upper) or <= k, zero elsewhere."""
    x = call.node(0)
    diagonal = call.cast(call.reshape(call.node(1), ()), "i64") if call.has(1) else call.number(0, "i64")
    rows, columns = x.shape[-2:]
    i = call.reshape(call.op("iota", length=rows), (rows, 1))
    away = call.op("sub", call.op("iota", length=columns), i)
    keep = call.op("ge" if call.attribute("upper", 1) else "le", away, diagonal)
    return call.op("where", keep, x, call.number(0, x.dtype))


# --- same elements, another shape


@onnx_op("Reshape")
def _reshape(call: Call) -> Node:
    """0 keeps a dim, -1 is what is left. Before opset 5 the shape was an attribute."""
    x = call.node(0)
    allows_zero = call.attribute("allowzero", 0)
    given = call.attributes["shape"] if "shape" in call.attributes else call.known_dims(1)
    if given is None:
        return call.reshape(x, call.shape_of_result("a shape"))
    wanted = [dim(d) for d in given]
    if not allows_zero:
        wanted = [x.shape[i] if d == 0 else d for i, d in enumerate(wanted)]
    call.require(not any(isinstance(d, int) and d < -1 for d in wanted), f"a shape of {wanted}")
    if -1 in wanted:
        place = wanted.index(-1)
        rest = product(d for i, d in enumerate(wanted) if i != place)
        call.require(rest != 0, "a size that nothing decides")
        wanted[place] = floor_div(product(x.shape), rest)
    return call.reshape(x, wanted)


@onnx_op("Flatten")
def _flatten(call: Call) -> Node:
    x = call.node(0)
    axis = call.attribute("axis", 1)
    axis = axis + x.type.rank if axis < 0 else axis
    return call.reshape(x, (product(x.shape[:axis]), product(x.shape[axis:])))


@onnx_op("Squeeze")
def _squeeze(call: Call) -> Node:
    """Without axes those whose size is 1: which they are must be known."""
    x = call.node(0)
    if call.has(1) and known(call.value(1)) is None:
        return call.reshape(x, call.shape_of_result("axes"))
    axes = call.ints(1, "axes")
    if axes is None:
        call.require(
            all(isinstance(d, int) for d in x.shape), "Squeeze of axes that may be 1", "name the axes"
        )
    gone = [i for i, d in enumerate(x.shape) if d == 1] if axes is None else [a % x.type.rank for a in axes]
    call.require(all(x.shape[a] == 1 for a in gone), "Squeeze of an axis that is not 1")
    return call.reshape(x, [d for i, d in enumerate(x.shape) if i not in gone])


@onnx_op("Unsqueeze")
def _unsqueeze(call: Call) -> Node:
    x = call.node(0)
    if call.has(1) and known(call.value(1)) is None:
        return call.reshape(x, call.shape_of_result("axes"))
    axes = call.ints(1, "axes") or ()
    rank = x.type.rank + len(axes)
    call.require(all(-rank <= a < rank for a in axes), f"axes {axes} of {rank}")
    new, kept = {a % rank for a in axes}, iter(x.shape)
    call.require(len(new) == len(axes), f"axes {axes}, of which two are one")
    return call.reshape(x, [1 if i in new else next(kept) for i in range(rank)])


@onnx_op("Transpose")
def _transpose(call: Call) -> Node:
    x = call.node(0)
    return call.transpose(x, call.attribute("perm", range(x.type.rank)[::-1]))


@onnx_op("Expand")
def _expand(call: Call) -> Node:
    """Broadcasting goes both ways: a wanted 1 keeps x's dim."""
    x, wanted = call.node(0), call.known_dims(1)
    return call.expand(x, call.shape_of_result("a shape") if wanted is None else broadcast(x.shape, wanted))


@onnx_op("Tile")
def _tile(call: Call) -> Node:
    """Before opset 6 how often and along which axis, since then how often along each axis."""
    x, times = call.node(0), call.known_dims(1)
    if call.has(2):
        call.require(times is not None, "Tile by a number computed from the values of tensors")
        axes, (count,) = call.dims(2, "an axis"), times or ()
        times = tuple(count if a == axes[0] else 1 for a in range(x.type.rank))
    if times is None:
        wanted = call.shape_of_result("repeats")
        call.require(all(isinstance(d, int) and d for d in x.shape), "Tile of a dynamic size")
        times = tuple(w // d for w, d in zip(wanted, x.shape, strict=True))
    call.require(len(times) == x.type.rank, "repeats that are not one for each axis")
    return tiled(call, x, times)
