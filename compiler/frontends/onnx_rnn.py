"""ONNX's recurrent layers: a loop for each direction, as of `aten_rnn.py`, in ONNX's order of gates.

Usual layers with constant weights use the cells of the IR; others (peepholes, clipping, other activations, a GRU that
resets before its product, computed weights) write their step in elementary ops.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from llmc.compiler.dims import Dim
from llmc.compiler.frontends.aten_rnn import Network, one_layer
from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.frontends.onnx_rnn_steps import GATES, USUAL, Layer, Product, by_steps
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant

# place of each gate of the IR's cells among ONNX's: i, f, g, o in i, o, f, c; r, z, n in z, r, h
_ORDER: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
)


@onnx_op("LSTM", "GRU", "RNN")
def _recurrent(call: Call) -> tuple[Node, ...]:
    first = bool(call.attribute("layout", 0))
    gates, weight = GATES[call.type], call.node(1)
    units = int(call.attribute("hidden_size", weight.shape[1] // gates))
    call.require(weight.shape[1] == units * gates, "a hidden_size that is not the weight's")
    call.without_meaning("output_sequence")  # of opset 1: which outputs are read says it
    net = layer(call, call.type, units, first)
    y, ends = _by_cells(net) if net.is_usual else by_steps(net)
    y = call.transpose(y, (1, 0, 2, 3) if first else (0, 2, 1, 3))
    return (y, *(call.transpose(end, (1, 0, 2)) if first else end for end in ends))[: call.outputs]


def layer(call: Call, kind: str, units: int, batch_first: bool, product: Product | None = None) -> Layer:
    """What a node says, but for the weights."""
    x = call.transpose(call.node(0), (1, 0, 2)) if batch_first else call.node(0)
    directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    backwards = directions[call.attribute("direction", "forward")]
    call.require(not call.attribute("input_forget", 0), "an LSTM whose gates are coupled")
    shape = (len(backwards), x.shape[1], units)
    initial = (5, 6) if kind == "LSTM" else (5,)
    return Layer(
        call,
        kind,
        x,
        units,
        _functions(call, kind, len(backwards)),
        backwards,
        [_state(call, i, shape, batch_first) for i in initial],
        _lengths(call, x.shape[0]),
        call.attribute("clip", None),
        kind == "GRU" and bool(call.attribute("linear_before_reset", 0)),
        call.node(7) if kind == "LSTM" and call.has(7) else None,
        product,
    )


def _functions(call: Call, kind: str, directions: int) -> list[tuple[str, ...]]:
    usual = USUAL[kind]
    names = tuple(call.attribute("activations", usual * directions))
    for name in ("activation_alpha", "activation_beta"):
        call.require(not call.attribute(name, None), f"recurrent layers with {name}")
    call.require(len(names) == len(usual) * directions, f"{len(names)} activations")
    return [names[i * len(usual) : (i + 1) * len(usual)] for i in range(directions)]


def _state(call: Call, position: int, shape: tuple[Dim, ...], batch_first: bool) -> Node:
    if not call.has(position):
        return call.expand(call.number(0, "f32"), shape)
    state = call.node(position)
    return call.transpose(state, (1, 0, 2)) if batch_first else state


def _lengths(call: Call, steps: Dim) -> Node | None:
    """None where all rows are as long as the sequence."""
    if not call.has(4):
        return None
    lengths = call.node(4)
    if lengths.op == "constant" and bool(np.all(lengths.attributes["value"].array == steps)):
        return None
    return lengths


# --- by the cells of the IR


def _by_cells(net: Layer) -> tuple[Node, list[Node]]:
    call = net.call
    kind = "rnn_" + net.functions[0][0].lower() if net.kind == "RNN" else net.kind.lower()
    weights = [[_reordered(net, p, d) for p in (1, 2)] for d in range(len(net.backwards))]
    if call.has(3):
        weights = [
            [*pair, *(_reordered(net, 3, d, half) for half in (0, 1))] for d, pair in enumerate(weights)
        ]
    shared = Network(
        call, kind, net.states, weights, len(net.backwards) > 1, call.has(3), net.lengths, net.backwards
    )
    y, ends = one_layer(shared, 0, net.x)
    parts = [[call.reshape(end[i], (1, *end[i].shape)) for end in ends] for i in range(len(net.states))]
    y = call.reshape(y, (*y.shape[:2], len(net.backwards), net.units))
    return y, [p[0] if len(p) == 1 else call.op("concat", *p, axis=0) for p in parts]


def _reordered(net: Layer, position: int, direction: int, half: int = 0) -> Node:
    """A constant weight of one direction, its gates in the order of the IR's cells."""
    held = net.call.node(position).attributes["value"]
    array, count = held.array[direction], GATES[net.kind]
    if position == 3:
        array = np.split(array, 2)[half]
    gates = np.split(array, count)
    made = np.concatenate([gates[i] for i in _ORDER[net.kind]])
    return constant(np.ascontiguousarray(made), held.name, net.call.source)
