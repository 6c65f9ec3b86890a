"""ONNX Runtime's LSTM by integers: the input as a whole and each state are quantised by their own ranges."""

from __future__ import annotations

import numpy as np

from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.frontends.onnx_microsoft import microsoft
from llmc.compiler.frontends.onnx_microsoft_quantise import by_range
from llmc.compiler.frontends.onnx_quantise import product_of_levels
from llmc.compiler.frontends.onnx_rnn import layer
from llmc.compiler.frontends.onnx_rnn_steps import GATES, by_steps
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant

_SCALES = {1: 8, 2: 10}  # input of weights -> input of their scales; zero points come next


@onnx_op(*microsoft("DynamicQuantizeLSTM"))
def _lstm(call: Call) -> tuple[Node, ...]:
    """Weights are `[directions, width, gates * units]`, scales one for a direction or one for each column."""
    read = [position for first in _SCALES.values() for position in (first, first + 1)]
    fixed = all(call.node(position).op == "constant" for position in (*_SCALES, *read))
    call.require(fixed, "weights that are computed")
    units, shape = int(call.attribute("hidden_size", 0)), call.node(1).shape
    call.require(
        len(shape) == 3 and shape[2] == units * GATES["LSTM"], "a hidden_size that is not the weight's"
    )
    net = layer(call, "LSTM", units, False, lambda x, position, d: _product(call, x, position, d))
    # rows that have ended still count for the range at one step more, or for none, by the direction
    call.require(net.lengths is None, "rows with lengths of their own")
    y, ends = by_steps(net)
    return (call.transpose(y, (0, 2, 1, 3)), *ends)[: call.outputs]


def _product(call: Call, x: Node, position: int, direction: int) -> Node:
    first = _SCALES[position]
    weight, scale, zero = (_of(call, i, direction) for i in (position, first, first + 1))
    codes, step, origin = by_range(call, x)
    made = product_of_levels(call, codes, step, origin, weight, scale, zero)
    call.require(made is not None, "weights that are no levels of 8 bits")
    assert made is not None
    return made


def _of(call: Call, position: int, direction: int) -> Node:
    """What a constant input holds for one direction."""
    held = call.node(position).attributes["value"]
    return constant(np.ascontiguousarray(held.array[direction]), held.name, call.source)
