"""The ops of the IR, one declaration each: type rule, NumPy reference, traits.

`make(name, inputs, **attributes)` is the only way a node is built: it infers the type and so checks the
inputs. `OPS` is the table; every other table keyed by op is tested complete against it.
"""

from __future__ import annotations

from typing import Any

from llmc.compiler.graph import Node, Source, TensorType, Weight, dtype_name, make, results_of, unplaced
from llmc.compiler.ops import (
    attention,
    bf16,
    channel_rows,
    control,
    conv,
    elementwise,
    int8_blocks,
    int16,
    linear,
    qconv,
    quantise,
    ragged,
    recurrent,
    reduction,
    rotary,
    selection,
    shape,
    split,
    state,
    storage,
)
from llmc.compiler.ops.declare import OPS, Op

__all__ = [
    "OPS",
    "Op",
    "attention",
    "bf16",
    "channel_rows",
    "constant",
    "control",
    "conv",
    "elementwise",
    "input_",
    "int8_blocks",
    "int16",
    "linear",
    "make",
    "qconv",
    "quantise",
    "ragged",
    "recurrent",
    "reduction",
    "results",
    "rotary",
    "selection",
    "shape",
    "split",
    "state",
    "state_",
    "storage",
    "unplaced",
]


def input_(name: str, dtype: str, shape: tuple[Any, ...], **attributes: Any) -> Node:
    """A graph input called `name`."""
    kind = TensorType(dtype, shape)
    return make("input", (), Source(name), name=name, dtype=dtype, shape=kind.shape, **attributes)


def state_(name: str, dtype: str, shape: tuple[Any, ...], grows: int | None = None) -> Node:
    """A state called `name`; its axis `grows` gets longer from call to call."""
    kind = TensorType(dtype, shape)
    return make("state", (), Source(name), name=name, dtype=dtype, shape=kind.shape, grows=grows)


def constant(value: Any, name: str = "", source: Source | None = None) -> Node:
    """A constant node; `value` is a Weight, an array or a scalar (Python floats become float32)."""
    import numpy as np

    if not isinstance(value, Weight):
        array = np.asarray(value)
        value = Weight(array.astype(np.float32) if array.dtype == np.float64 else array, name)
    dtype_name(value.array.dtype)
    return make("constant", (), source or Source(value.name), value=value)


def results(node: Node) -> tuple[Node, ...]:
    """One `result` node for each result of `node`, to be made once: a result is picked by one node only."""
    return tuple(make("result", (node,), node.source, index=i) for i in range(len(results_of(node.type))))
