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
    after = graph.updates.get(name, state)
    others = [*graph.outputs.values(), *(node for n, node in graph.updates.items() if n != name)]
    if after.op != "append" or after.inputs[0] is not state or any(node in (state, after) for node in others):
        yield ALL
        return
    yield from (ALL for user in graph.users[state] if user is not after)
    yield from _reads(graph, after, state)


def _reads(graph: Graph, value: Node, state: Node) -> Iterator[int]:
    """Of each that reads `value`, which is the longer state or a view of it."""
    for user in graph.users[value]:
        if OPS[user.op].view and user not in graph.outputs.values() and user not in graph.updates.values():
            yield from _reads(graph, user, state)
        else:
            yield _width(user, value, state)


def _width(core: Node, value: Node, state: Node) -> int:
    """The window of attention whose rows of keys and values are those of the state."""
    if core.op not in ("mha", "attention") or value in (core.inputs[0], *core.inputs[3:]):
        return ALL
    heads = core.op == "attention"
    by_rows = value.shape[:-2] == ((1, 1) if heads else (1,)) and value.shape[-1] == product(state.shape[1:])
    queries, keys = core.inputs[0].shape[-2], value.shape[-2]
    if not by_rows or not same_dim(dim(keys - queries), state.shape[0]):
        return ALL
    return core.attributes["window"] or ALL
