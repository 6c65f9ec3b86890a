"""`spare`: products of a language model whose inputs are not to be rounded to 8 bits; their weights are stored so.

With activations on int8 the error of a token is that of its own row, except where it is kept or ends up in an answer.
Of SmolLM2-135M these three kinds of products make most of the loss of perplexity, and two fifths of the work:

- those that make keys and values, or whatever a state keeps: an error there is seen by every later token; and the
  queries that meet them, whose errors an exponential magnifies;
- the output head: nothing comes after it that would even an error out;
- those behind a gate, act(g) * u: such products have a few values that are far larger than the others, and the scale
  of a row is that of its largest (Bondarenko et al. 2021, "Understanding and Overcoming the Challenges of Efficient
  Transformer Quantization").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from llmc.compiler.effects import tell_weights
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS
from llmc.compiler.pipeline import LOSSY, Keeps, Pass
from llmc.passes.compress.blockwise import TABLE_BLOCK, Blockwise
from llmc.passes.compress.tables import changes, tables
from llmc.passes.compress.weights import products, rebuild


@dataclass(frozen=True)
class Spare(Pass):
    """Store the weights of sensitive products of a graph with states in 8 bits; `int16` is for their activations."""

    name = "spare"
    keeps: ClassVar[Keeps] = LOSSY

    def run(self, graph: Graph) -> Graph:
        """Of a graph with states: one without keeps nothing, and is left as it is."""
        if not graph.states:
            tell_weights(graph, (), lambda weight: "no state is kept")
            return graph
        wanted = sensitive(graph)
        chosen = (product for product in products(graph) if product.node in wanted)
        change = Blockwise(table_block=TABLE_BLOCK)
        matrices = change.matrices_of(chosen, {table.shape[0] for table in tables(graph)})
        made = {weight: change.rounded(matrix) for weight, matrix in matrices.items()}
        tell_weights(graph, made, lambda weight: "not sensitive")
        return rebuild(graph, changes(graph, made))


def sensitive(graph: Graph) -> set[Node]:
    """The products that are spared."""
    kept = [graph.updates.get(node.attributes["name"], node) for node in graph.states]
    met = [value for node in kept for reader in _readers(graph, node) for value in reader.inputs]
    ends = {product for end in (*kept, *met, *graph.outputs.values()) for product in _products_before(end)}
    return ends | {node for node in graph.nodes if node.op == "linear" and _is_gated(node.inputs[0])}


def _readers(graph: Graph, node: Node) -> Iterator[Node]:
    """What computes with a value, whatever shape it is read in."""
    for user in graph.users[node]:
        if OPS[user.op].view or OPS[user.op].moves:
            yield from _readers(graph, user)
        elif not OPS[user.op].product:
            yield user


def _products_before(node: Node) -> Iterator[Node]:
    """The nearest products that a value is made of."""
    waiting, seen = [node], {node}
    while waiting:
        here = waiting.pop()
        if OPS[here.op].product:
            yield here
            continue
        new = [i for i in here.inputs if i not in seen]
        seen.update(new)
        waiting += new


def _is_gated(node: Node) -> bool:
    """Whether a value is the product of two that are both computed: act(g) * u."""
    while OPS[node.op].view:
        node = node.inputs[0]
    return (
        node.op == "mul"
        and all(_computed(i) for i in node.inputs)
        and node.inputs[0].type == node.inputs[1].type
    )


def _computed(node: Node) -> bool:
    return any(True for _ in _products_before(node))
