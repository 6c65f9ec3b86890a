"""Of which states only the newest positions are read, because all attention to them has a window.

What has left the window of every query to come needs no memory: the runtime lets go of it, in whole blocks of keys, and
hands out addresses as if it were there. So kernels count keys from the first of the text, and make the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmc.compiler.dims import dim, product
from llmc.compiler.graph import Graph, Node
from llmc.compiler.module import Module
from llmc.compiler.ops import OPS
from llmc.compiler.ops.rules import same_dim

ALL = 0  # of a state that is read as a whole


def windows(module: Module) -> list[int]:
    """For each state how many of its newest positions a query sees, its own included; `ALL` where that is not known."""
    return [_window(module, name) for name in module.states]


def _window(module: Module, name: str) -> int:
    found = [width for graph in module.functions.values() for width in _widths(graph, name)]
    return ALL if ALL in found else max(found, default=ALL)


def _widths(graph: Graph, name: str) -> Iterator[int]:
    """Of each way in which a function uses a state."""
    state = next((node for node in graph.states if node.attributes["name"] == name), None)
    if state is None:
        return
    cores = attention_of(graph, state)
    yield from (core.attributes["window"] or ALL for core in cores) if cores else (ALL,)


def attention_of(graph: Graph, state: Node) -> list[Node] | None:
    """The `mha` and `attention` whose keys or values are the rows of a state, those of the call too; None if anything
    else reads them.
    """
    name = state.attributes["name"]
    after = graph.updates.get(name, state)
    others = [*graph.outputs.values(), *(node for n, node in graph.updates.items() if n != name)]
    if after.op != "append" or after.inputs[0] is not state or any(node in (state, after) for node in others):
        return None
    if any(user is not after for user in graph.users[state]):
        return None
    reads = list(_reads(graph, after))
    return [core for core, _ in reads] if all(_is_by_rows(*read, state) for read in reads) else None


def _reads(graph: Graph, value: Node) -> Iterator[tuple[Node, Node]]:
    """What reads `value`, the longer state or a view of it, and as what."""
    ends = {*graph.outputs.values(), *graph.updates.values()}
    for user in graph.users[value]:
        if OPS[user.op].view and user not in ends:
            yield from _reads(graph, user)
        else:
            yield user, value


def _is_by_rows(core: Node, value: Node, state: Node) -> bool:
    """Whether it is attention to `value` as keys or values, a row of the state each, by the newest as queries."""
    if core.op not in ("mha", "attention") or value in (core.inputs[0], *core.inputs[3:]):
        return False
    leading = (1, 1) if core.op == "attention" else (1,)
    if value.shape[:-2] != leading or value.shape[-1] != product(state.shape[1:]):
        return False
    queries, keys = core.inputs[0].shape[-2], value.shape[-2]
    return same_dim(dim(keys - queries), state.shape[0])
