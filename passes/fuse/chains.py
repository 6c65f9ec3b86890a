"""Fusion of element-wise ops: a tree whose inner values are read once becomes one `chain`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS, make

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
    inside: set[Node] = set()
    groups: dict[Node, set[Node]] = {}
    for root in reversed(graph.nodes):
        if root in inside or not _simple(root):
            continue
        group = _grow(root, graph, outputs, max_steps, max_inputs)
        if len(group) > 1:
            groups[root] = group
            inside |= group
    return _rebuilt(graph, groups) if groups else graph


def _simple(node: Node) -> bool:
    return OPS[node.op].elementwise and node.op != "chain"


def _grow(root: Node, graph: Graph, outputs: set[Node], max_steps: int, max_inputs: int) -> set[Node]:
    """The nodes of the chain that ends in `root`, found breadth first."""
    group, edge = {root}, [root]
    while edge:
        for read in edge.pop(0).inputs:
            inner = set(graph.users[read]) <= group and read not in outputs
            if read in group or not inner or not _simple(read) or read.shape != root.shape:
                continue
            if len(group) < max_steps and len(_reads(group | {read})) <= max_inputs:
                group.add(read)
                edge.append(read)
    return group


def _reads(group: set[Node]) -> set[Node]:
    return {i for node in group for i in node.inputs if i not in group}


def _rebuilt(graph: Graph, groups: dict[Node, set[Node]]) -> Graph:
    order = iter(graph.nodes)
    replaced: dict[Node, Node] = {}

    def change(node: Node) -> Node:
        original = next(order)
        after = _chained(original, groups[original], replaced) if original in groups else node
        replaced[original] = after
        return after

    return graph.replace(change)


def _chained(root: Node, group: set[Node], replaced: dict[Node, Node]) -> Node:
    body = _Body()
    body.ref(root, group)
    inputs = [replaced[i] for i in body.inputs]
    return make("chain", inputs, root.source, body=tuple(body.steps))
