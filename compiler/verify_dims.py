"""What the verifier asks of dims: names, bounds, and that each gets a size."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sympy

from llmc.compiler.counted import counted_dim, counted_dims
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node, results_of
from llmc.compiler.ops import OPS
from llmc.compiler.verify_states import broken, growing_dims

RESERVED = frozenset({"inf", "nan", "weight", "tensor", "Max", "Min", "floor"})  # words of the text form


def check_dims(graph: Graph) -> None:
    """The invariants of dims in one function; `verify` lists them."""
    _check_symbols(graph)
    _check_bounds(graph)
    _check_counted(graph)
    _check_dims_known(graph)


def symbols_in(value: Any) -> frozenset[Any]:
    """The sympy symbols in an attribute value or shape."""
    if isinstance(value, tuple):
        return frozenset().union(*map(symbols_in, value))
    return frozenset(value.free_symbols) if isinstance(value, sympy.Expr) else frozenset()


def symbols_of(node: Node) -> frozenset[Any]:
    """Those in a node's types and attributes."""
    return symbols_in((*(kind.shape for kind in results_of(node.type)), *node.attributes.values()))


def used_dims(graph: Graph) -> dict[str, Node]:
    """dim name -> the first node that uses it."""
    used: dict[str, Node] = {}
    for node in graph.everywhere():
        for name in sorted(s.name for s in symbols_of(node)):
            used.setdefault(name, node)
    return used


def unread_dims(graph: Graph) -> frozenset[str]:
    """Dims of inputs that nothing reads and of nothing else, so that no arithmetic has them: those may be 0."""
    read = {*graph.roots, *(i for node in graph.nodes for i in node.inputs)}
    idle = {node for node in graph.inputs if node not in read}
    busy = (node for node in graph.everywhere() if node not in idle)
    return _names(idle) - _names(busy)


def joined_dims(graph: Graph) -> frozenset[str]:
    """Dims of inputs that are joined with more before all else, as the past of a decoder is: they may be 0."""
    users = graph.users
    found = {
        size.name: all(_is_joined(other, size, users) for other in graph.inputs if size in other.shape)
        for node in graph.inputs
        for size in node.shape[1:]
        if isinstance(size, sympy.Symbol)
    }
    return frozenset(name for name, joined in found.items() if joined)


def _is_joined(node: Node, size: sympy.Symbol, users: Mapping[Node, Sequence[Node]]) -> bool:
    """Whether all that reads the axis of this size puts more behind or before it."""
    return bool(users[node]) and all(_joins(reader, node, size, users) for reader in users[node])


def _joins(reader: Node, node: Node, size: sympy.Symbol, users: Mapping[Node, Sequence[Node]]) -> bool:
    if reader.op == "concat":
        axis = reader.attributes["axis"]
        return bool(node.shape[axis] == size and reader.shape[axis] != size)
    if reader.op == "slice" and size not in reader.shape:
        return True  # a call in which it is too short is refused
    op = OPS[reader.op]
    return (op.moves or op.view) and size in reader.shape and _is_joined(reader, size, users)


def _names(nodes: Iterable[Node]) -> frozenset[str]:
    return frozenset(s.name for node in nodes for s in symbols_of(node))


def _check_bounds(graph: Graph) -> None:
    used = used_dims(graph)
    for name, node in used.items():
        if name not in graph.dims:
            raise broken(f"dim {name!r} has no bounds", node)
    positive = used.keys() - growing_dims(graph) - unread_dims(graph) - joined_dims(graph)
    for name, (low, high) in graph.dims.items():
        if not name.isidentifier() or keyword.iskeyword(name) or name in RESERVED:
            raise broken(f"{name!r} cannot be the name of a dim")
        least = 1 if name in positive else 0
        if type(low) is not int or type(high) is not int or not least <= low <= high:
            raise broken(
                f"dim {name!r} has bounds {low}..{high}", hint=f"bounds are integers, {least} <= low <= high"
            )


def _check_symbols(graph: Graph) -> None:
    for node in graph.everywhere():
        for found in symbols_of(node):
            if found != symbol(found.name):
                raise broken(f"the symbol {found.name!r} was not made by `dims.symbol`", node)


def _check_counted(graph: Graph) -> None:
    counted = counted_dims(graph)
    shapes = frozenset(str(s) for node in graph.inputs for s in symbols_in(node.shape))
    for node in graph.nodes:
        name = counted_dim(node)
        if not name:
            continue
        mask = node.inputs[0]
        if mask.op != "input" or mask.attributes["default"] == 0:
            raise broken("the mask that places are counted by is not an input, or 0 by default", node)
        if mask is not counted[name]:
            raise broken(f"dim {name!r} is counted from two masks", node)
        if name in shapes:
            raise broken(f"dim {name!r} is counted, and the size of an input", node)


def _check_dims_known(graph: Graph) -> None:
    required = [node for node in graph.inputs if node.attributes["default"] is None]
    giving = (*required, *graph.states)
    known = {str(d) for node in giving for d in node.shape if isinstance(d, sympy.Symbol)}
    known |= counted_dims(graph).keys()
    what = "required input or state" if graph.states else "required input"
    for name, node in used_dims(graph).items():
        if name not in known:
            raise broken(f"no {what} has an axis of size {name!r}", node)
