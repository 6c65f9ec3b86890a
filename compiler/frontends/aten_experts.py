"""Mixtures of experts: rows sorted by expert, how many each has, and products by group.

transformers writes these where PyTorch has no grouped product for the dtype (integrations/moe.py).
"""

from __future__ import annotations

from llmc.compiler.frontends.aten import Call, aten
from llmc.compiler.graph import Node


@aten("transformers.grouped_mm_fallback.default")
def _grouped_product(call: Call) -> Node:
    return call.op("grouped_matmul", call["input"], call["weight"], call["offs"])


@aten("_grouped_mm.default")
def _grouped_mm(call: Call) -> Node:
    """Rows by group only; PyTorch's other forms have groups of columns, or none."""
    x, w, ends, bias = call["self"], call["mat2"], call.get("offs"), call.get("bias")
    plain = x.type.rank == 2 and w.type.rank == 3 and ends is not None and bias is None
    call.require(plain, "a grouped product other than rows by group", "use 2-D rows and 3-D weights")
    return call.op("grouped_matmul", x, w, ends)


@aten("histc.default")
def _histc(call: Call) -> Node:
    """How often each integer from min to max occurs."""
    x, bins, low, high = call["self"], call.get("bins", 100), call.get("min", 0), call.get("max", 0)
    whole = x.inputs[0] if x.op == "cast" and x.inputs[0].dtype in ("i32", "i64") else x
    counted = whole.dtype in ("i32", "i64") and float(low).is_integer() and high - low == bins - 1
    call.require(counted, "histc of other than integers, a bin for each", "count with one_hot(...).sum(0)")
    each = call.op("iota", length=bins, start=int(low), dtype=whole.dtype)
    equal = call.op("eq", call.reshape(whole, (*whole.shape, 1)), each)
    axes = tuple(range(whole.type.rank))
    return call.cast(call.op("sum", call.cast(equal, "i32"), axes=axes), call.dtype)
