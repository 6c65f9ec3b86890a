"""`prune-neurons`: inner columns of feed-forward blocks are taken out, and the matrices shrink."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from llmc.compiler.effects import Verdict, tell
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS, make
from llmc.compiler.pipeline import LOSSY, Keeps, Pass
from llmc.errors import LlmcError
from llmc.passes.compress.weights import Array, Make, linears, readers, rebuild, share_of, taken


@dataclass(frozen=True)
class Block:
    """`down(f(up(x), ...))` with element-wise f.

    Args:
        ups: the linears that make the inner columns.
        between: the nodes of f that must be made anew.
        downs: the linears that read them.
    """

    ups: tuple[Node, ...]
    between: tuple[Node, ...]
    down: Node

    @property
    def width(self) -> int:
        return int(self.ups[0].shape[-1])


@dataclass(frozen=True)
class PruneNeurons(Pass):
    """Remove the inner columns of feed-forward blocks whose weights are smallest.

    A column's score is the product of the norms of the rows that make it and of the column that reads it.

    Args:
        fraction: share of the columns of each block to remove, 0 to below 1.
        multiple: the number that stays is rounded up to a multiple of this, for whole vectors.
        skip: patterns of modules to leave out.
    """

    name = "prune-neurons"
    keeps: ClassVar[Keeps] = LOSSY
    fraction: float = 0.25
    multiple: int = 16
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        share_of("prune-neurons: fraction", self.fraction)
        if self.multiple < 1:
            raise LlmcError("prune-neurons: multiple must be at least 1", found=str(self.multiple))

    def enters(self) -> bool:
        """Neurons are ranked over a whole graph."""
        return False

    def run(self, graph: Graph) -> Graph:
        """Shrink every block that is big enough."""
        chosen = {block.down for block in self.chosen(graph)}
        changes: dict[Node, Make] = {}
        verdicts = []
        for block in blocks(graph):
            shrunk = self._shrunk(block) if block.down in chosen else {}
            reason = "whose width stays" if block.down in chosen else "named by skip"
            verdicts.append(Verdict(block.down, block.width, "" if shrunk else reason))
            changes.update(shrunk)
        tell("feed-forward blocks", verdicts)
        return rebuild(graph, changes)

    def chosen(self, graph: Graph) -> list[Block]:
        """The blocks that may lose columns; no two share a product."""
        allowed = {p.node for p in linears(graph, self.skip)}
        used: set[Node] = set()
        found = []
        for block in blocks(graph):
            own = {block.down, *block.ups}
            if own <= allowed and not own & used:
                found.append(block)
                used |= own
        return found

    def kept(self, scores: Array) -> Array:
        """The columns of a block that stay, ascending, by their scores."""
        count = round(len(scores) * (1 - self.fraction))
        count = min(len(scores), -(-count // self.multiple) * self.multiple)
        return np.sort(np.argsort(-scores, kind="stable")[:count])

    def _shrunk(self, block: Block) -> Mapping[Node, Make]:
        keep = self.kept(scores(block))
        if len(keep) == block.width:
            return {}
        changes: dict[Node, Make] = {up: partial(fewer_rows, up, keep) for up in block.ups}
        changes[block.down] = partial(fewer_columns, block.down, keep)
        return changes


def blocks(graph: Graph) -> Iterator[Block]:
    """Feed-forward blocks whose inner columns nobody else sees and that are wider inside than outside."""
    for down in graph.nodes:
        if down.op == "linear" and down.inputs[1].op == "constant":
            block = _block(graph, down)
            if block is not None and block.width > max(int(u.inputs[1].shape[1]) for u in block.ups):
                yield block


def _block(graph: Graph, down: Node) -> Block | None:
    ups: dict[Node, None] = {}
    between: dict[Node, None] = {}
    pending, inner = [down.inputs[0]], down.inputs[0].shape
    while pending:
        node = pending.pop()
        if node in ups or node in between or _same_for_every_column(node):
            continue
        if node.shape != inner:
            return None
        if node.op == "linear" and _shrinkable(node):
            ups[node] = None
        elif OPS[node.op].elementwise:
            between[node] = None
            pending += node.inputs
        else:
            return None
    inside = {down, *between}
    if not ups or any(r not in inside or r is n for n in (*ups, *between) for r in readers(graph, n)):
        return None
    return Block(tuple(ups), tuple(between), down)


def _same_for_every_column(node: Node) -> bool:
    return node.op == "constant" and (not node.shape or node.shape[-1] == 1)


def _shrinkable(node: Node) -> bool:
    constants = all(i.op == "constant" for i in node.inputs[1:])
    return constants and "residual" not in node.attributes["epilogue"]


def scores(block: Block) -> Array:
    """Of each column: the norms of the rows that make it times that of the column that reads it."""
    score = np.linalg.norm(_array(block.down).astype(np.float64), axis=0)
    for up in block.ups:
        score = score * np.linalg.norm(_array(up).astype(np.float64), axis=1)
    return np.asarray(score)


def _array(node: Node) -> Array:
    return np.asarray(node.inputs[1].attributes["value"].array)


def fewer_rows(node: Node, keep: Array, inputs: tuple[Node, ...]) -> Node:
    """The `linear` with the rows `keep` of its weight and bias."""
    constants = (taken(i, keep) for i in inputs[1:])
    return make("linear", (inputs[0], *constants), node.source, **node.attributes)


def fewer_columns(node: Node, keep: Array, inputs: tuple[Node, ...]) -> Node:
    """The `linear` with the columns `keep` of its weight."""
    return make("linear", (inputs[0], taken(inputs[1], keep, 1), *inputs[2:]), node.source, **node.attributes)
