"""What samples show of the rows that products read: second moments, added up in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import numpy as np

from llmc.compiler.calibration import want_finite
from llmc.compiler.given import Given
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS
from llmc.errors import LlmcError

Array = np.ndarray[Any, Any]
TOGETHER = 256  # rows that are multiplied at once
MEMORY = 1 << 31  # bytes of moments that are kept at once; more take another walk over the samples


class Moments:
    """Of rows `[r, k]` seen so far: how many, `sum x_i x_j` as f32 `[k, k]`, and the largest magnitude of each column.

    Parts that were seen apart are joined by `merge`.
    """

    def __init__(self, columns: int) -> None:
        self.rows = 0
        self._waiting: list[Array] = []
        self._products = np.zeros((columns, columns), np.float32)
        self.top = np.zeros(columns, np.float32)

    def add(self, x: Array) -> None:
        """Take rows f32 `[..., k]` into account."""
        rows = x.reshape(-1, x.shape[-1])
        if not len(rows):
            return
        self.rows += len(rows)
        np.maximum(self.top, np.abs(rows).max(0), out=self.top)
        self._waiting.append(np.array(rows))
        if sum(map(len, self._waiting)) >= TOGETHER:
            self._multiply()

    @property
    def products(self) -> Array:
        """`sum x_i x_j`."""
        self._multiply()
        return self._products

    def _multiply(self) -> None:
        """Short samples together: each product reads and writes the whole sum."""
        if self._waiting:
            rows = np.concatenate(self._waiting)
            self._waiting.clear()
            self._products += rows.T @ rows

    def merge(self, other: Moments) -> None:
        """Take in what `other` has seen."""
        self.rows += other.rows
        self._products += other.products
        np.maximum(self.top, other.top, out=self.top)


class Columns:
    """Of rows `[r, k]` seen so far: how many, of each column the sums of it and its square, the largest magnitude."""

    def __init__(self, columns: int) -> None:
        self.rows = 0
        self.sums, self.squares = np.zeros(columns), np.zeros(columns)
        self.top = np.zeros(columns, np.float32)

    def add(self, x: Array) -> None:
        """Take rows f32 `[..., k]` into account."""
        rows = x.reshape(-1, x.shape[-1])
        self.rows += len(rows)
        self.sums += rows.sum(0, dtype=np.float64)
        self.squares += np.square(rows, dtype=np.float64).sum(0)
        np.maximum(self.top, np.abs(rows).max(0, initial=0), out=self.top)

    def merge(self, other: Columns) -> None:
        """Take in what `other` has seen."""
        self.rows += other.rows
        self.sums += other.sums
        self.squares += other.squares
        np.maximum(self.top, other.top, out=self.top)


def of_columns(graph: Graph, sites: Sequence[Node], known: Given) -> Mapping[Node, Columns]:
    """As `of_inputs`, all sites at once: what is kept of them is small."""
    found = {node: Columns(int(node.shape[-1])) for node in dict.fromkeys(sites)}
    if found:
        _walk(graph, {**found}, known)
    return found


def of_inputs(graph: Graph, sites: Sequence[Node], known: Given) -> Iterator[tuple[Node, Moments]]:
    """Each of `sites`, float values whose last axis is fixed, with its moments over all samples that are given.

    Sites are taken together as long as their moments fit `MEMORY`: samples are read once for each such group.

    Raises:
        LlmcError: there is no sample, or a value is not finite; `at` names what reads it.
    """
    for group in _groups(sites):
        found = {node: Moments(int(node.shape[-1])) for node in group}
        _walk(graph, {**found}, known)
        yield from found.items()


def _walk(graph: Graph, found: Mapping[Node, Moments | Columns], known: Given) -> None:
    samples = known.samples(graph)
    first = list(islice(samples, 1))  # data that does not fit the model is refused before native code is made
    if not first:
        hint = "give some, or use --calib auto"
        raise LlmcError("calibration: there are no samples", at=known.place, hint=hint)
    watched = replace(graph, outputs={f"site{i}": node for i, node in enumerate(found)})
    names = [_readers(graph, node) for node in found]
    with known.running(watched) as run:
        for number, sample in enumerate(chain(first, samples), 1):
            values = run(sample)
            want_finite(names, values, number)
            for moments, value in zip(found.values(), values, strict=True):
                moments.add(value)


def _readers(graph: Graph, node: Node) -> str:
    users = graph.users.get(node, ())  # a value that was turned for this has none
    names = dict.fromkeys(str(user.source) for user in users if OPS[user.op].product) or [str(node.source)]
    return f"input of {', '.join(names)}"


def _groups(sites: Iterable[Node]) -> Iterator[list[Node]]:
    group: list[Node] = []
    size = 0
    for node in dict.fromkeys(sites):
        columns = int(node.shape[-1])
        needed = 4 * columns * (columns + TOGETHER)
        if group and size + needed > MEMORY:
            yield group
            group, size = [], 0
        group.append(node)
        size += needed
    if group:
        yield group
