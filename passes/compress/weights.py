"""What the compression passes share: the weights of products, what to leave out, graphs whose shapes change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from llmc.compiler.graph import Graph, Node, Source, Weight
from llmc.compiler.ops import OPS, constant
from llmc.errors import LlmcError
from llmc.passes.match import is_of_adapter

Array = np.ndarray[Any, Any]
Make = Callable[[tuple[Node, ...]], Node]


@dataclass(frozen=True)
class Product:
    """A `linear` and its weight `[n, k]`, decoded if it is stored compressed."""

    node: Node
    weight: Node
    array: Array

    @property
    def place(self) -> str:
        """The module, for messages."""
        return place(self.node)


def place(node: Node) -> str:
    """Where a node comes from: its module, else the name of its weight."""
    names = [i.attributes["value"].name for i in node.inputs if i.op == "constant"]
    return str(node.source) or next(iter(names), node.op)


def values(node: Node) -> Array | None:
    """The array of a constant, or of a compressed weight decoded; None for anything computed."""
    if node.op == "constant":
        weight = node.attributes["value"]
        assert isinstance(weight, Weight)
        return weight.array
    if OPS[node.op].stored and all(i.op == "constant" for i in node.inputs):
        arrays = [i.attributes["value"].array for i in node.inputs]
        return np.asarray(OPS[node.op].reference(*arrays, **node.attributes))
    return None


def products(graph: Graph, skip: Sequence[str] = (), *, decode: bool = False) -> list[Product]:
    """As `linears`, one for each weight: layers may share theirs."""
    found: dict[Node, Product] = {}
    for product in linears(graph, skip, decode=decode):
        found.setdefault(product.weight, product)
    return list(found.values())


def linears(graph: Graph, skip: Sequence[str] = (), *, decode: bool = False) -> list[Product]:
    """Every `linear` with a constant weight, in order.

    Args:
        skip: patterns such as `*.pooler.*` of modules or weight names to leave out.
        decode: whether compressed weights count too.

    Raises:
        LlmcError: a pattern of `skip` fits no product.
    """
    found: list[Product] = []
    arrays: dict[Node, Array | None] = {}
    unused = set(skip)
    for node in graph.nodes:
        if node.op != "linear" or is_of_adapter(node):
            continue
        weight = node.inputs[1]
        if weight not in arrays:
            arrays[weight] = values(weight) if decode or weight.op == "constant" else None
        if (array := arrays[weight]) is None:
            continue
        hits = {p for p in skip if _fits(node, p)}
        unused -= hits
        if not hits:
            found.append(Product(node, weight, array))
    _all_used(graph, unused)
    return found


def skipped(graph: Graph, nodes: Sequence[Node], skip: Sequence[str]) -> set[Node]:
    """Those of some convolutions whose module or weight a pattern names.

    Raises:
        LlmcError: a pattern fits none.
    """
    _all_used(graph, {p for p in skip if not any(_fits(node, p) for node in nodes)}, "conv2d")
    return {node for node in nodes if any(_fits(node, p) for p in skip)}


def _fits(node: Node, pattern: str) -> bool:
    # not of its bias: equal ones of several modules, such as zeros, are one constant with one name
    names = [w.attributes["value"].name for w in node.inputs[1:2] if w.op == "constant"]
    return any(fnmatchcase(name, pattern) for name in (node.source.path, *names))


def left(graph: Graph, weight: Node, skip: Sequence[str], least: int = 0) -> str:
    """Why a pass over products leaves a weight; empty if no product reads it, or for a reason of the pass's own."""
    readers = [n for n in graph.users[weight] if n.op == "linear" and n.inputs[1] is weight]
    if not readers:
        return ""
    if weight.op != "constant":
        return f"stored as {weight.op}"
    if any(map(is_of_adapter, readers)):
        return "of an adapter"
    if all(any(_fits(node, pattern) for pattern in skip) for node in readers):
        return "named by skip"
    return f"below {least} values" if values_of(weight) < least else ""


def values_of(weight: Node) -> int:
    """How many values a constant has."""
    return int(weight.attributes["value"].array.size)


def _all_used(graph: Graph, unused: set[str], op: str = "linear") -> None:
    if unused:
        places = sorted({n.source.path for n in graph.nodes if n.op == op})
        what = "product" if op == "linear" else "convolution"
        raise LlmcError(
            f"skip: no {what} fits {sorted(unused)[0]!r}",
            found=", ".join(places[:6]) + (" ..." if len(places) > 6 else ""),
            hint="a pattern is matched against the whole module path; * stands for anything",
        )


def rebuild(graph: Graph, changes: Mapping[Node, Make]) -> Graph:
    """`graph` with each node of `changes` made anew from its new inputs; types may change on the way.

    `Graph.replace` is for changes that keep every type; this one carries nodes whose shapes shrink together.
    """
    done: dict[Node, Node] = {}
    for node in graph.nodes:
        inputs = tuple(done[i] for i in node.inputs)
        if node in changes:
            done[node] = changes[node](inputs)
        elif all(a is b for a, b in zip(inputs, node.inputs, strict=True)):
            done[node] = node
        else:
            done[node] = node.with_inputs(inputs)
    if all(a is b for a, b in done.items()):
        return graph
    return graph.exchanged(done.__getitem__)


def replaced(graph: Graph, table: Mapping[Node, Node]) -> Graph:
    """`graph` with nodes exchanged for others of the same type."""
    return rebuild(graph, {old: _always(new) for old, new in table.items()})


def _always(node: Node) -> Make:
    return lambda inputs: node


def taken(weight: Node, index: Array, axis: int = 0) -> Node:
    """The rows (or columns) `index` of a constant, under its name."""
    value = weight.attributes["value"]
    return constant(
        Weight(np.ascontiguousarray(np.take(value.array, index, axis)), value.name), "", weight.source
    )


def stored(array: Array, like: Node, suffix: str = "") -> Node:
    """A constant named after the constant (or compressed weight) it replaces."""
    named = like
    while named.op != "constant":
        named = named.inputs[-1]
    name = named.attributes["value"].name.removesuffix(".values")
    return constant(Weight(array, f"{name}{suffix}"), "", Source(f"{name}{suffix}" or like.source.path))


def share_of(what: str, value: float) -> None:
    """Refuse a share that is not in 0 <= value < 1."""
    if not 0 <= value < 1:
        raise LlmcError(f"{what} must be at least 0 and below 1", found=f"{value:g}", hint="0.3 is 30 %")


def readers(graph: Graph, node: Node) -> Iterator[Node]:
    """Who reads `node`; where it is a root of the graph, `node` itself stands for the caller."""
    yield from graph.users[node]
    if any(root is node for root in graph.roots):
        yield node
