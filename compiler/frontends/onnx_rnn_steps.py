"""ONNX's recurrent layers in elementary ops: what a layer is, and a loop for each direction.

The products are plain, or what a layer says (`onnx_microsoft_rnn.py`: of levels).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from llmc.compiler.frontends.aten_rnn import active_steps
from llmc.compiler.frontends.onnx_activation import activated
from llmc.compiler.frontends.onnx_call import Call
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import input_, results

Product = Callable[[Node, int, int], Node]  # of a value, the weights' input, a direction

GATES: Mapping[str, int] = MappingProxyType({"LSTM": 4, "GRU": 3, "RNN": 1})
USUAL: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
)


@dataclass(frozen=True)
class Layer:
    """One layer in all its directions, `[steps, batch, width]`.

    Args:
        kind: LSTM, GRU or RNN.
        functions: of each direction.
        states: h, and c of an LSTM, `[directions, batch, units]`.
        lengths: of rows, None if all are as long as the sequence.
        product: by the constant weights of input 1 or 2; None: a plain one.
    """

    call: Call
    kind: str
    x: Node
    units: int
    functions: Sequence[tuple[str, ...]]
    backwards: Sequence[bool]
    states: Sequence[Node]
    lengths: Node | None
    clip: float | None
    resets_after: bool
    peepholes: Node | None
    product: Product | None = None

    @property
    def is_usual(self) -> bool:
        """Whether the cells of the IR compute it."""
        kind = self.kind
        usual = {USUAL[kind]} | ({("Relu",)} if kind == "RNN" else set())
        plain = set(self.functions) <= usual and self.clip is None and self.peepholes is None
        fixed = all(self.call.node(i).op == "constant" for i in (1, 2, 3) if self.call.has(i))
        return plain and fixed and (kind != "GRU" or self.resets_after) and len(set(self.functions)) == 1


def by_steps(net: Layer) -> tuple[Node, list[Node]]:
    """The outputs `[steps, batch, directions, units]`, and the states at the end."""
    call = net.call
    outputs, ends = [], []
    for direction in range(len(net.backwards)):
        *last, output = _loop(net, direction)
        outputs.append(output)
        ends.append([call.reshape(end, (1, *end.shape)) for end in last])
    y = outputs[0] if len(outputs) == 1 else call.op("concat", *outputs, axis=2)
    y = call.reshape(y, (*y.shape[:2], len(net.backwards), net.units))
    joined = [e[0] if len(e) == 1 else call.op("concat", *e, axis=0) for e in zip(*ends, strict=True)]
    return y, joined


def _of(net: Layer, value: Node, direction: int) -> Node:
    return net.call.reshape(net.call.sliced(value, 0, direction, direction + 1), value.shape[1:])


def _loop(net: Layer, direction: int) -> Sequence[Node]:
    """The input's part of all gates is one product before the loop."""
    call, (steps, batch) = net.call, net.x.shape[:2]
    given = _product(net, net.x, 1, direction)
    scanned = [given] if net.lengths is None else [given, active_steps(call, net.lengths, steps, batch)]
    states = [_of(net, state, direction) for state in net.states]
    captured = _captured(net, direction)
    inside = [
        *(input_(f"x{i}", n.dtype, n.shape[1:]) for i, n in enumerate(scanned)),
        *(input_(f"s{i}", n.dtype, n.shape) for i, n in enumerate((*states, *captured.values()))),
    ]
    scans, before = inside[: len(scanned)], inside[len(scanned) : len(scanned) + len(states)]
    names = dict(zip(captured, inside[len(scanned) + len(states) :], strict=True))
    body = _body(Step(net, direction, scans[0], before, names), scans[1:], inside)
    node = call.op(
        "loop",
        *scanned,
        *states,
        *captured.values(),
        body=body,
        count=steps,
        scanned=len(scanned),
        carried=len(states),
        reverse=net.backwards[direction],
    )
    return results(node)


def _product(net: Layer, x: Node, position: int, direction: int) -> Node:
    if net.product is not None:
        return net.product(x, position, direction)
    return net.call.op("matmul", x, _weight(net, position, direction))


def _weight(net: Layer, position: int, direction: int) -> Node:
    return net.call.transpose(_of(net, net.call.node(position), direction), (1, 0))


def _captured(net: Layer, direction: int) -> dict[str, Node]:
    """What each step reads besides, by name."""
    call = net.call
    found = {} if net.product is not None else {"weight": _weight(net, 2, direction)}
    if call.has(3):
        found["bias"] = _of(net, call.node(3), direction)
    if net.peepholes is not None:
        found["peepholes"] = _of(net, net.peepholes, direction)
    return found


def _body(step: Step, active: Sequence[Node], inside: Sequence[Node]) -> Graph:
    call, after = step.net.call, _STEPS[step.net.kind](step)
    output = after[0]
    if active:
        output = call.op("where", active[0], output, call.number(0, "f32"))
        after = [call.op("where", active[0], a, b) for a, b in zip(after, step.before, strict=True)]
    named = {f"state{i}": node for i, node in enumerate(after)}
    return Graph(tuple(inside), {**named, "output": output})


@dataclass(frozen=True)
class Step:
    """One step: the input's part of the gates, the states before, and what else it reads."""

    net: Layer
    direction: int
    x: Node
    before: Sequence[Node]
    captured: Mapping[str, Node]

    def op(self, name: str, *inputs: Node) -> Node:
        return self.net.call.op(name, *inputs)

    def act(self, position: int, x: Node) -> Node:
        """An activation of what is clipped."""
        call, clip = self.net.call, self.net.clip
        if clip is not None:
            x = call.op("maximum", call.op("minimum", x, call.number(clip, "f32")), call.number(-clip, "f32"))
        return activated(call, self.functions[position], x)

    @property
    def functions(self) -> tuple[str, ...]:
        return self.net.functions[self.direction]

    def products(self, h: Node) -> Node:
        """The state's part of all gates."""
        weight = self.captured.get("weight")
        return _product(self.net, h, 2, self.direction) if weight is None else self.op("matmul", h, weight)

    def part(self, x: Node, gate: int, count: int = 1) -> Node:
        """Columns of one gate, or of several."""
        units = self.net.units
        return self.net.call.sliced(x, x.type.rank - 1, gate * units, (gate + count) * units)

    def bias(self, gate: int, half: int) -> Node | None:
        bias = self.captured.get("bias")
        return None if bias is None else self.part(bias, gate + half * GATES[self.net.kind])

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
        if "peepholes" not in self.captured:
            return total
        return self.op("add", total, self.op("mul", self.part(self.captured["peepholes"], gate), c))


def _lstm(step: Step) -> list[Node]:
    h, c = step.before
    products = step.products(h)
    i = step.act(0, step.peephole(step.gate(products, 0), 0, c))
    f = step.act(0, step.peephole(step.gate(products, 2), 2, c))
    g = step.act(1, step.gate(products, 3))
    cell = step.op("add", step.op("mul", f, c), step.op("mul", i, g))
    o = step.act(0, step.peephole(step.gate(products, 1), 1, cell))
    return [step.op("mul", o, activated(step.net.call, step.functions[2], cell)), cell]


def _gru(step: Step) -> list[Node]:
    (h,), weight = step.before, step.captured["weight"]
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
    products = step.products(step.before[0])
    return [step.act(0, step.gate(products, 0))]


_STEPS: Mapping[str, Callable[[Step], list[Node]]] = MappingProxyType(
    {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
)
