"""`qkv`: the projections of queries, keys and values that read the same rows become one product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmc.compiler.graph import Node, Source
from llmc.compiler.ops import make
from llmc.compiler.pipeline import Keeps, close
from llmc.compiler.rewrite import Context, Decline, RewritePass


def merge_projections(node: Node, context: Context) -> Node | Decline | None:
    """mha(linear(x, wq), linear(x, wk), linear(x, wv)) -> y = linear(x, concat(wq, wk, wv)); mha(y, y, y)"""
    if node.op != "mha" or any(node.attributes["offsets"]):
        return None
    projections = node.inputs[:3]
    for places in ((0, 1, 2), (1, 2)):  # keys and values alone for cross attention
        chosen = [projections[p] for p in places]
        if _alike(chosen):
            if not all(context.single(c) for c in chosen):
                return Decline("a projection is read elsewhere too")
            return _merged(node, places, chosen)
    return None


def _alike(chosen: list[Node]) -> bool:
    """Different linears of the same rows with constant weights, and all with a bias or all without."""
    first = chosen[0]
    return len(set(chosen)) == len(chosen) and all(
        c.op == "linear"
        and c.inputs[0] is first.inputs[0]
        and c.attributes["epilogue"] == first.attributes["epilogue"]
        and c.attributes["epilogue"] in ((), ("bias",))
        and all(i.op == "constant" for i in c.inputs[1:])
        for c in chosen
    )


def _merged(node: Node, places: tuple[int, ...], chosen: list[Node]) -> Node:
    folder = chosen[0].source.path.rpartition(".")[0]
    source = Source(folder or node.source.path, node.source.line)
    columns = zip(*(c.inputs[1:] for c in chosen), strict=True)
    parts = [make("concat", column, source, axis=0) for column in columns]
    merged = make("linear", (chosen[0].inputs[0], *parts), source, epilogue=chosen[0].attributes["epilogue"])
    inputs, offsets, start = list(node.inputs), list(node.attributes["offsets"]), 0
    for place, projection in zip(places, chosen, strict=True):
        inputs[place], offsets[place] = merged, start
        start += projection.shape[-1]
    return make("mha", inputs, node.source, **{**node.attributes, "offsets": tuple(offsets)})


@dataclass(frozen=True)
class Qkv(RewritePass):
    """Merge the projections of an attention. Run it after `fuse`, and `fold` after it to join the weights."""

    name = "qkv"
    keeps: ClassVar[Keeps] = close(1e-6)  # exact in llmc's kernels, not where BLAS sums by shape
    rules = (merge_projections,)
