"""ONNX's If, Loop and Scan: followed now where that can be known, else branches and loops of the IR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmc.compiler.frontends.composed import joined
from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.frontends.onnx_parts import backwards
from llmc.compiler.frontends.onnx_values import Items, Sizes, Unsized, Value, known
from llmc.compiler.frontends.onnx_while import passed_on, trips_of
from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import input_, results

_UNROLLED = 32  # iterations that are written out
_KNOWN_END = 1 << 31

Results = tuple["Value | None", ...]


class Captured:
    """Values from around bodies, as their inputs: constants and sizes are the same inside."""

    def __init__(self) -> None:
        self.inner: dict[Node, Node] = {}

    def __call__(self, value: Value) -> Value:
        if isinstance(value, Items):
            items = (item if isinstance(item, Unsized) else self(item) for item in value.items)
            return Items(tuple(items))  # type: ignore[arg-type]
        if isinstance(value, Sizes) or value.op == "constant":
            return value
        if value not in self.inner:
            self.inner[value] = input_(f"captured{len(self.inner)}", value.dtype, value.shape)
        return self.inner[value]


@onnx_op("If")
def _if(call: Call) -> Results:
    condition = known(call.value(0))
    bodies = [call.attributes[name] for name in ("then_branch", "else_branch")]
    if condition is not None and not any(hasattr(c, "free_symbols") for c in condition.reshape(-1)):
        body = bodies[0 if bool(condition.reshape(())) else 1]
        return call.scope.body(body).results(body)  # type: ignore[no-any-return]
    captured = Captured()
    outputs = [_data(call, call.scope.body(body, captured).results(body)) for body in bodies]
    alike = all(a.type == b.type for a, b in zip(*outputs, strict=True))
    call.require(alike, "branches whose results are not of one type and shape", "use Where")
    inputs = tuple(captured.inner.values())
    graphs = [Graph(inputs, {f"y{i}": node for i, node in enumerate(made)}) for made in outputs]
    condition_node = call.reshape(call.node(0), ())
    node = call.op("branch", condition_node, *captured.inner, then=graphs[0], otherwise=graphs[1])
    return results(node)


def _data(call: Call, values: Sequence[Value | None]) -> list[Node]:
    return [call.data(value) for value in values if value is not None]


# --- loops


@onnx_op("Loop")
def _loop(call: Call) -> Results:
    """Written out where it is short, or its values change their shape; else a loop of the IR."""
    count = known(call.value(0)) if call.has(0) else None
    trips = None if count is None else count.reshape(()).item()
    endless = isinstance(trips, int) and trips >= _KNOWN_END
    counts = endless or not call.has(0)
    if counts:
        trips = trips_of(call)
        call.require(trips is not None or not endless, "a Loop without an end that is known")
    call.require(trips is not None, "a Loop whose length is computed from the values of tensors")
    if isinstance(trips, int) and trips <= _UNROLLED:
        return _unrolled(call, trips)
    return _kept(call, trips, counts)


def _unrolled(call: Call, trips: int) -> Results:
    graph = call.attributes["body"]
    going: Value | None = call.value(1) if call.has(1) else call.number(True, "bool")
    values: list[Value | None] = [call.value(i) for i in range(2, len(call.inputs))]
    kinds, parts = list(call.kinds[2:]), []
    for trip in range(max(trips, 0)):
        if not _goes_on(going):
            break
        scope = call.scope.body(graph)
        given = [call.number(trip, "i64"), call.number(True, "bool"), *values]
        for info, value, kind in zip(graph.input, given, [7, 9, *kinds], strict=True):
            scope.keep(info.name, value, kind)
        going, *made = scope.results(graph)
        values, kinds = made[: len(values)], [scope.kind(o.name) for o in graph.output[1:]][: len(values)]
        parts.append(_data(call, made[len(values) :]))
    stacked = [
        joined(call, [call.reshape(p, (1, *p.shape)) for p in each], 0) for each in zip(*parts, strict=True)
    ]
    call.require(bool(parts) or len(graph.output) == 1 + len(values), "a Loop of nothing that stacks results")
    return (*values, *stacked)


def _goes_on(condition: Value | None) -> bool:
    array = known(condition)
    if array is None:
        raise UnsupportedError("a Loop that ends when a condition on values holds", "give it a fixed length")
    return bool(array.reshape(()))


def _kept(call: Call, trips: Any, counts: bool) -> Results:
    """The number of the iteration is scanned; conditions must hold throughout, but of a loop that counts itself.

    What a body hands on as it is lies outside.
    """
    graph, captured = call.attributes["body"], Captured()
    values = [call.value(i) for i in range(2, len(call.inputs))]
    moving = [i for i in range(len(values)) if not passed_on(graph, i)]
    call.require(counts or not call.has(1) or _goes_on(call.value(1)), "a Loop that does not begin")
    carried = [call.data(values[i]) for i in moving]
    scope = call.scope.body(graph, captured)
    at = input_("at", "i64", ())
    states = [input_(f"carried{i}", n.dtype, n.shape) for i, n in enumerate(carried)]
    inside: list[Value] = [captured(value) for value in values]
    for i, state in zip(moving, states, strict=True):
        inside[i] = state
    given = [at, call.number(True, "bool"), *inside]
    for info, value, kind in zip(graph.input, given, [7, 9, *call.kinds[2:]], strict=True):
        scope.keep(info.name, value, kind)
    going, *made = scope.results(graph)
    call.require(counts or _goes_on(going), "a Loop that ends early")
    kept = [*(made[i] for i in moving), *made[len(values) :]]
    body = Graph((at, *states, *captured.inner.values()), _named(_data(call, kept)))
    order = call.op("iota", length=trips)
    node = call.op(
        "loop", order, *carried, *captured.inner, body=body, count=trips, scanned=1, carried=len(carried)
    )
    found = results(node)
    after: list[Value | None] = list(values)
    for i, result in zip(moving, found, strict=False):
        after[i] = result
    return (*after, *found[len(moving) :])


def _named(nodes: Sequence[Node]) -> dict[str, Node]:
    return {f"y{i}": node for i, node in enumerate(nodes)}


@onnx_op("Scan")
def _scan(call: Call) -> Results:
    """Slices in, slices out: a loop of the IR. Those that run backwards are turned round before and after."""
    call.require(call.opset >= 9, "a Scan of before opset 9")
    graph, captured = call.attributes["body"], Captured()
    scanned = call.attributes["num_scan_inputs"]
    first, rest = _nodes(call, 0, len(call.inputs) - scanned), _nodes(call, len(call.inputs) - scanned, None)
    axes, turned = (call.attribute(f"scan_input_{n}", [0] * scanned) for n in ("axes", "directions"))
    slices = [_first(call, x, axis, back) for x, axis, back in zip(rest, axes, turned, strict=True)]
    inside = [input_(f"state{i}", n.dtype, n.shape) for i, n in enumerate(first)]
    parts = [input_(f"slice{i}", n.dtype, n.shape[1:]) for i, n in enumerate(slices)]
    scope = call.scope.body(graph, captured)
    for info, value, kind in zip(graph.input, (*inside, *parts), call.kinds, strict=True):
        scope.keep(info.name, value, kind)
    made = _data(call, scope.results(graph))
    body = Graph((*parts, *inside, *captured.inner.values()), _named(made))
    count = slices[0].shape[0]
    node = call.op(
        "loop",
        *slices,
        *first,
        *captured.inner,
        body=body,
        count=count,
        scanned=scanned,
        carried=len(first),
    )
    found = results(node)
    return (*found[: len(first)], *_outwards(call, found[len(first) :]))


def _nodes(call: Call, start: int, stop: int | None) -> list[Node]:
    return [call.node(i) for i in range(len(call.inputs))[start:stop]]


def _first(call: Call, x: Node, axis: int, back: int) -> Node:
    axis %= x.type.rank
    x = call.transpose(x, (axis, *(a for a in range(x.type.rank) if a != axis)))
    return backwards(call, x, 0) if back else x


def _outwards(call: Call, found: Sequence[Node]) -> list[Node]:
    axes, turned = (call.attribute(f"scan_output_{n}", [0] * len(found)) for n in ("axes", "directions"))
    made = []
    for x, axis, back in zip(found, axes, turned, strict=True):
        x, rank = backwards(call, x, 0) if back else x, x.type.rank
        axis %= rank
        made.append(call.transpose(x, (*range(1, axis + 1), 0, *range(axis + 1, rank))))
    return made
