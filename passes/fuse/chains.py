"""Fusion of element-wise ops: a tree whose inner values are read once becomes one `chain`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS, make
from llmc.compiler.rewrite import note

Step = tuple[str, tuple[int, ...], tuple[tuple[str, Any], ...]]


@dataclass
class _Body:
    """A chain being built."""

    inputs: dict[Node, int] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    done: dict[Node, int] = field(default_factory=dict)

    def ref(self, node: Node, inner: set[Node]) -> int:
        """The reference to `node`: an input's number, or `-k` for the result of step k-1."""
        if node not in inner:
            return self.inputs.setdefault(node, len(self.inputs))
        if node not in self.done:
            refs = tuple(self.ref(i, inner) for i in node.inputs)
            self.steps.append((node.op, refs, tuple(sorted(node.attributes.items()))))
            self.done[node] = -len(self.steps)
        return self.done[node]


def fuse_chains(graph: Graph, max_steps: int, max_inputs: int) -> Graph:
    """Replace trees of element-wise nodes by chains.

    A value joins its reader's chain if it has the reader's shape, is simple, and is read by that chain only.
    Smaller values stay outside, so that no work is repeated by broadcasting.
    """
    outputs = set(graph.roots)
    kept = _levels_of_products(graph)
    inside: set[Node] = set()
    groups: dict[Node, set[Node]] = {}
    for root in reversed(graph.nodes):
        if root in inside or root in kept or not _simple(root):
            continue
        group = _grow(root, graph, outputs, max_steps, max_inputs, kept)
        if len(group) > 1:
            groups[root] = group
            inside |= group
    return _rebuilt(graph, groups) if groups else graph


def fuse_chain(node: Node) -> None:
    """f(g(x), y) -> chain(x, y), of element-wise f and g: the name by which the journal knows it."""


def _levels_of_products(graph: Graph) -> set[Node]:
    """What quantises and dequantises the factors of products: integer kernels are made of it later."""
    read = {
        i for n in graph.nodes if n.op in ("linear", "conv2d") for i in n.inputs[:2] if i.op == "dequantize"
    }
    return read | {i for n in read for i in n.inputs[:1] if i.op == "quantize"}


def _simple(node: Node) -> bool:
    return OPS[node.op].elementwise and OPS[node.op].fusible and node.op != "chain"


def _grow(
    root: Node, graph: Graph, outputs: set[Node], max_steps: int, max_inputs: int, kept: set[Node]
) -> set[Node]:
    """The nodes of the chain that ends in `root`, found breadth first."""
    group, edge, outside = {root}, [root], dict[Node, str]()
    while edge:
        for read in edge.pop(0).inputs:
            if read in group or read in kept or not _simple(read):
                continue
            outside[read] = _obstacle(read, root, set(graph.users[read]) <= group and read not in outputs)
            if not outside[read] and len(group) == max_steps:
                outside[read] = f"the chain has {max_steps} steps already"
            if not outside[read] and len(_reads(group | {read})) > max_inputs:
                outside[read] = f"the chain would read more than {max_inputs} values"
            if not outside[read]:
                group.add(read)
                edge.append(read)
    for read, reason in outside.items():
        if reason:
            note(fuse_chain, read, reason)
    return group


def _obstacle(read: Node, root: Node, inner: bool) -> str:
    """Why a value cannot be computed in the chain that ends in `root`."""
    if not inner:
        return "is read elsewhere too"
    if read.shape != root.shape:
        return f"is smaller than the chain, {list(read.shape)} of {list(root.shape)}"
    return ""


def _reads(group: set[Node]) -> set[Node]:
    return {i for node in group for i in node.inputs if i not in group}


def _rebuilt(graph: Graph, groups: dict[Node, set[Node]]) -> Graph:
    replaced: dict[Node, Node] = {}

    def change(before: Node, node: Node) -> Node:
        after = _chained(before, groups[before], replaced) if before in groups else node
        replaced[before] = after
        return after

    return graph.rebuild(change)


def _chained(root: Node, group: set[Node], replaced: dict[Node, Node]) -> Node:
    body = _Body()
    body.ref(root, group)
    inputs = [replaced[i] for i in body.inputs]
    return make("chain", inputs, root.source, body=tuple(body.steps))
