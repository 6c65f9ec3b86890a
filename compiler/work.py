"""How much the interpreter has to do for a graph, near enough to choose sizes that are quick."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from llmc.compiler.dims import Dim, evaluate
from llmc.compiler.graph import Graph, Node, results_of
from llmc.compiler.ops import OPS

_ELEMENT = 20  # operations that an element costs NumPy beside those of a sum


def work(graph: Graph, sizes: Mapping[str, int]) -> int:
    """Operations of one call; a body counts as often as the longest dim is long."""
    turns = max(sizes.values(), default=1)
    return sum(_of(node, sizes) + turns * sum(work(b, sizes) for b in node.bodies) for node in graph.nodes)


def _of(node: Node, sizes: Mapping[str, int]) -> int:
    shapes = (kind.shape for kind in results_of(node.type))
    elements = sum(prod(_size(d, sizes) for d in shape) for shape in shapes)
    return elements * (_ELEMENT + 2 * _depth(node, sizes))


def _depth(node: Node, sizes: Mapping[str, int]) -> int:
    """Terms of the sum behind an element: of a product by the shape of its second operand."""
    if OPS[node.op].elementwise or len(node.inputs) < 2:
        return 0
    second = node.inputs[1]
    shape = [_size(d, sizes) for d in second.shape]
    if len(shape) < 2 or node.op in ("embedding", "gather"):
        return 0
    return prod(shape[1:]) if second.op == "constant" else max(shape[-2:])


def _size(d: Dim, sizes: Mapping[str, int]) -> int:
    """A dim that is counted, as tokens are, is at most what it is counted in: the product of all."""
    try:
        return evaluate(d, sizes)
    except KeyError:
        return prod(sizes.values())
