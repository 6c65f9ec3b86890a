"""Loops and branches: Scan and If, whose bodies see the values around them."""

from __future__ import annotations

from collections.abc import Sequence

from llmc.compiler.graph import Graph, Node, results_of
from llmc.compiler.ops import make
from llmc.compiler.to_onnx.emitter import Body, Emitter, Scope
from llmc.compiler.to_onnx.packed_rows import packed_nodes
from llmc.compiler.to_onnx.table import exports


@exports("result")
def _result(e: Emitter, node: Node) -> str:
    return e.values(node.inputs[0])[node.attributes["index"]]


@exports("loop")
def _loop(e: Emitter, node: Node) -> Sequence[str]:
    """Scan; it counts by what is scanned, so a loop over nothing scans its numbers."""
    a, body = node.attributes, node.attributes["body"]
    scanned, carried = a["scanned"], a["carried"]
    operands = e.inputs(node)
    if a["count"] == 0:
        return [*operands[scanned : scanned + carried], *_nothing(e, node, carried)]
    slices, state = operands[:scanned], operands[scanned : scanned + carried]
    numbers = [] if scanned else [make("iota", (), length=a["count"])]
    given = [*map(e.value, numbers), *slices]
    inner = _body(e, body, range(scanned, scanned + carried), range(scanned), operands, numbers)
    stacked = len(body.outputs) - carried
    directions = {
        "scan_input_directions": (int(a["reverse"]),) * len(given),
        "scan_output_directions": (int(a["reverse"]),) * stacked,
    }
    used = {name: value for name, value in directions.items() if any(value)}
    inputs = (*state, *given)
    return e.several("Scan", inputs, len(body.outputs), body=inner, num_scan_inputs=len(given), **used)


def _nothing(e: Emitter, node: Node, carried: int) -> list[str]:
    """What a loop stacks that does not run, which ONNX Runtime refuses."""
    return [e.expand(e.number(0, kind.dtype), kind.shape) for kind in results_of(node.type)[carried:]]


@exports("branch")
def _branch(e: Emitter, node: Node) -> Sequence[str]:
    condition, *operands = e.inputs(node)
    sides = [_body(e, node.attributes[name], (), (), operands, ()) for name in ("then", "otherwise")]
    count = len(node.attributes["then"].outputs)
    return e.several("If", (condition,), count, then_branch=sides[0], else_branch=sides[1])


def _body(
    e: Emitter,
    body: Graph,
    carried: Sequence[int],
    scanned: Sequence[int],
    operands: Sequence[str],
    numbers: Sequence[Node],
) -> Body:
    """A graph inside.

    Args:
        carried, scanned: which of the body's inputs are its own, first those that are carried; the others are values
            around it.
        operands: these values.
        numbers: what is scanned though the body does not read it.
    """
    with e.within(Scope(e.scope)) as scope:
        own = [
            (e.free(f"{body.inputs[at].attributes['name']}_in"), body.inputs[at])
            for at in (*carried, *scanned)
        ]
        extra = [(e.free("number"), make("dim", (), value=1)) for _ in numbers]
        inside = {node: name for name, node in own}
        for at, node in enumerate(body.inputs):
            scope.values[node] = (inside.get(node) or operands[at],)
        write_nodes(e, body)
        outputs = [(e.copy(e.value(n), e.free(f"{name}_out")), n) for name, n in body.outputs.items()]
    inputs = [*own[: len(carried)], *extra, *own[len(carried) :]]
    return Body(inputs, outputs, scope.steps)


def write_nodes(e: Emitter, graph: Graph) -> None:
    """The nodes of a graph in order, but for constants, which are written where they are read, and packed rows."""
    packed = packed_nodes(graph)
    for node in graph.nodes:
        if node.op != "constant" and node not in packed:
            e.values(node)
