"""ONNX's orders, values written at indices, and Einstein sums."""

from __future__ import annotations

from llmc.compiler.dims import Dim, dim, product
from llmc.compiler.frontends.einsum import einsum
from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.frontends.onnx_index import wrapped
from llmc.compiler.frontends.onnx_kinds import DTYPES
from llmc.compiler.frontends.onnx_values import known
from llmc.compiler.frontends.parts import replaced, to_end
from llmc.compiler.graph import Node

_REDUCTIONS = {"none": "none", "add": "add", "mul": "mul", "max": "max", "min": "min"}


@onnx_op("TopK")
def _topk(call: Call) -> tuple[Node, ...]:
    """Values and indices, in order; of equal elements the lowest index comes first, as ONNX has it."""
    x = call.node(0)
    rank = x.type.rank
    axis = call.axis(rank, -1)
    perm = to_end(rank, axis)
    count = _count(call, axis)
    call.attribute("sorted", 1)  # any order will do where it is 0
    last = call.transpose(x, perm)
    index = call.op("argsort", last, count=count, descending=bool(call.attribute("largest", 1)))
    values = call.op("gather", last, index, axis=rank - 1)
    return call.transpose(values, perm), call.transpose(index, perm)


def _count(call: Call, axis: int) -> Dim:
    """How many elements are kept: an attribute before opset 10."""
    if "k" in call.attributes:
        return int(call.attributes["k"])
    given = call.known_dims(1)
    return call.number_of_result("how many elements to keep", 1, axis) if given is None else given[0]


@onnx_op("ScatterElements", "Scatter")
def _scatter(call: Call) -> Node:
    """The index may have fewer lines than x: the others stay as they are."""
    x, index, updates = call.node(0), call.node(1), call.node(2)
    axis = call.axis(x.type.rank, 0)
    others = [a for a in range(x.type.rank) if a != axis]
    parts = [x]  # x with ever more axes cut to the index
    for other in others:
        parts.append(call.sliced(parts[-1], other, 0, index.shape[other]))
    index = wrapped(call, index, x.shape[axis])
    made = call.op("scatter", parts[-1], index, updates, axis=axis, reduce=_reduction(call))
    for other, around in zip(reversed(others), reversed(parts[:-1]), strict=True):
        made = made if made.shape[other] == around.shape[other] else replaced(call, around, made, other, 0)
    return made


def _reduction(call: Call) -> str:
    stated = call.attribute("reduction", "none")
    call.require(stated in _REDUCTIONS, f"scatter with the reduction {stated!r}")
    return _REDUCTIONS[stated]


@onnx_op("ScatterND")
def _scatter_nd(call: Call) -> Node:
    """The last axis of the indices holds k coordinates: they are merged into one over the first k axes of x."""
    x, indices, updates = call.node(0), call.node(1), call.node(2)
    count = indices.shape[-1]
    call.require(isinstance(count, int), "ScatterND with a dynamic number of coordinates")
    lead, rest = product(indices.shape[:-1]), x.shape[count:]
    index = _merged(call, call.reshape(indices, (lead, count)), x.shape[:count])
    flat = call.reshape(x, (product(x.shape[:count]), *rest))
    rows = call.reshape(updates, (lead, *rest))
    return call.reshape(call.op("scatter", flat, index, rows, axis=0, reduce=_reduction(call)), x.shape)


def _merged(call: Call, indices: Node, sizes: tuple[Dim, ...]) -> Node:
    """`[n, k]` coordinates within axes of these sizes -> `[n]` places in all of them."""
    total: Node | None = None
    for k, size in enumerate(sizes):
        part = call.reshape(call.sliced(indices, 1, k, k + 1), (indices.shape[0],))
        part = wrapped(call, part, size)
        if total is not None:
            whole = call.cast(call.op("dim", value=size), part.dtype)
            part = call.op("add", call.op("mul", total, whole), part)
        total = part
    assert total is not None, "ScatterND has at least one coordinate"
    return total


@onnx_op("OneHot")
def _one_hot(call: Call) -> Node:
    """`on` where the new axis counts to the index, `off` elsewhere."""
    index, values = call.node(0), call.node(2)
    axis = call.axis(index.type.rank + 1, -1)
    given = known(call.value(1))
    depth = call.number_of_result("the depth of a OneHot", 1, axis) if given is None else dim(given.item())
    index = wrapped(call, index, depth)
    shape = [*index.shape[:axis], 1, *index.shape[axis:]]
    each = call.reshape(
        call.op("iota", length=depth, dtype=index.dtype), (depth, *(1,) * (len(shape) - 1 - axis))
    )
    found = call.op("eq", call.reshape(index, shape), each)
    off, on = (call.reshape(call.sliced(values, 0, i, i + 1), ()) for i in (0, 1))
    return call.op("where", found, on, off)


@onnx_op("Einsum")
def _einsum(call: Call) -> Node:
    equation = call.attributes["equation"]
    text = equation.decode() if isinstance(equation, bytes) else str(equation)
    return einsum(call, text, call.nodes())


@onnx_op("EyeLike")
def _eye_like(call: Call) -> Node:
    x, offset = call.node(0), call.attribute("k", 0)
    rows, columns = (call.op("iota", length=n) for n in x.shape)
    rows = call.op("add", call.reshape(rows, (x.shape[0], 1)), call.number(offset, "i64"))
    wanted = call.attribute("dtype", None)
    return call.cast(call.op("eq", rows, columns), x.dtype if wanted is None else DTYPES[int(wanted)])


@onnx_op("BitwiseAnd", "BitwiseOr", "BitwiseXor")
def _bitwise(call: Call) -> Node:
    return call.op(f"bit{call.type.removeprefix('Bitwise').lower()}", *call.nodes())


@onnx_op("BitwiseNot")
def _bitwise_not(call: Call) -> Node:
    """-1 - x"""
    x = call.node(0)
    return call.op("sub", call.number(255 if x.dtype == "u8" else -1, x.dtype), x)
