"""ATen's recurrent networks: a loop for each layer and direction, around a cell.

The input's part of the gates does not depend on the state: it is one product over all steps, before the loop. Rows
with lengths keep their state where t >= length and give zeros there; so does the reverse direction, which thereby
starts at each row's own last step. Adding both biases beforehand, as cuDNN does, rounds once more than PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from llmc.compiler.dims import Dim
from llmc.compiler.frontends.aten import Call, aten
from llmc.compiler.frontends.parts import Maker
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import constant, input_, results
from llmc.compiler.ops.recurrent import GRU_GATES

MODES: Mapping[str, int] = MappingProxyType(
    {"lstm": 2, "gru": 1, "rnn_tanh": 1, "rnn_relu": 1}
)  # kind -> states


@dataclass(frozen=True)
class Network:
    """What all layers of a recurrent network share.

    Args:
        kind: a key of MODES.
        states: `[layers * directions, batch, units]`, h and, of an LSTM, c.
        weights: of each layer and direction: w_ih, w_hh, b_ih?, b_hh?, w_hr? (projection of an LSTM's h).
        lengths: integer `[batch]`, None if all rows are as long as the sequence.
        backwards: of each direction, whether it runs from the end; the second of two does.
    """

    call: Maker
    kind: str
    states: Sequence[Node]
    weights: Sequence[Sequence[Node]]
    bidirectional: bool
    has_biases: bool
    lengths: Node | None = None
    backwards: Sequence[bool] = (False, True)


@aten("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input")
def _recurrent(call: Call) -> tuple[Node, ...]:
    kind = str(call.target).removeprefix("aten.").partition(".")[0]
    call.require(not call.get("train", False) or not call.get("dropout", 0.0), "dropout in training mode")
    states = call["hx"] if kind == "lstm" else [call["hx"]]
    return network(call, kind, call["input"], states, call["params"], call["batch_first"], None)


@aten("llmc.recurrent.default")
def _with_lengths(call: Call) -> tuple[Node, ...]:
    """See `packed.recurrent`."""
    return network(
        call, call["kind"], call["x"], call["hx"], call["params"], call["batch_first"], call.get("lengths")
    )


def network(
    call: Call,
    kind: str,
    x: Node,
    states: Sequence[Node],
    parameters: Sequence[Node],
    batch_first: bool,
    lengths: Node | None,
) -> tuple[Node, ...]:
    """output, and the states at the end, as PyTorch returns them."""
    call.require(x.dtype == "f32" and x.type.rank == 3, f"{kind} on {x.type}", "use f32 [seq, batch, width]")
    call.require(
        all(p.op == "constant" for p in parameters), f"{kind} with computed weights", "compute them first"
    )
    layers, bidirectional, biases = call["num_layers"], bool(call["bidirectional"]), bool(call["has_biases"])
    each = len(parameters) // (layers * (1 + bidirectional))
    weights = [parameters[i : i + each] for i in range(0, len(parameters), each)]
    shared = Network(call, kind, states, weights, bidirectional, biases, lengths)
    x = call.op("transpose", x, perm=(1, 0, 2)) if batch_first else x
    ends: list[list[Node]] = []
    for layer in range(layers):
        x, last = one_layer(shared, layer, x)
        ends += last
    x = call.op("transpose", x, perm=(1, 0, 2)) if batch_first else x
    return (x, *(_joined(call, [end[i] for end in ends]) for i in range(MODES[kind])))


def one_layer(net: Network, layer: int, x: Node) -> tuple[Node, list[list[Node]]]:
    """The output of one layer and the last states of its directions."""
    outputs, ends = [], []
    for direction in range(1 + net.bidirectional):
        output, *last = _direction(
            net, layer * (1 + net.bidirectional) + direction, x, net.backwards[direction]
        )
        outputs.append(output)
        ends.append(last)
    return outputs[0] if len(outputs) == 1 else net.call.op("concat", *outputs, axis=2), ends


def _joined(call: Call, ends: Sequence[Node]) -> Node:
    """States of all layers and directions, one above the other."""
    parts = [call.reshape(end, (1, *end.shape)) for end in ends]
    return parts[0] if len(parts) == 1 else call.op("concat", *parts, axis=0)


def _direction(net: Network, number: int, x: Node, reverse: bool) -> list[Node]:
    """The loop over one direction of one layer: its output, and its last states."""
    call, (steps, batch) = net.call, x.shape[:2]
    w_ih, w_hh, *others = net.weights[number]
    b_ih, b_hh = others[:2] if net.has_biases else (None, None)
    projection = others[-1] if len(others) in (1, 3) else None
    inputs = _product(call, x, w_ih, _input_bias(net.kind, b_ih, b_hh))
    first = [_state(call, state, number) for state in net.states]
    scanned = [inputs] if net.lengths is None else [inputs, active_steps(call, net.lengths, steps, batch)]
    body = _Body(net.kind, w_hh, _hidden_bias(net, b_hh), projection, scanned, first).graph()
    loop = call.op(
        "loop",
        *scanned,
        *first,
        body=body,
        count=steps,
        scanned=len(scanned),
        carried=len(first),
        reverse=reverse,
    )
    *last, output = results(loop)
    return [output, *last]


def _state(call: Maker, state: Node, number: int) -> Node:
    row = call.op("slice", state, axis=0, start=number, stop=number + 1)
    return call.reshape(row, state.shape[1:])


def active_steps(call: Maker, lengths: Node, steps: Dim, batch: Dim) -> Node:
    """bool [steps, batch, 1]: whether step t is one of a row's own."""
    at = call.reshape(call.op("iota", length=steps), (steps, 1, 1))
    return call.op("lt", at, call.reshape(call.op("cast", lengths, dtype="i64"), (batch, 1)))


def _product(call: Maker, x: Node, weight: Node, bias: Node | None) -> Node:
    if bias is None:
        return call.op("linear", x, weight)
    return call.op("linear", x, weight, bias, epilogue=("bias",))


def _input_bias(kind: str, b_ih: Node | None, b_hh: Node | None) -> Node | None:
    """What is added to the input's part: both biases, but of a GRU's n gate, whose second one r multiplies."""
    if b_ih is None or b_hh is None:
        return None
    a, b = (np.array(bias.attributes["value"].array) for bias in (b_ih, b_hh))
    if kind == "gru":
        b[2 * len(b) // GRU_GATES :] = 0
    return constant(a + b, b_ih.attributes["value"].name, b_ih.source)


def _hidden_bias(net: Network, b_hh: Node | None) -> Node | None:
    """The bias that the cell adds itself: of a GRU's n gate."""
    if net.kind != "gru":
        return None
    units = int(net.states[0].shape[2])
    if b_hh is None:
        return constant(np.zeros(units, np.float32), source=net.call.source)
    held = b_hh.attributes["value"]
    return constant(np.ascontiguousarray(held.array[2 * units :]), held.name, b_hh.source)


class _Body:
    """One step: from a slice of the input's part and the states before to the states after and the output."""

    def __init__(
        self,
        kind: str,
        weight: Node,
        bias: Node | None,
        projection: Node | None,
        scanned: Sequence[Node],
        states: Sequence[Node],
    ) -> None:
        self.kind, self.weight, self.bias, self.projection = kind, weight, bias, projection
        names = ("x", "active")
        self.x = [input_(n, s.dtype, s.shape[1:]) for n, s in zip(names, scanned, strict=False)]
        self.before = [input_(n, s.dtype, s.shape) for n, s in zip(("h", "c"), states, strict=False)]

    def graph(self) -> Graph:
        after = _CELLS[self.kind](self)
        output = after[0]
        if len(self.x) > 1:
            (_, active), zero = self.x, constant(np.float32(0))
            output = self._op("where", active, output, zero)
            after = [self._op("where", active, a, b) for a, b in zip(after, self.before, strict=True)]
        named = dict(zip(("h", "c"), after, strict=False)) | {"output": output}
        return Graph((*self.x, *self.before), named)

    def _op(self, name: str, *inputs: Node, **attributes: object) -> Node:
        from llmc.compiler.ops import make

        return make(name, inputs, self.weight.source, **attributes)

    def lstm(self) -> list[Node]:
        h, c = results(self._op("lstm_cell", self.x[0], *self.before, self.weight))
        return [h if self.projection is None else self._op("linear", h, self.projection), c]

    def gru(self) -> list[Node]:
        assert self.bias is not None
        return [self._op("gru_cell", self.x[0], self.before[0], self.weight, self.bias)]

    def rnn(self) -> list[Node]:
        steps = ("residual", self.kind.removeprefix("rnn_"))
        return [self._op("linear", self.before[0], self.weight, self.x[0], epilogue=steps)]


_CELLS: Mapping[str, Callable[[_Body], list[Node]]] = MappingProxyType(
    {"lstm": _Body.lstm, "gru": _Body.gru, "rnn_tanh": _Body.rnn, "rnn_relu": _Body.rnn}
)
