"""The zeros of `--prune` in PyTorch's weights: the pass chooses them, among the products of the compiled graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llmc import kept_imports
from llmc.compiler.frontends.inputs import KEEP
from llmc.compiler.given import Given, giving
from llmc.compiler.graph import Graph
from llmc.compiler.pipeline import Pipeline
from llmc.errors import LlmcError
from llmc.passes import LEVEL_PARTS, PASSES
from llmc.passes.compress import shortcuts
from llmc.passes.compress.gptq import seen
from llmc.passes.compress.prune import Pattern, Prune, warn_of_emptied
from llmc.passes.compress.reconstruct import Reconstruct
from llmc.passes.compress.weights import Array, Product

_BEFORE = (
    "simplify",
    "fuse",
)  # the places before "compress", where products have the shapes that `prune` sees


def prune_of(spec: str) -> Prune:
    """The pass that `--prune SPEC` names.

    Raises:
        LlmcError: it is not understood, or removes heads or neurons, which leaves no zeros to keep.
    """
    (step,) = Pipeline.parse(shortcuts.compression((spec,)), PASSES).steps
    if isinstance(step.change, Prune):
        return step.change
    raise LlmcError(
        "recover keeps zeros, and this makes matrices smaller",
        at=f"--prune {spec}",
        hint='write 0.5, 2:4, 4x1:0.8 or options such as sparsity=0.5,scope="layer"',
    )


@dataclass(frozen=True)
class Part:
    """Rows of a product's weight, which are one parameter, or its transpose as GPT-2 stores them."""

    name: str
    rows: slice
    turned: bool

    def of(self, array: Any) -> Any:
        """A parameter, or a mask, as it lies in the product, and the other way round."""
        return array.T if self.turned else array


class Masks:
    """Which weights of a model `prune` would leave, whatever their values have become.

    Args:
        change: the pass.
        model: a `torch.nn.Module`, with the values that `graph` was made of.
        graph: of the same model, before the pass.

    Raises:
        LlmcError: the pass changes nothing, or a product has a weight that is not the model's own.
    """

    def __init__(self, change: Prune, model: Any, graph: Graph) -> None:
        self._change, self._graph, self._products = change, graph, change.chosen(graph)
        if not self._products:
            raise LlmcError("--prune changes nothing in this model", at=str(change))
        self._change.masks(self._products)  # which refuses what the pattern does not divide
        self._parts = list(located([(p.array, p.place) for p in self._products], model))
        names = {part.name for parts in self._parts for part in parts}
        self.weights = {name: p for name, p in model.named_parameters() if name in names}

    def warn(self) -> None:
        """Of products that keep next to nothing, chosen by magnitude."""
        warn_of_emptied(self._products, self._change.masks(self._products))

    @property
    def by_samples(self) -> bool:
        """Whether training can begin with what `reconstruct` makes of the weights; it does not rank all blocks."""
        return self._height == 1 or self._change.scope == "layer"

    @property
    def _height(self) -> int:
        return Pattern.parse(self._change.pattern).height

    def reconstruct(self, samples: Iterable[Mapping[str, Any]]) -> None:
        """Zero weights by what products read, and change the others so that they keep their answers.

        Args:
            samples: of the model's inputs, of batch 1.
        """
        import torch

        asked = {name: getattr(self._change, name) for name in ("sparsity", "pattern", "skip", "least")}
        change, kept = Reconstruct(**asked), [self._own(sample) for sample in samples]
        places = {p.weight: (p, parts) for p, parts in self._products_now()}
        with giving(Given(lambda graph: iter(kept))):
            for weight, moments in seen(self._graph, list(places)):
                product, parts = places[weight]
                array = change.thinned(product, moments)
                for part in parts:
                    own = np.ascontiguousarray(part.of(array[part.rows]))
                    self.weights[part.name].data.copy_(torch.from_numpy(own))

    def _own(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """A sample as the graph takes it: one of a language model has no mask, and says which logits it wants."""
        takes = {node.attributes["name"] for node in self._graph.inputs}
        own = {name: value for name, value in sample.items() if name in takes}
        return own | ({KEEP: np.arange(own["input_ids"].shape[1])} if KEEP in takes else {})

    @property
    def count(self) -> int:
        """How many weights can be chosen."""
        return sum(weight.numel() for weight in self.weights.values())

    def at(self, share: float = 1.0) -> Mapping[str, Any]:
        """Name -> bool tensor, True where a weight stays.

        Args:
            share: of the weights that the pass drops now, only the smallest: so many, 0 to 1.
        """
        import torch

        now = [replace(p, array=self._array(parts)) for p, parts in self._products_now()]
        if share < 1 and self._height > 1:
            masks = self._change.masks(now, share)  # whole blocks
        else:
            masks = self._change.masks(now)
            masks = masks if share == 1 else _fewer(now, masks, share)
        return {
            part.name: torch.from_numpy(np.ascontiguousarray(part.of(mask[part.rows])))
            for mask, parts in zip(masks, self._parts, strict=True)
            for part in parts
        }

    def _products_now(self) -> Iterator[tuple[Product, Sequence[Part]]]:
        return zip(self._products, self._parts, strict=True)

    def _array(self, parts: Sequence[Part]) -> Array:
        return np.concatenate([part.of(self.weights[part.name].detach().numpy()) for part in parts])


def hold(weights: Mapping[str, Any], keep: Mapping[str, Any]) -> None:
    """Zero in place what is not kept."""
    for name, mask in keep.items():
        weights[name].data.mul_(mask)


def graph_of(model: Path, task: str) -> Graph:
    """The graph that `prune` gets when the folder is compiled.

    Raises:
        LlmcError: the folder cannot be imported, or has several functions.
    """
    functions = kept_imports.load(model, task=task).module.functions
    if len(functions) > 1:
        raise LlmcError("recover is for models of one function", at=str(model), found=", ".join(functions))
    graph = next(iter(functions.values()))
    for place in _BEFORE:
        graph, _ = Pipeline.parse(LEVEL_PARTS[-1][place], PASSES).run(graph)
    return graph


def _fewer(products: Sequence[Product], masks: Sequence[Array], share: float) -> list[Array]:
    """Masks that drop the smallest of what `masks` drop."""
    sizes = [np.abs(p.array) for p in products]
    dropped = np.concatenate([s[~mask] for s, mask in zip(sizes, masks, strict=True)])
    count = round(share * dropped.size)
    if not count:
        return [np.ones_like(mask) for mask in masks]
    bound = np.partition(dropped, count - 1)[count - 1]
    return [mask | (s > bound) for s, mask in zip(sizes, masks, strict=True)]


def located(matrices: Sequence[tuple[Array, str]], model: Any) -> Iterator[Sequence[Part]]:
    """Of each matrix of a graph the model's parameters that make its rows, in order; each of them is taken once.

    Args:
        matrices: their values, and where they are, for messages.

    Raises:
        LlmcError: a matrix is none of the model's own.
    """
    own = {name: p.detach().numpy() for name, p in model.named_parameters() if p.ndim == 2}
    by_row: dict[bytes, list[tuple[str, bool]]] = {}
    for name, array in own.items():
        by_row.setdefault(array[0].tobytes(), []).append((name, False))
        by_row.setdefault(array[:, 0].tobytes(), []).append((name, True))
    taken: set[str] = set()
    for matrix, place in matrices:
        parts: list[Part] = []
        while (start := parts[-1].rows.stop if parts else 0) < len(matrix):
            rest = matrix[start:]
            part = next(_fitting(rest, start, by_row.get(rest[0].tobytes(), ()), own, taken), None)
            if part is None:
                raise LlmcError(
                    "a weight of the compiled model is computed from the folder's, and cannot be trained in place",
                    at=place,
                    hint="leave it out: skip=[...] of --prune",
                )
            taken.add(part.name)
            parts.append(part)
        yield parts


def _fitting(
    rest: Array, start: int, named: Sequence[tuple[str, bool]], own: Mapping[str, Array], taken: set[str]
) -> Iterator[Part]:
    for name, turned in named:
        block = own[name].T if turned else own[name]
        if name not in taken and len(block) <= len(rest) and np.array_equal(block, rest[: len(block)]):
            yield Part(name, slice(start, start + len(block)), turned)
