"""`rotate`: residual streams in other columns, in which no value is far larger than the others.

Ashkboos et al. 2024, "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", of which this is the part that costs
nothing when the model runs: with Q orthogonal, norm(x Q) = norm(x) Q for a norm without gains. So gains go into the
products that read the norm, and tables and products into the stream are multiplied by Q, what reads it by Q^T. Q is a
Hadamard matrix with columns of random signs; of sizes that are no power of two, times a Hartley matrix of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np

from llmc.compiler.effects import Verdict, tell
from llmc.compiler.graph import Graph, Node, Weight
from llmc.compiler.ops import constant, make
from llmc.compiler.pipeline import Keeps, Pass, close
from llmc.errors import LlmcError
from llmc.passes.compress.stream import Stream, streams

Array = np.ndarray[Any, Any]
_PIECE = 1 << 21  # values that are turned at a time


@dataclass(frozen=True)
class Rotate(Pass):
    """Multiply residual streams by a matrix of random signs, folded into the weights around them (QuaRot).

    Run it after `fuse`. A stream that something else touches stays as it is, such as one of norms after each sum.

    Args:
        skip: patterns of module paths of norms whose streams are left alone.
        seed: of the signs.
    """

    name = "rotate"
    keeps: ClassVar[Keeps] = close(1e-4)
    skip: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise LlmcError("rotate: a seed is not negative", found=str(self.seed))

    def run(self, graph: Graph) -> Graph:
        """One walk."""
        found = list(streams(graph))
        reasons = {id(stream): self._left(stream) for stream in found}
        tell("norms", (Verdict(n, 1, reasons[id(s)]) for s in found for n in s.norms))
        chosen = [stream for stream in found if not reasons[id(stream)]]
        return _Turn(graph, chosen, self.seed).graph() if chosen else graph

    def _left(self, stream: Stream) -> str:
        """Why a stream stays as it is; empty if it is turned."""
        if any(fnmatchcase(norm.source.path, pattern) for norm in stream.norms for pattern in self.skip):
            return "named by skip"
        return next(iter(stream.reasons), "")


class _Turn:
    """The streams of a graph, turned."""

    def __init__(self, before: Graph, chosen: Iterable[Stream], seed: int) -> None:
        self.before, self.seed = before, seed
        self.of = {node: stream for stream in chosen for node in stream.values}
        self.reads = {node: stream for stream in chosen for node in stream.readers}
        self.writes = {node: stream for stream in chosen for node in stream.writers}
        self.made: dict[tuple[Any, ...], Node] = {}

    def graph(self) -> Graph:
        return self.before.rebuild(self._changed)

    def _changed(self, before: Node, node: Node) -> Node:
        if before.op == "linear" and (before in self.reads or before in self.writes):
            return self._product(before, node)
        if before in self.writes:
            return node.with_inputs((self._rows(before.inputs[0], self.writes[before]), node.inputs[1]))
        if before not in self.of:
            return node
        if self.of[before].values[before] is before:
            size = np.full(int(before.shape[-1]), _size(before), np.float32)
            own = constant(size, source=node.source)
            return make("rms_norm", (node.inputs[0], own), node.source, eps=before.attributes["eps"])
        fixed = [i.op == "constant" and i in self.of for i in before.inputs]
        if not any(fixed):
            return node
        pairs = zip(before.inputs, node.inputs, fixed, strict=True)
        return node.with_inputs([self._rows(a, self.of[before]) if f else b for a, b, f in pairs])

    def _product(self, before: Node, node: Node) -> Node:
        """A product, what it reads and what it writes turned."""
        reads, into = self.reads.get(before), self.writes.get(before)
        norm = reads.readers[before] if reads else None
        weight, (x, _, *extras), steps = before.inputs[1], node.inputs, before.attributes["epilogue"]
        if reads and norm and weight in reads.tables:
            inputs = (self._aside(norm, x), self._rows(weight, reads), *extras)
            return make("linear", inputs, node.source, epilogue=steps)
        key = (reads is not None, norm, into is not None and into.centred, into is not None)
        new = self._once(weight, key, lambda w: self._weight(w, norm, reads, into))
        at = steps.index("bias") if "bias" in steps else None
        bias = self._bias(weight, None if at is None else extras[at], norm, into)
        if bias is not None and at is not None:
            extras[at] = bias
        elif bias is not None:
            steps, extras = ("bias", *steps), [bias, *extras]
        return make("linear", (x, new, *extras), node.source, epilogue=steps)

    def _weight(self, w: Array, norm: Node | None, reads: Stream | None, into: Stream | None) -> Array:
        """w[n, k] -> Q^T w diag(gain) Q, of which Q^T is for what is written and the rest for what is read."""
        w = w if norm is None else w * _gain(norm)
        w = self._turned(w) if reads else w
        return np.ascontiguousarray(self._turned(w.T, into.centred).T) if into else w

    def _bias(self, weight: Node, bias: Node | None, norm: Node | None, into: Stream | None) -> Node | None:
        """b -> (b + w shift) Q, of which Q is for what is written."""
        shift = None if norm is None else _shift(norm)
        if shift is None and (bias is None or into is None):
            return bias
        w, like = weight.attributes["value"], weight if bias is None else bias
        array = np.zeros(len(w.array), np.float32) if bias is None else like.attributes["value"].array
        if shift is not None:
            array = (array + np.einsum("nk,k->n", w.array, shift, dtype=np.float64)).astype(np.float32)
        array = self._turned(array, into.centred) if into else array
        name = f"{w.name}.shift" if bias is None else f"{like.attributes['value'].name}.rotated"
        return constant(Weight(array, name), source=like.source)

    def _rows(self, table: Node, stream: Stream) -> Node:
        """Rows that become values of a stream."""
        return self._once(table, ("rows", stream.centred), lambda t: self._turned(t, stream.centred))

    def _aside(self, norm: Node, x: Node) -> Node:
        """x -> x + x (Q^T diag(gain) Q - 1): the gain of a norm in front of a table that is a head as well."""

        def change(own: Array) -> Array:
            across = self._turned(self._turned(np.diag(_gain(norm))).T)
            return across - np.eye(len(across), dtype=np.float32)

        aside = self._once(norm.inputs[1], ("gain",), change)
        return make("linear", (x, aside, x), norm.source, epilogue=("residual",))

    def _once(self, node: Node, key: tuple[Any, ...], change: Callable[[Array], Array]) -> Node:
        if (node, *key) not in self.made:
            value = node.attributes["value"]
            array = np.asarray(change(value.array), np.float32)
            self.made[node, *key] = constant(Weight(array, f"{value.name}.rotated"), source=node.source)
        return self.made[node, *key]

    def _turned(self, array: Array, centred: bool = False) -> Array:
        return turned(array, self.seed, centred)


def _size(norm: Node) -> float:
    """What a norm keeps of its gain, so that the products that read it stay as large as they were."""
    if not norm.attributes.get("has_weight", True):
        return 1.0
    return float(np.abs(norm.inputs[1].attributes["value"].array).mean()) or 1.0


def _gain(norm: Node) -> Array:
    """The rest f32 `[k]`."""
    if not norm.attributes.get("has_weight", True):
        return np.ones(int(norm.shape[-1]), np.float32)
    return np.asarray(norm.inputs[1].attributes["value"].array / np.float32(_size(norm)))


def _shift(norm: Node) -> Array | None:
    """The bias of a norm."""
    if norm.op == "rms_norm" or not norm.attributes["has_bias"]:
        return None
    return np.asarray(norm.inputs[-1].attributes["value"].array)


def turned(array: Array, seed: int, centred: bool = False) -> Array:
    """f32 `[..., k]` -> rows times Q, each less its mean first if `centred`; in float64, rounded once."""
    k = array.shape[-1]
    signs = np.random.default_rng(seed).integers(0, 2, k) * 2.0 - 1.0
    rows = array.reshape(-1, k)
    made = np.empty(rows.shape, np.float32)
    piece = max(1, _PIECE // k)
    for i in range(0, len(rows), piece):
        part = rows[i : i + piece].astype(np.float64)
        part -= part.mean(1, keepdims=True) if centred else 0.0
        made[i : i + piece] = _hadamard(part * signs)
    return made.reshape(array.shape)


def _hadamard(rows: Array) -> Array:
    """`[n, 2^p m]` times the Hadamard matrix of 2^p and the Hartley matrix of m (Hartley 1942), both orthogonal."""
    n, k = rows.shape
    power = k & -k
    parts = rows.reshape(n, power, k // power)
    if power < k:
        waves = np.fft.fft(parts, axis=2)
        parts = (waves.real - waves.imag) / np.sqrt(k // power)
    size = 1
    while size < power:
        pairs = parts.reshape(n, power // (2 * size), 2, -1)
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        parts = np.stack((a + b, a - b), 2)
        size *= 2
    return np.asarray(parts.reshape(n, k) / np.sqrt(power))
