"""Einstein sums: products of two operands after the other, each a `matmul`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmc.compiler.dims import Dim, dim, product
from llmc.compiler.frontends.parts import Maker, expanded, transposed
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant


@dataclass(frozen=True)
class Labelled:
    """A node and the label of each of its axes; those of an ellipsis are numbers, counted from the last one."""

    node: Node
    labels: tuple[str, ...]

    def size(self, label: str) -> Dim:
        """The size of an axis, 1 for one that it has not."""
        return self.node.shape[self.labels.index(label)] if label in self.labels else 1


def einsum(call: Maker, equation: str, operands: Sequence[Node]) -> Node:
    """The sum that `equation` states, as `numpy.einsum` has it"""
    left, arrow, right = equation.replace(" ", "").partition("->")
    given = [_labelled(call, node, text) for node, text in zip(operands, left.split(","), strict=True)]
    result = _output(given, right if arrow else None)
    total, *rest = given
    for position, other in enumerate(rest):
        later = {label for operand in rest[position + 1 :] for label in operand.labels}
        total = multiplied(call, total, other, later | set(result))
    total = _summed(call, total, set(result))
    return transposed(call, total.node, [total.labels.index(label) for label in result])


def _labelled(call: Maker, node: Node, text: str) -> Labelled:
    before, dots, after = text.partition("...")
    missing = node.type.rank - len(before) - len(after)
    numbers = tuple(str(i) for i in reversed(range(missing))) if dots else ()
    labels = (*before, *numbers, *after)
    while len(set(labels)) < len(labels):
        node, labels = _diagonal(call, node, labels)
    return Labelled(node, labels)


def _diagonal(call: Maker, node: Node, labels: tuple[str, ...]) -> tuple[Node, tuple[str, ...]]:
    """Two axes of one label become one: the elements whose places along both are the same."""
    label = next(name for name in labels if labels.count(name) > 1)
    first = labels.index(label)
    second = labels.index(label, first + 1)
    size = node.shape[first]
    call.require(size == node.shape[second], f"two sizes of the label {label!r} in einsum")
    rest = [a for a in range(len(labels)) if a not in (first, second)]
    flat = transposed(call, node, (first, second, *rest))
    flat = call.reshape(flat, (dim(size * size), *(node.shape[a] for a in rest)))
    steps = call.op("iota", length=size, step=size + 1) if isinstance(size, int) else None
    call.require(steps is not None, "the diagonal of axes of dynamic size in einsum")
    assert steps is not None
    return call.op("embedding", flat, steps), (label, *(labels[a] for a in rest))


def _output(given: Sequence[Labelled], stated: str | None) -> tuple[str, ...]:
    """The labels of the result; none stated: those of the ellipses, then letters that occur once, in order."""
    every = [label for operand in given for label in operand.labels]
    dots = tuple(sorted({label for label in every if label.isdigit()}, key=int, reverse=True))
    if stated is None:
        return (*dots, *sorted(label for label in set(every) if label.isalpha() and every.count(label) == 1))
    before, found, after = stated.partition("...")
    return (*before, *(dots if found else ()), *after)


def _summed(call: Maker, x: Labelled, kept: set[str]) -> Labelled:
    """Axes that nobody wants are summed."""
    axes = tuple(i for i, label in enumerate(x.labels) if label not in kept)
    if not axes:
        return x
    labels = tuple(label for label in x.labels if label in kept)
    return Labelled(call.op("sum", x.node, axes=axes), labels)


def multiplied(call: Maker, a: Labelled, b: Labelled, kept: set[str]) -> Labelled:
    """The product, summed over what both have and nobody wants any more."""
    a, b = _summed(call, a, kept | set(b.labels)), _summed(call, b, kept | set(a.labels))
    both = [label for label in a.labels if label in b.labels]
    batch, summed = [n for n in both if n in kept], [n for n in both if n not in kept]
    rows = [label for label in a.labels if label not in both]
    columns = [label for label in b.labels if label not in both]
    if not summed:
        return _outer(call, a, b, (*batch, *rows, *columns))
    a = _stretched(call, a, b, summed)
    b = _stretched(call, b, a, summed)
    labels = (*batch, *rows, *columns)
    left = _grouped(call, a, batch, rows, summed)
    if not batch and b.node.op == "constant" and a.node.dtype == "f32":
        made = call.op("linear", left, _weight(b, columns, summed))
    else:
        made = call.op("matmul", left, _grouped(call, b, batch, summed, columns))
    sizes = [max((x.size(label) for x in (a, b)), key=lambda d: d != 1) for label in batch]
    shape = (*sizes, *(a.size(n) for n in rows), *(b.size(n) for n in columns))
    return Labelled(call.reshape(made, shape), labels)


def _outer(call: Maker, a: Labelled, b: Labelled, labels: tuple[str, ...]) -> Labelled:
    """Nothing is summed: an element-wise product of axes side by side."""
    sides = []
    for x in (a, b):
        order = [x.labels.index(label) for label in labels if label in x.labels]
        sides.append(call.reshape(transposed(call, x.node, order), [x.size(label) for label in labels]))
    return Labelled(call.op("mul", *sides), labels)


def _stretched(call: Maker, x: Labelled, other: Labelled, summed: Sequence[str]) -> Labelled:
    """Axes of size 1 that are summed against longer ones are as long as these."""
    sizes = [other.size(n) if n in summed and x.size(n) == 1 else x.size(n) for n in x.labels]
    return Labelled(expanded(call, x.node, sizes), x.labels)


def _grouped(
    call: Maker, x: Labelled, batch: Sequence[str], first: Sequence[str], second: Sequence[str]
) -> Node:
    """`[batch..., first, second]`, the axes of each of the last two merged."""
    order = [x.labels.index(label) for label in (*batch, *first, *second)]
    sizes = (product(map(x.size, first)), product(map(x.size, second)))
    return call.reshape(transposed(call, x.node, order), (*map(x.size, batch), *sizes))


def _weight(b: Labelled, columns: Sequence[str], summed: Sequence[str]) -> Node:
    """A constant operand as `linear` stores it, `[columns, summed]`."""
    kept = b.node.attributes["value"]
    turned = kept.array.transpose([b.labels.index(label) for label in (*columns, *summed)])
    matrix = np.ascontiguousarray(turned).reshape(product(map(b.size, columns)), -1)
    return constant(matrix, kept.name, b.node.source)
