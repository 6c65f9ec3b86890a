"""LoRA adapters beside one base: every session chooses one of them, or none.

To each product that an adapter was trained on another is added, `B (m * (A x))`. A and B hold the matrices of all
adapters, one behind the other; `m` is a row of zeros and ones by the number of the adapter, an input that has a number
for each token. So it works row by row: sessions of different adapters share a run. What is added of the others, and of
all where none is chosen, is 0 exactly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from llmc.compiler.dims import dim_text
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.frontends.lora import Pair, pairs_of
from llmc.compiler.graph import Graph, Node, Source, Weight
from llmc.compiler.ops import constant, input_, make
from llmc.errors import LlmcError

ADAPTER = "adapter"  # the input; the runtime fills it with the session's
MOST = 1024
_WHOLE = 16  # ranks together are a multiple, as kernels have vectors
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HINT = "merge it into its base: llmc compile BASE --adapter DIR"


def with_adapters(imported: Imported, folders: Mapping[str, str | Path]) -> Imported:
    """The model with adapters by name, those of `folders`, in this order.

    Raises:
        LlmcError: a name or an adapter is not usable, or does not fit the model.
    """
    _want_names(folders)
    if not any(graph.states for graph in imported.module.functions.values()):
        raise LlmcError(
            "an adapter is chosen by session, and the model keeps nothing in one",
            found=f"a {imported.task} model",
            hint=_HINT,
        )
    given = {name: pairs_of(Path(folder)) for name, folder in folders.items()}
    beside = _Beside(tuple(given.values()))
    functions = {name: beside.added_to(graph) for name, graph in imported.module.functions.items()}
    for name, pairs in given.items():
        _want_placed(str(folders[name]), pairs, beside)
    first = next(iter(functions.values()))
    several = functions if imported.functions else {}
    return replace(imported, graph=first, functions=several, adapters=tuple(folders))


def _want_names(folders: Mapping[str, str | Path]) -> None:
    if len(folders) > MOST:
        raise LlmcError(f"there are {len(folders)} adapters, at most {MOST} are possible")
    for name in folders:
        if not _NAME.fullmatch(name):
            raise LlmcError(
                f"{name!r:.80} is no name of an adapter",
                hint="letters, digits, points, dashes and underscores, 64 of them at most",
            )


def _want_placed(at: str, pairs: Mapping[str, Pair], beside: _Beside) -> None:
    """Refuse an adapter of which a part would have no effect."""
    left = [path for path in pairs if path not in beside.placed]
    if not left:
        return
    if why := beside.refused.get(left[0]):
        raise LlmcError(
            f"the adapter's part of {left[0]} cannot be chosen by session: {why}", at=at, hint=_HINT
        )
    close = get_close_matches(left[0], beside.seen, 1)
    told = f"the adapter has weights for {left[0]}, and the model no product there"
    raise LlmcError(told, at=at, hint=f"the nearest is {close[0]}" if close else _HINT)


@dataclass(frozen=True)
class _Stacked:
    """The matrices of all adapters at one product, and the rows of zeros and ones, the first of no adapter."""

    a: np.ndarray
    b: np.ndarray
    mask: np.ndarray

    @staticmethod
    def of(pairs: Sequence[Pair | None]) -> _Stacked:
        known = [pair for pair in pairs if pair is not None]
        rank = sum(pair.rank for pair in known)
        whole, k, n = -rank % _WHOLE + rank, known[0].a.shape[1], len(known[0].b)
        a, b = np.zeros((whole, k), np.float32), np.zeros((n, whole), np.float32)
        mask = np.zeros((len(pairs) + 1, whole), np.float32)
        start = 0
        for number, pair in enumerate(pairs, 1):
            if pair is None:
                continue
            span = slice(start, start + pair.rank)
            a[span], b[:, span], mask[number, span] = pair.a, pair.b, 1
            start += pair.rank
        return _Stacked(a, b, mask)


class _Beside:
    """Adds products to graphs, and notes where."""

    def __init__(self, given: Sequence[Mapping[str, Pair]]) -> None:
        self._given = given
        self._stacked: dict[str, _Stacked] = {}
        self.placed: set[str] = set()
        self.refused: dict[str, str] = {}
        self.seen: list[str] = []

    def added_to(self, graph: Graph) -> Graph:
        """The graph with what adapters add, and their number as another input where there is any."""
        tokens = next((node for node in graph.inputs if _are_tokens(node)), None)
        if tokens is None:
            return graph
        number = input_(ADAPTER, "i64", tokens.shape, default=0, low=0, high=len(self._given))
        masks: dict[bytes, Node] = {}

        def change(_: Node, node: Node) -> Node:
            return self._changed(node, number, masks)

        made = graph.rebuild(change)
        if made is graph:
            return graph
        return replace(made, inputs=(*made.inputs, number))

    def _changed(self, node: Node, number: Node, masks: dict[bytes, Node]) -> Node:
        path = node.source.path
        if node.op not in ("linear", "matmul") or node.inputs[1].op != "constant":
            return node
        self.seen.append(path)
        pairs = [pairs.get(path) for pairs in self._given]
        if not any(pairs):
            return node
        x, rows = node.inputs[0], number.shape[1]
        if [d for d in x.shape[:-1] if d != 1] != [rows]:
            self.refused[path] = f"its rows are {dim_text(x.shape[-2])}, not one for each token"
            return node
        self._want_fitting(path, pairs, node)
        self.placed.add(path)
        return self._sum(node, self._stack(path, pairs), number, masks)

    def _want_fitting(self, path: str, pairs: Sequence[Pair | None], node: Node) -> None:
        wanted = int(node.inputs[0].shape[-1]), int(node.shape[-1])
        for pair in pairs:
            if pair is not None and (pair.a.shape[1], len(pair.b)) != wanted:
                raise LlmcError(
                    f"an adapter does not fit its base at {path}",
                    found=f"from {pair.a.shape[1]} to {len(pair.b)} values, the base from {wanted[0]} to {wanted[1]}",
                    hint="was it trained on this model?",
                )

    def _stack(self, path: str, pairs: Sequence[Pair | None]) -> _Stacked:
        if path not in self._stacked:
            self._stacked[path] = _Stacked.of(pairs)
        return self._stacked[path]

    def _sum(self, node: Node, stacked: _Stacked, number: Node, masks: dict[bytes, Node]) -> Node:
        """y -> y + B (m * (A x))"""
        path, x = node.source.path, node.inputs[0]
        key = stacked.mask.tobytes()
        if key not in masks:
            table = constant(Weight(stacked.mask, f"{ADAPTER}.mask"), source=number.source)
            masks[key] = make("embedding", (table, number), number.source)
        shape = (*x.shape[:-1], len(stacked.a))
        mask = make("reshape", (masks[key],), number.source, shape=shape)
        thin = make("mul", (_product(x, stacked.a, f"{path}.lora_A"), mask))
        return make("add", (node, _product(thin, stacked.b, f"{path}.lora_B")), node.source)


def _product(x: Node, weight: np.ndarray, path: str) -> Node:
    source = Source(path)
    return make("linear", (x, constant(Weight(weight, f"{path}.weight"), source=source)), source)


def _are_tokens(node: Node) -> bool:
    """Whether an input has a number for each token of one sequence."""
    return (
        node.dtype == "i64"
        and node.type.rank == 2
        and node.shape[0] == 1
        and not isinstance(node.shape[1], int)
    )
