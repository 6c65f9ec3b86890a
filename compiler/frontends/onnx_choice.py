"""Numbers given at run time that can be only a few: what each gives is computed, and one is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from llmc.compiler.frontends.onnx_call import Call
from llmc.compiler.frontends.onnx_index import wrapped
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant

Axes = tuple[int, ...]
_MOST = 32  # that are computed for one that is chosen


def selected(
    call: Call, given: Node, options: Sequence[Axes], rank: int, make: Callable[[Axes], Node]
) -> Node:
    """What `make` gives for the axes that `given` is at run time, in any order, counted from either end."""
    bits = constant(np.array([1 << a for a in range(rank)], np.int64), source=call.source)
    mask = call.op("sum", call.op("embedding", bits, wrapped(call, given, rank)), axes=(0,), keepdims=True)
    masks: dict[Axes, Axes] = {(sum(1 << a for a in option),): option for option in options}
    return by_values(call, mask, list(masks), lambda value: make(masks[value]))


def by_values(call: Call, given: Node, options: Sequence[Axes], make: Callable[[Axes], Node]) -> Node:
    """What `make` gives for the numbers `[k]` that `given` is at run time."""
    call.require(0 < len(options) <= _MOST, "numbers at run time that do not give the declared shape")
    *others, last = options
    result = make(last)
    for option in others:
        wanted = constant(np.array(option, np.int64), source=call.source)
        here = call.op("all", call.op("eq", call.cast(given, "i64"), wanted), axes=(0,), keepdims=False)
        result = call.op("where", here, make(option), result)
    return result
