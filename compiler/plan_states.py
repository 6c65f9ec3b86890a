"""Where the next values of states go: behind what a state holds, or into memory of their own.

Rows that are appended lie behind those that are there, so nothing that is read is written, and what a run that fails
has written counts for nothing. Every other next value goes to a second buffer, which the runtime exchanges for the
first when the run has succeeded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from llmc.compiler.calls import Call, Region
from llmc.compiler.dims import dim_names
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS
from llmc.compiler.plan_bodies import Move, Step
from llmc.compiler.slots import Place, nbytes, root

LEAVES = frozenset({"input", "state", "constant", "append"})  # values that no call writes


def held(node: Node) -> Node:
    """What `node` is a view of, as large as itself: an `append` is larger than the state that it is a view of."""
    while OPS[node.op].view and node.op != "append":
        node = node.inputs[0]
    return node


def state_use(graph: Graph, name: str) -> str:
    """What a function does to a state: "unused", "read", "appended" or "replaced"."""
    state = next((node for node in graph.states if node.attributes["name"] == name), None)
    if state is None:
        return "unused"
    update = graph.updates.get(name, state)
    if update.op == "append":
        return "appended"
    if held(update) is not state:
        return "replaced"
    kept = {held(node) for node in graph.outputs.values()} | {
        held(graph.updates[n]) for n in graph.updates if n != name
    }
    return "read" if graph.users[state] or state in kept or _tells(graph, state) else "unused"


def _tells(graph: Graph, state: Node) -> bool:
    """Whether sizes of other states follow from its own, as those of what is made of a sound do from its length."""
    own = {str(size) for size in state.shape}
    return any(own & dim_names(size) - {str(size)} for other in graph.states for size in other.shape)


def place_updates(
    graph: Graph, states: Sequence[str], places: dict[Node, Place], joint: Collection[Node] = ()
) -> list[tuple[Node, Move]]:
    """Have next values computed where they belong.

    Args:
        states: the names of the module's states: their numbers.
        places: has the inputs and states, and gets the values that calls are to write there.
        joint: what one call computes or reads for all sessions of a run, whose states are not in one place.

    Returns:
        (next value, move) for those that are somewhere else already.
    """
    moves = []
    for name, update in graph.updates.items():
        index = states.index(name)
        if update.op == "append":
            state, value = update.inputs
            place = Place("state", index, nbytes(state))
        elif state_use(graph, name) == "replaced":
            value, place = update, Place("next", index)
        else:
            continue
        source = held(value)
        if source.op in LEAVES or source in places or source in joint:
            moves.append((update, Move(source, place)))
        else:
            places[source] = place
    return moves


def with_moves(
    steps: Sequence[Step], calls: Sequence[Call | Region], moves: Iterable[tuple[Node, Move]]
) -> list[Step]:
    """`steps`, one for each of `calls`, and the moves.

    What a call has computed is moved behind it, before its slot is another value's; what is appended and was there
    already, before the first call that reads it.
    """
    before: dict[int, list[Move]] = {}
    ends = {i: call.operands[-1] for i, call in enumerate(calls) if isinstance(call, Call)}
    written = {root(node): i + 1 for i, node in ends.items() if isinstance(node, Node)}
    for update, move in moves:
        reading = (i for i, call in enumerate(calls) if _reads(call, update))
        at = next(reading, len(calls)) if update.op == "append" else len(calls)
        before.setdefault(written.get(move.node, at), []).append(move)
    placed = [part for i, step in enumerate(steps) for part in (*before.get(i, ()), step)]
    return [*placed, *before.get(len(calls), ())]


def _reads(call: Call | Region, append: Node) -> bool:
    operands = call.node.inputs if isinstance(call, Region) else call.operands[:-1]
    return any(isinstance(o, Node) and root(o) is append.inputs[0] and held(o) is append for o in operands)
