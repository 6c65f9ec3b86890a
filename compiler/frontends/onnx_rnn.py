"""ONNX's recurrent layers: a loop for each direction, as of `aten_rnn.py`, in ONNX's order of gates.

Usual layers with constant weights use the cells of the IR; others (peepholes, clipping, other activations, a GRU that
resets before its product, computed weights) write their step in elementary ops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from llmc.compiler.dims import Dim
from llmc.compiler.frontends.aten_rnn import Network, active_steps, one_layer
from llmc.compiler.frontends.onnx_activation import activated
from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import constant, input_, results

_GATES: Mapping[str, int] = MappingProxyType({"LSTM": 4, "GRU": 3, "RNN": 1})
# place of each gate of the IR's cells among ONNX's: i, f, g, o in i, o, f, c; r, z, n in z, r, h
_ORDER: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
)
_USUAL: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
)


@dataclass(frozen=True)
class Layer:
    """One layer in all its directions, `[steps, batch, width]`.

    Args:
        functions: of each direction.
        states: h, and c of an LSTM, `[directions, batch, units]`.
        lengths: of rows, None if all are as long as the sequence.
    """

    call: Call
    x: Node
    units: int
    functions: Sequence[tuple[str, ...]]
    backwards: Sequence[bool]
    states: Sequence[Node]
    lengths: Node | None
    clip: float | None
    resets_after: bool
    peepholes: Node | None

    @property
    def is_usual(self) -> bool:
        """Whether the cells of the IR compute it."""
        kind = self.call.type
        usual = {_USUAL[kind]} | ({("Relu",)} if kind == "RNN" else set())
        plain = set(self.functions) <= usual and self.clip is None and self.peepholes is None
        fixed = all(self.call.node(i).op == "constant" for i in (1, 2, 3) if self.call.has(i))
        return plain and fixed and (kind != "GRU" or self.resets_after) and len(set(self.functions)) == 1


@onnx_op("LSTM", "GRU", "RNN")
def _recurrent(call: Call) -> tuple[Node, ...]:
    first = bool(call.attribute("layout", 0))
    net = _layer(call, first)
    y, ends = _by_cells(net) if net.is_usual else _by_steps(net)
    steps, batch = net.x.shape[:2]
    y = call.reshape(y, (steps, batch, len(net.backwards), net.units))
    y = call.transpose(y, (1, 0, 2, 3) if first else (0, 2, 1, 3))
    return (y, *(call.transpose(end, (1, 0, 2)) if first else end for end in ends))[: call.outputs]


def _layer(call: Call, batch_first: bool) -> Layer:
    x, weight = call.node(0), call.node(1)
    x = call.transpose(x, (1, 0, 2)) if batch_first else x
    directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    backwards = directions[call.attribute("direction", "forward")]
    units = int(call.attribute("hidden_size", weight.shape[1] // _GATES[call.type]))
    call.require(weight.shape[1] == units * _GATES[call.type], "a hidden_size that is not the weight's")
    call.require(not call.attribute("input_forget", 0), "an LSTM whose gates are coupled")
    call.without_meaning("output_sequence")  # of opset 1: which outputs are read says it
    shape = (len(backwards), x.shape[1], units)
    initial = (5, 6) if call.type == "LSTM" else (5,)
    return Layer(
        call,
        x,
        units,
        _functions(call, len(backwards)),
        backwards,
        [_state(call, i, shape, batch_first) for i in initial],
        _lengths(call, x.shape[0]),
        call.attribute("clip", None),
        call.type == "GRU" and bool(call.attribute("linear_before_reset", 0)),
        call.node(7) if call.type == "LSTM" and call.has(7) else None,
    )


def _functions(call: Call, directions: int) -> list[tuple[str, ...]]:
    usual = _USUAL[call.type]
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
    kind = "rnn_" + net.functions[0][0].lower() if call.type == "RNN" else call.type.lower()
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
    return y, [p[0] if len(p) == 1 else call.op("concat", *p, axis=0) for p in parts]


def _reordered(net: Layer, position: int, direction: int, half: int = 0) -> Node:
    """A constant weight of one direction, its gates in the order of the IR's cells."""
    held = net.call.node(position).attributes["value"]
    array, count = held.array[direction], _GATES[net.call.type]
    if position == 3:
        array = np.split(array, 2)[half]
    gates = np.split(array, count)
    made = np.concatenate([gates[i] for i in _ORDER[net.call.type]])
    return constant(np.ascontiguousarray(made), held.name, net.call.source)


# --- in elementary ops


def _by_steps(net: Layer) -> tuple[Node, list[Node]]:
    call = net.call
    outputs, ends = [], []
    for direction in range(len(net.backwards)):
        *last, output = _loop(net, direction)
        outputs.append(output)
        ends.append([call.reshape(end, (1, *end.shape)) for end in last])
    y = outputs[0] if len(outputs) == 1 else call.op("concat", *outputs, axis=2)
    joined = [e[0] if len(e) == 1 else call.op("concat", *e, axis=0) for e in zip(*ends, strict=True)]
    return y, joined


def _of(net: Layer, value: Node, direction: int) -> Node:
    return net.call.reshape(net.call.sliced(value, 0, direction, direction + 1), value.shape[1:])


def _loop(net: Layer, direction: int) -> Sequence[Node]:
    """The input's part of all gates is one product before the loop."""
    call, (steps, batch) = net.call, net.x.shape[:2]
    w, r = (call.transpose(_of(net, call.node(i), direction), (1, 0)) for i in (1, 2))
    given = call.op("matmul", net.x, w)
    scanned = [given] if net.lengths is None else [given, active_steps(call, net.lengths, steps, batch)]
    states = [_of(net, state, direction) for state in net.states]
    captured = [r, *([_of(net, call.node(3), direction)] if call.has(3) else [])]
    captured += [] if net.peepholes is None else [_of(net, net.peepholes, direction)]
    inside = [
        *(input_(f"x{i}", n.dtype, n.shape[1:]) for i, n in enumerate(scanned)),
        *(input_(f"s{i}", n.dtype, n.shape) for i, n in enumerate((*states, *captured))),
    ]
    body = _body(net, direction, inside, len(scanned), len(states))
    node = call.op(
        "loop",
        *scanned,
        *states,
        *captured,
        body=body,
        count=steps,
        scanned=len(scanned),
        carried=len(states),
        reverse=net.backwards[direction],
    )
    return results(node)


def _body(net: Layer, direction: int, inside: list[Node], scanned: int, carried: int) -> Graph:
    before, captured = inside[scanned : scanned + carried], inside[scanned + carried :]
    step = Step(net, net.functions[direction], inside[0], before, captured)
    after = _STEPS[net.call.type](step)
    output = after[0]
    if scanned > 1:
        active, zero = inside[1], net.call.number(0, "f32")
        output = net.call.op("where", active, output, zero)
        after = [net.call.op("where", active, a, b) for a, b in zip(after, before, strict=True)]
    named = {f"state{i}": node for i, node in enumerate(after)}
    return Graph(tuple(inside), {**named, "output": output})


@dataclass(frozen=True)
class Step:
    """One step: the input's part of the gates, the states before, and the weights."""

    net: Layer
    functions: tuple[str, ...]
    x: Node
    before: Sequence[Node]
    captured: Sequence[Node]

    def op(self, name: str, *inputs: Node) -> Node:
        return self.net.call.op(name, *inputs)

    def act(self, position: int, x: Node) -> Node:
        """An activation of what is clipped."""
        call, clip = self.net.call, self.net.clip
        if clip is not None:
            x = call.op("maximum", call.op("minimum", x, call.number(clip, "f32")), call.number(-clip, "f32"))
        return activated(call, self.functions[position], x)

    def part(self, x: Node, gate: int, count: int = 1) -> Node:
        """Columns of one gate, or of several."""
        units = self.net.units
        return self.net.call.sliced(x, x.type.rank - 1, gate * units, (gate + count) * units)

    def bias(self, gate: int, half: int) -> Node | None:
        if not self.net.call.has(3):
            return None
        return self.part(self.captured[1], gate + half * _GATES[self.net.call.type])

    def with_bias(self, x: Node, gate: int, *halves: int) -> Node:
        for half in halves:
            bias = self.bias(gate, half)
            x = x if bias is None else self.op("add", x, bias)
        return x

    def gate(self, products: Node, gate: int) -> Node:
        total = self.op("add", self.part(self.x, gate), self.part(products, gate))
        return self.with_bias(total, gate, 0, 1)

    def peephole(self, total: Node, gate: int, c: Node) -> Node:
        """i, o and f see the cell."""
        if self.net.peepholes is None:
            return total
        return self.op("add", total, self.op("mul", self.part(self.captured[-1], gate), c))


def _lstm(step: Step) -> list[Node]:
    h, c = step.before
    products = step.op("matmul", h, step.captured[0])
    i = step.act(0, step.peephole(step.gate(products, 0), 0, c))
    f = step.act(0, step.peephole(step.gate(products, 2), 2, c))
    g = step.act(1, step.gate(products, 3))
    cell = step.op("add", step.op("mul", f, c), step.op("mul", i, g))
    o = step.act(0, step.peephole(step.gate(products, 1), 1, cell))
    return [step.op("mul", o, activated(step.net.call, step.functions[2], cell)), cell]


def _gru(step: Step) -> list[Node]:
    (h,), weight = step.before, step.captured[0]
    products = step.op("matmul", h, step.part(weight, 0, 2))
    z, r = (step.act(0, step.gate(products, gate)) for gate in (0, 1))
    own = step.part(weight, 2)
    if step.net.resets_after:
        inner = step.op("mul", r, step.with_bias(step.op("matmul", h, own), 2, 1))
        total = step.op("add", step.with_bias(step.part(step.x, 2), 2, 0), inner)
    else:
        inner = step.op("matmul", step.op("mul", r, h), own)
        total = step.with_bias(step.op("add", step.part(step.x, 2), inner), 2, 0, 1)
    n = step.act(1, total)
    return [step.op("add", n, step.op("mul", z, step.op("sub", h, n)))]


def _rnn(step: Step) -> list[Node]:
    products = step.op("matmul", step.before[0], step.captured[0])
    return [step.act(0, step.gate(products, 0))]


_STEPS: Mapping[str, Callable[[Step], list[Node]]] = MappingProxyType(
    {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
)
