"""Graph to kernel calls: one table, op -> lowering, tested complete."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmc.compiler.calls import Call, Region
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS
from llmc.errors import LlmcError
from llmc.targets.cpu.attention import attention, ragged_attention
from llmc.targets.cpu.conv import conv
from llmc.targets.cpu.elementwise import elementwise, movement
from llmc.targets.cpu.products import cell, decoded, linear, matmul, qlinear, split_rows
from llmc.targets.cpu.rows import norm, quantised, ragged, reduction

Lowering = Callable[[Node], Call]

LOWERINGS: Mapping[str, Lowering] = {
    **elementwise.LOWERINGS,
    **movement.LOWERINGS,
    **reduction.LOWERINGS,
    **{**linear.LOWERINGS, **decoded.LOWERINGS},
    **cell.LOWERINGS,
    **matmul.LOWERINGS,
    **attention.LOWERINGS,
    **norm.LOWERINGS,
    **conv.LOWERINGS,
    **quantised.LOWERINGS,
    **qlinear.LOWERINGS,
    **split_rows.LOWERINGS,
    **ragged.LOWERINGS,
    **ragged_attention.LOWERINGS,
}

# These hold no value of their own to compute: inputs, states and constants are there, views share their input's memory,
# and the node that `result` picks from has written it.
FREE = frozenset({"input", "state", "constant", "result"} | {name for name, op in OPS.items() if op.view})
REGIONS = frozenset({"loop", "branch"})  # the program writes them in C around the calls of their bodies


def lower(graph: Graph, table: Mapping[str, Lowering] = LOWERINGS) -> tuple[Call | Region, ...]:
    """The calls that compute `graph` by the kernels of `table`, in an order that respects its edges.

    Raises:
        LlmcError: an op has no kernel for its dtypes; every such node is listed.
    """
    refused: list[str] = []
    calls = _lowered(graph, table, refused)
    if refused:
        raise LlmcError(
            f"{len(refused)} operations have no kernel on this target",
            found="\n         ".join(sorted(set(refused))),
        )
    return calls


def _lowered(graph: Graph, table: Mapping[str, Lowering], refused: list[str]) -> tuple[Call | Region, ...]:
    calls: list[Call | Region] = []
    kept = set(graph.roots)
    for node in graph.nodes:
        if node.op in FREE or (node not in kept and decoded.decoded_by_readers(node, graph.users[node])):
            continue
        if node.op in REGIONS:
            calls.append(Region(node, tuple(_lowered(body, table, refused) for body in node.bodies)))
            continue
        if node.op not in table:
            refused.append(f"{node.source}: {node.op}")
            continue
        try:
            calls.append(table[node.op](node))
        except LlmcError as error:
            refused.append(f"{node.source}: {error.problem}")
    return tuple(calls)
