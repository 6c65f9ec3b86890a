"""What samples show of the rows that products read: second moments, added up in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from llmc.compiler.gathering import WaitsForParts, Walk, gather
from llmc.compiler.given import Given
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS

Array = np.ndarray[Any, Any]
TOGETHER = 256  # rows that are multiplied at once
MEMORY = 1 << 31  # bytes of moments that are kept at once; more take another walk over the samples


class Moments:
    """Of rows `[r, k]` seen so far: how many, `sum x_i x_j` as f32 `[k, k]`, and the largest magnitude of each column.

    Parts that were seen apart are joined by `merge`.
    """

    kind: ClassVar[str] = "moments"

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

    def empty(self) -> Moments:
        """One of as many columns that has seen nothing."""
        return Moments(len(self.top))

    def parts(self) -> dict[str, Array]:
        """All there is, to be kept in a file; rows that wait stay apart, as they are to be multiplied with others."""
        waiting = np.concatenate([np.zeros((0, len(self.top)), np.float32), *self._waiting])
        return {"rows": np.array(self.rows), "products": self._products, "top": self.top, "waiting": waiting}

    def take(self, parts: Mapping[str, Array]) -> None:
        """Become what `parts` was called of."""
        self.rows, self._products = int(parts["rows"]), np.array(parts["products"])
        self.top, self._waiting = np.array(parts["top"]), [np.array(parts["waiting"])]


class Columns:
    """Of rows `[r, k]` seen so far: how many, of each column the sums of it and its square, the largest magnitude."""

    kind: ClassVar[str] = "columns"

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

    def empty(self) -> Columns:
        """One of as many columns that has seen nothing."""
        return Columns(len(self.top))

    def parts(self) -> dict[str, Array]:
        """All there is, to be kept in a file."""
        return {"rows": np.array(self.rows), "sums": self.sums, "squares": self.squares, "top": self.top}

    def take(self, parts: Mapping[str, Array]) -> None:
        """Become what `parts` was called of."""
        self.rows, self.top = int(parts["rows"]), np.array(parts["top"])
        self.sums, self.squares = np.array(parts["sums"]), np.array(parts["squares"])


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
        WaitsForParts: a part lacks a group; those that do not wait for it were gathered all the same.
    """
    waiting: WaitsForParts | None = None
    for group in _groups(sites):
        found = {node: Moments(int(node.shape[-1])) for node in group}
        try:
            _walk(graph, {**found}, known)
        except WaitsForParts as lacking:
            waiting = waiting or lacking
        if waiting is None:
            yield from found.items()
    if waiting is not None:
        raise waiting


def _walk(graph: Graph, found: Mapping[Node, Moments | Columns], known: Given) -> None:
    watched = replace(graph, outputs={f"site{i}": node for i, node in enumerate(found)})
    names = [_readers(graph, node) for node in found]
    gather(Walk(watched, names, list(found.values())), known)


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
