"""Residual streams: what products and tables add up, and norms and products read, whose columns may be exchanged.

A stream's values may be multiplied by an orthogonal matrix if all that makes and reads them is turned as well, and only
sums, moves of whole rows and norms without bias to a column come between (Ashkboos et al. 2024, "SliceGPT").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from llmc.compiler.graph import Graph, Node
from llmc.passes.match import is_of_adapter, scalar, weight

NORMS = ("rms_norm", "layer_norm")
_PLAIN = {"bias", "residual"}  # epilogues that products into a stream may have


@dataclass
class Stream:
    """Values that share their columns.

    Args:
        values: node -> the norm whose gain and bias are still to be applied to it by what reads it; None: no norm's.
        readers: products of such values -> likewise.
        writers: products and look-ups whose results are such values.
        norms: those that read the stream.
        reasons: what else touches it, so that it has to stay.
    """

    values: dict[Node, Node | None] = field(default_factory=dict)
    readers: dict[Node, Node | None] = field(default_factory=dict)
    writers: list[Node] = field(default_factory=list)
    norms: list[Node] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def tables(self) -> set[Node]:
        """The tables of which rows are such values."""
        return {node.inputs[0] for node in self.writers if node.op == "embedding"}

    @property
    def centred(self) -> bool:
        """Whether all that reads it subtracts the mean first."""
        return self.norms[0].op == "layer_norm"


def streams(graph: Graph) -> Iterator[Stream]:
    """Of all norms of `graph` over the last axis, those that read one stream together."""
    seen: set[Node] = set()
    for node in graph.nodes:
        if node.op in NORMS and node not in seen:
            found = _Walk(graph).around(node.inputs[0])
            seen.update(found.norms)
            yield found


class _Walk:
    """From one value to all that share its columns."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.found = graph, Stream()
        self.roots = frozenset(graph.roots)
        self.waiting: list[Node] = []

    def around(self, value: Node) -> Stream:
        found = self.found
        self.reach(value, None)
        while self.waiting:
            node = self.waiting.pop()
            norm = found.values[node]
            if node in self.roots:
                self.refuse("that the caller reads")
            if norm is not node:
                self.made(node, norm)
            users = self.graph.users[node] if weight(node) is None else ()  # constants are copied
            for user in dict.fromkeys(users):
                self.read(node, user, norm)
        if len({norm.op for norm in found.norms}) > 1:
            self.refuse("of two kinds of norms")
        if found.centred and None in found.readers.values():
            self.refuse("that a product reads without a norm")
        heads = [node for node in found.readers if node.inputs[1] in found.tables]
        if heads and (found.centred or any(n in found.writers or not found.readers[n] for n in heads)):
            self.refuse("with a table that is a head as well, and no gains alone between them")
        return found

    def refuse(self, reason: str) -> None:
        self.found.reasons.append(f"where the stream is one {reason}")

    def reach(self, node: Node, norm: Node | None) -> None:
        """`node` has these columns."""
        if node not in self.found.values:
            self.found.values[node] = norm
            self.waiting.append(node)
        elif self.found.values[node] is not norm:
            self.refuse("that is added to a norm of it")

    def made(self, node: Node, norm: Node | None) -> None:
        """What a value is made of."""
        if (rows := _rows(node)) is not None:
            for part in rows:
                self.reach(part, norm)
            return
        match node:
            case Node("add", parts) if all(part.shape[-1:] == node.shape[-1:] for part in parts):
                for part in parts:
                    self.reach(part, None)
            case Node("mul" | "div", (x, by)) if scalar(by) is not None:
                self.reach(x, None)
            case Node("linear", _, {"epilogue": steps}) if {*steps} <= _PLAIN:
                self.written(node)
            case Node("embedding", (table, _)) if _floats(table) and table.type.rank == 2:
                self.found.writers.append(node)
            case _:
                if not _floats(node):
                    self.refuse(f"that {node.op} makes")

    def written(self, node: Node) -> None:
        """A product writes."""
        if is_of_adapter(node) or not all(map(_floats, _own(node))):
            self.refuse("that a product without plain weights writes")
        for extra in _extras(node, "residual"):
            self.reach(extra, None)
        self.found.writers.append(node)

    def read(self, node: Node, user: Node, norm: Node | None) -> None:
        """What reads a value."""
        if (rows := _rows(user)) is not None and any(part is node for part in rows):
            self.reach(user, norm)
            return
        match user:
            case Node("linear", (x, _, *extras), {"epilogue": steps}) if x is node and node not in extras:
                plain = all(map(_floats, _own(user))) and "bias" not in steps[1:]
                if is_of_adapter(user) or not plain:
                    self.refuse("that a product without plain weights reads")
                self.found.readers[user] = norm
            case Node("linear", (x, w, *_)) if x is not node and w is not node and norm is None:
                self.reach(user, None)
            case Node("rms_norm" | "layer_norm", (x, *own)) if norm is None and all(map(_floats, own)):
                self.found.norms.append(user)
                self.reach(user, user)
            case Node("add") if norm is None:
                self.reach(user, None)
            case Node("mul" | "div", (x, by)) if norm is None and x is node and scalar(by) is not None:
                self.reach(user, None)
            case _:
                self.refuse(f"that {user.op} reads")


def _floats(node: Node) -> bool:
    return weight(node) is not None and node.dtype == "f32"


def _own(product: Node) -> tuple[Node, ...]:
    """Weight and bias."""
    return product.inputs[1], *_extras(product, "bias")


def _extras(product: Node, step: str) -> Iterator[Node]:
    """What an epilogue reads in steps of this name."""
    reading = [s for s in product.attributes["epilogue"] if s in _PLAIN]
    return (extra for extra, s in zip(product.inputs[2:], reading, strict=True) if s == step)


def _rows(node: Node) -> tuple[Node, ...] | None:
    """What a node takes whole rows of; None if it does something else."""
    last = node.type.rank - 1
    match node:
        case Node("transpose", (x,), {"perm": perm}) if perm[-1] == last:
            return (x,)
        case Node("reshape" | "expand", (x,)) if x.shape[-1:] == node.shape[-1:]:
            return (x,)
        case Node("slice", (x,), {"axis": axis}) if axis != last:
            return (x,)
        case Node("concat", parts, {"axis": axis}) if axis != last:
            return parts
        case Node("embedding", (x, _)) if weight(x) is None and x.type.rank > 1:
            return (x,)
    return None
