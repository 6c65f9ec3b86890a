"""Weights that a pass stores otherwise, where products and look-ups read them: only the rows looked up are decoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.ops import make
from llmc.passes.compress.weights import Make


def tables(graph: Graph) -> Iterator[Node]:
    """Embedding tables."""
    for node in graph.nodes:
        if node.op == "embedding":
            yield node.inputs[0]
        elif node.op == "embed_norm":
            yield from node.inputs[: 2 * node.attributes["tables"] : 2]


def changes(graph: Graph, books: Mapping[Node, Node]) -> dict[Node, Make]:
    """For `rebuild`: products and look-ups of weights that are stored otherwise, `books[weight]`, from now on."""
    found: dict[Node, Make] = {}
    for node in graph.nodes:
        chosen = {i: books[i] for i in node.inputs if i in books}
        if not chosen:
            continue
        if node.op == "linear" and node.inputs[1] in chosen:
            found[node] = partial(_linear, node, chosen[node.inputs[1]])
        elif node.op == "embedding" and node.inputs[0] in chosen:
            found[node] = partial(_embedding, node, chosen[node.inputs[0]])
        elif node.op == "embed_norm":
            found[node] = partial(_embed_norm, node, chosen)
    return found


def _linear(node: Node, book: Node, inputs: tuple[Node, ...]) -> Node:
    return make("linear", (inputs[0], book, *inputs[2:]), node.source, **node.attributes)


def _embedding(node: Node, book: Node, inputs: tuple[Node, ...]) -> Node:
    """embedding(codebook(i, v), at) -> codebook(embedding(i, at), v): only the rows looked up are decoded."""
    return _decoded_rows(book, inputs[1], node.source)


def _decoded_rows(book: Node, index: Node, source: Source) -> Node:
    """What has a row for each row of the weight is looked up, what all rows share is not."""
    parts = (make("embedding", (i, index), source) if i.type.rank > 1 else i for i in book.inputs)
    return make(book.op, tuple(parts), source, **book.attributes)


def _embed_norm(node: Node, books: Mapping[Node, Node], inputs: tuple[Node, ...]) -> Node:
    """embed_norm(t0, i0, ...) -> layer_norm(rows of t0 + ...), in its order of addition"""
    end = 2 * node.attributes["tables"]
    total: Node | None = None
    for old, table, index in zip(node.inputs[:end:2], inputs[:end:2], inputs[1:end:2], strict=True):
        if old in books:
            rows = _decoded_rows(books[old], index, node.source)
        else:
            rows = make("embedding", (table, index), node.source)
        total = rows if total is None else make("add", (total, rows), node.source)
    assert total is not None
    flags = {"has_weight": True, "has_bias": True}
    eps = node.attributes["eps"]
    return make("layer_norm", (total, *inputs[end:]), node.source, eps=eps, **flags)
