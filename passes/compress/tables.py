"""Weights that a pass stores otherwise, where products and look-ups read them: only the rows looked up are decoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType

import numpy as np

from llmc.compiler.graph import DTYPES, Graph, Node, Source
from llmc.compiler.ops import constant, make
from llmc.passes.compress.weights import Make


def tables(graph: Graph) -> Iterator[Node]:
    """Embedding tables."""
    for node in graph.nodes:
        if node.op == "embedding":
            yield node.inputs[0]
        elif node.op == "embed_norm":
            yield from node.inputs[: 2 * node.attributes["tables"] : 2]


NOTHING: Mapping[Node, Node] = MappingProxyType({})


def changes(
    graph: Graph, books: Mapping[Node, Node], finer: Mapping[Node, Node] = NOTHING
) -> dict[Node, Make]:
    """For `rebuild`: products and look-ups of weights that are stored otherwise, `books[weight]`, from now on.

    Args:
        finer: of a book what its first rows lack, with a last row of zeros that stands for all others.
    """
    found: dict[Node, Make] = {}
    for node in graph.nodes:
        chosen = {i: books[i] for i in node.inputs if i in books}
        if not chosen:
            continue
        if node.op == "linear" and node.inputs[1] in chosen:
            found[node] = partial(_linear, node, chosen[node.inputs[1]])
        elif node.op == "embedding" and node.inputs[0] in chosen:
            found[node] = partial(_embedding, node, chosen[node.inputs[0]], finer)
        elif node.op == "embed_norm":
            found[node] = partial(_embed_norm, node, chosen, finer)
    return found


def _linear(node: Node, book: Node, inputs: tuple[Node, ...]) -> Node:
    return make("linear", (inputs[0], book, *inputs[2:]), node.source, **node.attributes)


def _embedding(node: Node, book: Node, finer: Mapping[Node, Node], inputs: tuple[Node, ...]) -> Node:
    """embedding(codebook(i, v), at) -> codebook(embedding(i, at), v): only the rows looked up are decoded."""
    return _rows(book, finer, inputs[1], node.source)


def _rows(book: Node, finer: Mapping[Node, Node], index: Node, source: Source) -> Node:
    rows = _decoded_rows(book, index, source)
    if book not in finer:
        return rows
    last = constant(np.array(int(finer[book].shape[0]) - 1, DTYPES[index.dtype]), source=source)
    lacking = _decoded_rows(finer[book], make("minimum", (index, last), source), source)
    return make("add", (rows, lacking), source)


def _decoded_rows(book: Node, index: Node, source: Source) -> Node:
    """What has a row for each row of the weight is looked up, what all rows share is not."""
    parts = (make("embedding", (i, index), source) if i.type.rank > 1 else i for i in book.inputs)
    return make(book.op, tuple(parts), source, **book.attributes)


def _embed_norm(
    node: Node, books: Mapping[Node, Node], finer: Mapping[Node, Node], inputs: tuple[Node, ...]
) -> Node:
    """embed_norm(t0, i0, ...) -> layer_norm(rows of t0 + ...), in its order of addition"""
    end = 2 * node.attributes["tables"]
    total: Node | None = None
    for old, table, index in zip(node.inputs[:end:2], inputs[:end:2], inputs[1:end:2], strict=True):
        if old in books:
            rows = _rows(books[old], finer, index, node.source)
        else:
            rows = make("embedding", (table, index), node.source)
        total = rows if total is None else make("add", (total, rows), node.source)
    assert total is not None
    flags = {"has_weight": True, "has_bias": True}
    eps = node.attributes["eps"]
    return make("layer_norm", (total, *inputs[end:]), node.source, eps=eps, **flags)
