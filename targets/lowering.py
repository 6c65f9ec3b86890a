"""Graph to kernel calls: tables op -> lowering, and the one way to override them.

A lowering may decline by returning None: then the next one for the op is asked. So what is special comes first:
a tuned schedule before what a package registered, that before a weight's storage format, the general kernel last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llmc.compiler import extensions
from llmc.compiler.calls import Call, Region
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS
from llmc.errors import LlmcError

Lowering = Callable[[Node], Call | None]
Lowerings = Mapping[str, Lowering]

_REGISTERED: dict[str, dict[str, Lowering]] = {}  # backend -> op -> lowering


def register(backend: str, op: str, lowering: Lowering) -> None:
    """Let `lowering` make the calls for `op` on `backend`, unless it declines; the last registered is asked first."""
    table = _REGISTERED.setdefault(backend, {})
    table[op] = _first([lowering, table[op]]) if op in table else lowering


def registered(backend: str) -> Lowerings:
    """What was registered for `backend`, and what extensions have for it."""
    return layered(_REGISTERED.get(backend, {}), extensions.kernels(backend))


def layered(*tables: Lowerings) -> dict[str, Lowering]:
    """One table of several: the first is asked first."""
    found: dict[str, list[Lowering]] = {}
    for table in tables:
        for op, lowering in table.items():
            found.setdefault(op, []).append(lowering)
    return {op: _first(lowerings) for op, lowerings in found.items()}


def _first(lowerings: list[Lowering]) -> Lowering:
    return lowerings[0] if len(lowerings) == 1 else _InTurn(tuple(lowerings))


@dataclass(frozen=True)
class _InTurn:
    """The answer of the first that has one."""

    lowerings: tuple[Lowering, ...]

    def __call__(self, node: Node) -> Call | None:
        calls = (lowering(node) for lowering in self.lowerings)
        return next((call for call in calls if call is not None), None)


def free_ops() -> frozenset[str]:
    """Ops that need no call.

    Inputs, states and constants are there, views share their memory, and what `result` picks its node has written.
    """
    return frozenset({"input", "state", "constant", "result"} | {name for name, op in OPS.items() if op.view})


_FUSE = "`quantize` writes levels out, `qfuse` makes kernels of them: run it behind, or leave both to --quant"
REGIONS = frozenset({"loop", "branch"})  # the program writes them in C around the calls of their bodies


def lower(graph: Graph, table: Lowerings, backend: str = "this target") -> tuple[Call | Region, ...]:
    """The calls that compute `graph` by `table`, in an order that respects its edges.

    Only what an output or another call reads is computed: a stored weight whose products decode it needs no call.

    Args:
        backend: who has no kernel, in the message.

    Raises:
        LlmcError: nodes have no kernel, or none for their dtypes; all of them are listed.
    """
    refused: list[str] = []
    calls = _lowered(graph, table, refused)
    if refused:
        raise LlmcError(
            f"{len(refused)} operations have no kernel on {backend}",
            found="\n         ".join(sorted(set(refused))),
            hint=_FUSE if any(node.op == "dequantize" for node in graph.everywhere()) else None,
        )
    return calls


def _lowered(graph: Graph, table: Lowerings, refused: list[str]) -> tuple[Call | Region, ...]:
    """The calls of a graph or body; `refused` gets what has none."""
    calls: list[Call | Region] = []
    wanted, free = set(graph.roots), free_ops()
    for node in reversed(graph.nodes):
        if node not in wanted:
            continue
        if node.op in REGIONS:
            calls.append(Region(node, tuple(_lowered(body, table, refused) for body in node.bodies)))
        call = _call(node, table, refused) if node.op not in free | REGIONS else None
        if call is None:
            wanted.update(node.inputs)
            continue
        calls.append(call)
        wanted.update(operand for operand in call.operands if isinstance(operand, Node))
    return tuple(reversed(calls))


def _call(node: Node, table: Lowerings, refused: list[str]) -> Call | None:
    try:
        call = table[node.op](node) if node.op in table else None
    except LlmcError as error:
        call, problem = None, error.problem
    else:
        problem = node.op
    if call is None:
        refused.append(f"{node.source}: {problem}")
    return call
