"""Weights and activations rounded in training as `--quant` and `--share` round them, gradients as if they were not.

The straight-through estimator: Bengio, Leonard and Courville 2013, "Estimating or propagating gradients through
stochastic neurons". Weights keep what rounding takes off, so many small steps move a level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmc.compiler.graph import Graph
from llmc.compiler.pipeline import Pipeline
from llmc.errors import LlmcError
from llmc.masks import Part, located
from llmc.passes import PASSES
from llmc.passes.compress import shortcuts
from llmc.passes.compress.blockwise import Blockwise
from llmc.passes.compress.cluster import Share, cluster
from llmc.passes.compress.rounding import HALVES, levels_range
from llmc.passes.compress.tables import tables
from llmc.passes.compress.weights import Array, place, values
from llmc.passes.quantise import QUANTISATIONS, Quantize
from llmc.passes.quantise.quantize import SMALL_TABLE

MODES = ("int8", "w4")


@dataclass(frozen=True)
class Grid:
    """How a weight is rounded: `block` columns of `bits` share a scale, of the weight or its transpose.

    What the first `finer` rows lack is rounded, too.
    """

    bits: int
    block: int
    turned: bool
    finer: int = 0

    def rounded(self, weight: Any) -> Any:
        """The weight as it is read from an artifact."""
        near = self._nearest(weight.T if self.turned else weight)
        if self.finer:
            lacking = weight[: self.finer] - near[: self.finer]
            near = near.clone()
            near[: self.finer] += self._nearest(lacking)
        return near.T if self.turned else near

    def _nearest(self, rows: Any) -> Any:
        from torch.nn.functional import pad

        n, k = rows.shape
        blocks = pad(rows, (0, -k % self.block)).reshape(n, -1, self.block)
        low, high = levels_range(self.bits)
        far = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))
        steps = far.abs() / high if self.bits == 8 else _halves(far / low)
        steps = steps.where(steps != 0, 1.0)
        return ((blocks / steps).round().clamp(low, high) * steps).reshape(n, -1)[:, :k]


def _halves(scales: Any) -> Any:
    size = scales[scales != 0].abs()
    fits = not size.numel() or (float(size.min()) >= HALVES[0] and float(size.max()) <= HALVES[1])
    return scales.half().float() if fits else scales


@dataclass(frozen=True)
class Book:
    """How a weight that shares its values is rounded: to the nearest of them.

    Args:
        values: ascending, of the matrix that it is a part of; they move as its weights do.
        parts: the names of all its parts.
    """

    values: Any
    parts: Sequence[str]

    @staticmethod
    def of(change: Share, array: Array, parts: Sequence[Part]) -> Book:
        """The values that the pass would find."""
        import torch

        distinct, counts = np.unique(array, return_counts=True)
        centres, _ = cluster(distinct, counts, min(change.clusters, len(distinct)))
        return Book(torch.from_numpy(centres), [part.name for part in parts])

    def rounded(self, weight: Any) -> Any:
        """The weight as it is read from an artifact."""
        return self.values[self._nearest(weight)]

    def move(self, weights: Sequence[Any]) -> None:
        """Each value to the mean of the weights that are nearest to it, one round of Lloyd's; a zero stays."""
        import torch

        count, total = torch.zeros(2, len(self.values), dtype=torch.float64)
        for weight in weights:
            places = self._nearest(weight).reshape(-1)
            count += torch.bincount(places, minlength=len(count))
            total += torch.bincount(places, weights=weight.reshape(-1).double(), minlength=len(count))
        means = torch.where((count > 0) & (self.values != 0), total / count, self.values.double())
        self.values.copy_(means.float().sort().values)

    def _nearest(self, weight: Any) -> Any:
        import torch

        middles = (self.values[1:].double() + self.values[:-1]) / 2
        return torch.bucketize(weight, middles.float())


def share_of(spec: str) -> Share:
    """The pass that `--share SPEC` names.

    Raises:
        LlmcError: it is not understood.
    """
    (step,) = Pipeline.parse(shortcuts.compression(share=spec), PASSES).steps
    assert isinstance(step.change, Share)
    return step.change


class Rounding:
    """A model that answers as its artifact of a `--quant` or `--share` does, within `on`.

    int8 rounds what products read as well, by token; attention is left in float.

    Args:
        mode: one of MODES, or the pass that has weights share their values.
        model: a `torch.nn.Module`, with the values that `graph` was made of.
        graph: of the same model, before it is quantised.

    Raises:
        LlmcError: nothing is rounded, or what is rounded is not the model's own.
    """

    def __init__(self, mode: str | Share, model: Any, graph: Graph) -> None:
        self.grids: Mapping[str, Grid | Book]
        self.grids = _books(mode, model, graph) if isinstance(mode, Share) else _grids(mode, model, graph)
        own = dict(model.named_parameters())
        self.weights = {name: own[name] for name in own if name in self.grids}
        self._frozen: dict[str, Any] = {}
        self._is_on = False
        if mode == "int8":
            self._watch(model)

    @property
    def books(self) -> Mapping[str, Any]:
        """The shared values by the name of a part: what else changes in a training."""
        return {name: grid.values for name, grid in self.grids.items() if isinstance(grid, Book)}

    @contextmanager
    def on(self, moving: bool = False) -> Iterator[None]:
        """Within, weights are rounded, and gradients those of the rounded ones; afterwards they are as before.

        Args:
            moving: whether shared values follow their weights first.
        """
        import torch

        kept = {name: weight.data for name, weight in self.weights.items()}
        with torch.no_grad():
            if moving:
                self._move()
            for name, weight in self.weights.items():
                weight.data = self._rounded(name, weight)
        try:
            with self.acting():
                yield
        finally:
            for name, weight in self.weights.items():
                weight.data = kept[name]

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Within, what products read is rounded, and weights are as they are: somebody has rounded them."""
        self._is_on = True
        try:
            yield
        finally:
            self._is_on = False

    def finish(self) -> None:
        """Leave shared values in the weights, where the pass finds them; it rounds others itself."""
        for name, grid in self.grids.items():
            if isinstance(grid, Book):
                self.weights[name].data = self._rounded(name, self.weights[name])

    def _move(self) -> None:
        for name, grid in self.grids.items():
            if isinstance(grid, Book) and grid.parts[0] == name:
                parts = [self.weights[part] for part in grid.parts]
                if any(part.requires_grad for part in parts):
                    grid.move([part.data for part in parts])

    def _rounded(self, name: str, weight: Any) -> Any:
        if weight.requires_grad:
            return self.grids[name].rounded(weight.data).contiguous()
        if name not in self._frozen:  # tables, which do not change
            self._frozen[name] = self.grids[name].rounded(weight.data).contiguous()
        return self._frozen[name]

    def _watch(self, model: Any) -> None:
        tables_of = {id(weight) for weight in self.weights.values()}
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if id(weight) in tables_of and type(module).__name__ != "Embedding":
                module.register_forward_pre_hook(self._before)

    def _before(self, module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (by_token(inputs[0]), *inputs[1:]) if self._is_on else inputs


def by_token(x: Any) -> Any:
    """x rounded to 8 bits, a scale for each token; its gradient is that of x."""
    rows = x.detach()
    scales = rows.abs().amax(-1, keepdim=True) / 127
    scales = scales.where(scales > 1e-30, 1.0)
    return x + ((rows / scales).round().clamp(-127, 127) * scales - rows)


def _grids(mode: str, model: Any, graph: Graph) -> Mapping[str, Grid]:
    found = list(_of_blocks(graph) if mode == "w4" else _of_rows(graph))
    if not found:
        raise LlmcError(f"--quant {mode} changes nothing in this model")
    parts = located([(array, at) for array, at, *_ in found], model)
    return {
        part.name: Grid(bits, block, part.turned, finer)
        for each, (_, _, bits, block, finer) in zip(parts, found, strict=True)
        for part in each
    }


def _books(change: Share, model: Any, graph: Graph) -> Mapping[str, Book]:
    found = [(array, place(weight)) for weight, array in change.found(graph).items() if change.gains(array)]
    if not found:
        raise LlmcError("--share changes nothing in this model", at=str(change))
    books = {}
    for (array, _), parts in zip(found, located(found, model), strict=True):
        book = Book.of(change, array, parts)
        books.update(dict.fromkeys(book.parts, book))
    return books


Found = tuple[Array, str, int, int, int]  # values, where they are, bits, block, rows that are finer


def _of_blocks(graph: Graph) -> Iterator[Found]:
    change = Pipeline.parse(QUANTISATIONS["w4"], PASSES).steps[0].change
    assert isinstance(change, Blockwise)
    for weight, matrix in change.matrices(graph).items():
        finer = change.finer_rows(graph, weight, matrix.bits)
        yield matrix.array, str(weight.source), matrix.bits, matrix.block, finer


def _of_rows(graph: Graph) -> Iterator[Found]:
    seen = set()
    chosen = [(node.inputs[1], place(node)) for node in Quantize().products(graph) if node.op == "linear"]
    for weight, at in [*chosen, *((table, str(table.source)) for table in tables(graph))]:
        array = values(weight)
        if weight in seen or array is None or array.ndim != 2:
            continue
        seen.add(weight)
        if array.nbytes > SMALL_TABLE or any(weight is own for own, _ in chosen):
            yield array, at, 8, array.shape[1], 0
