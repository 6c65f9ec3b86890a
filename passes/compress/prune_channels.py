"""`prune-channels`: output channels of convolutions are taken out, with all that reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

import numpy as np

from llmc.compiler.effects import Verdict, tell
from llmc.compiler.given import given
from llmc.compiler.graph import Graph, Node
from llmc.compiler.moments import of_columns
from llmc.compiler.ops import OPS, make
from llmc.compiler.pipeline import LOSSY, Keeps, Pass
from llmc.errors import LlmcError
from llmc.passes.compress.weights import Array, Make, rebuild, share_of, skipped, taken

_POOLS = ("max_pool2d", "avg_pool2d")
_REDUCTIONS = ("mean", "sum", "max", "min")


@dataclass(frozen=True)
class At:
    """Where the channels of a convolution lie in a value: of `axis` each has `each` elements, side by side."""

    axis: int
    each: int = 1


@dataclass
class Channels:
    """The channels of one convolution: all that makes, carries or reads them.

    Args:
        conv: what makes them.
        carried: value -> where they lie in it.
        cuts: node -> (number of an input, its axis, elements of each channel) of weights that lose what goes.
        readers: the products whose sums lose terms.
        left: why they stay; empty if they can go.
    """

    conv: Node
    carried: dict[Node, At] = field(default_factory=dict)
    cuts: dict[Node, list[tuple[int, int, int]]] = field(default_factory=dict)
    readers: list[Node] = field(default_factory=list)
    left: str = ""

    @property
    def count(self) -> int:
        return int(self.conv.inputs[1].shape[0])


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove the output channels of convolutions that matter least, and what reads them of the layers behind.

    Li et al. 2017, "Pruning Filters for Efficient ConvNets". Channels go through activations, pools, means, depthwise
    convolutions and reshapes to convolutions and products; where they are added to others or joined with them, as in
    residual networks, or are an output, they stay.

    Args:
        fraction: share of the channels of each convolution to remove, 0 to below 1.
        by: "magnitude": a channel's score is the norm of its filter times that of the weights that read it; or
            "activations": the root of the mean square of its values on `--calib`, times the latter.
        multiple: the number that stays is rounded up to a multiple of this, for whole vectors.
        skip: patterns of modules to leave out.
    """

    name = "prune-channels"
    keeps: ClassVar[Keeps] = LOSSY
    fraction: float = 0.3
    by: str = "magnitude"
    multiple: int = 8
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        share_of("prune-channels: fraction", self.fraction)
        if self.by not in ("magnitude", "activations"):
            raise LlmcError(
                "prune-channels: no such measure", found=self.by, hint="use magnitude or activations"
            )
        if self.multiple < 1:
            raise LlmcError("prune-channels: multiple must be at least 1", found=str(self.multiple))

    @property
    def wants_samples(self) -> bool:  # type: ignore[override]
        """Weights alone say how large they are."""
        return self.by == "activations"

    def enters(self) -> bool:
        """Samples show nothing of what is inside a body."""
        return False

    def run(self, graph: Graph) -> Graph:
        """Choose, then shrink all at once: a convolution may lose inputs and outputs."""
        every = [channels_of(graph, node) for node in graph.nodes if node.op == "conv2d"]
        named = skipped(graph, [c.conv for c in every], self.skip)
        for channels in every:
            if channels.conv in named:
                channels.left = "named by skip"
            elif not channels.left and self._staying(channels.count) == channels.count:
                channels.left = f"of which a multiple of {self.multiple} is all"
        wanted = [c for c in every if not c.left]
        scores = self._scores(graph, wanted)
        kept = {c.conv: np.sort(np.argsort(-s, kind="stable")[: self._staying(c.count)]) for c, s in scores}
        tell("convolutions", [Verdict(c.conv, c.count, c.left) for c in every])
        return shrunk(graph, [(c, kept[c.conv]) for c in wanted])

    def _staying(self, count: int) -> int:
        kept = max(1, round(count * (1 - self.fraction)))
        return min(count, -(-kept // self.multiple) * self.multiple)

    def _scores(self, graph: Graph, wanted: list[Channels]) -> list[tuple[Channels, Array]]:
        """How much each channel says to what reads it."""
        if not wanted:
            return []
        if self.by == "magnitude":
            return [(c, _filters(c) * _read(c)) for c in wanted]
        sites = {c.conv: _site(c) for c in wanted}
        found = of_columns(graph, list(sites.values()), given())
        return [(c, np.sqrt(_each(found[sites[c.conv]].squares, c.count)) * _read(c)) for c in wanted]


def channels_of(graph: Graph, conv: Node) -> Channels:
    """Follows the channels of a `conv2d` to all that reads them."""
    channels = Channels(conv)
    if conv.inputs[1].op != "constant":
        channels.left = f"whose weight is stored as {conv.inputs[1].op}"
    elif conv.attributes["groups"] > 1:
        channels.left = "in groups, which follow what they read"
    elif "residual" in conv.attributes["epilogue"]:
        channels.left = "added to others"
    if channels.left:
        return channels
    channels.carried[conv] = At(_axis(conv))
    channels.cuts[conv] = [(i, 0, 1) for i in range(1, len(conv.inputs))]
    for node in graph.nodes:
        read = [i for i, value in enumerate(node.inputs) if value in channels.carried]
        if read and node is not conv:
            channels.left = _follow(channels, node, read)
        if channels.left:
            return channels
    if any(root in channels.carried for root in graph.roots):
        channels.left = "seen as an output"
    elif not channels.readers:
        channels.left = "read by nothing"
    return channels


def _axis(conv: Node) -> int:
    return conv.type.rank - 1 if conv.attributes["channels_last"] else 1


def _follow(channels: Channels, node: Node, read: list[int]) -> str:
    """Takes note of what a node does with channels that it reads; or says why they have to stay."""
    at = channels.carried[node.inputs[read[0]]]
    if node.op in ("conv2d", "linear"):
        return _of_product(channels, node, read, at)
    if OPS[node.op].elementwise:
        return _of_elementwise(channels, node, at)
    to = _moved(node, at) if len(node.inputs) == 1 else None
    if to is None:
        return f"read by {node.op}"
    channels.carried[node] = to
    return ""


def _of_product(channels: Channels, node: Node, read: list[int], at: At) -> str:
    if read != [0]:
        return "added to others"
    x, w = node.inputs[:2]
    if w.op != "constant" or any(i.op != "constant" and i.type.rank == 1 for i in node.inputs[2:]):
        return f"read by a {node.op} of computed weights"
    if node.op == "linear" and at.axis != x.type.rank - 1:
        return "read by a linear along another axis"
    groups = node.attributes.get("groups", 1)
    if groups == 1:
        channels.cuts.setdefault(node, []).append((1, 1, at.each))
        channels.readers.append(node)
        return ""
    if not groups == channels.count == int(w.shape[0]):
        return "read in groups"
    if "residual" in node.attributes["epilogue"]:
        return "added to others"
    channels.cuts[node] = [(i, 0, 1) for i in range(1, len(node.inputs))]
    channels.carried[node] = At(_axis(node))
    return ""


def _of_elementwise(channels: Channels, node: Node, at: At) -> str:
    """Other operands are the channels too, or constants, or the same for all of them."""
    behind = node.type.rank - at.axis  # operands are aligned at the last axis
    cuts = []
    for number, other in enumerate(node.inputs):
        mine = channels.carried.get(other)
        if mine is not None:
            if (other.type.rank - mine.axis, mine.each) != (behind, at.each):
                return "read by others along another axis"
        elif other.type.rank >= behind and other.shape[-behind] != 1:
            if other.op != "constant":
                return f"joined with others by {node.op}"
            cuts.append((number, other.type.rank - behind, at.each))
    if cuts:
        channels.cuts[node] = cuts
    channels.carried[node] = At(node.type.rank - behind, at.each)
    return ""


def _moved(node: Node, at: At) -> At | None:
    """Where the channels lie in the result of a node of one operand; None if it mixes them."""
    (x,), a = node.inputs, node.attributes
    if node.op in _POOLS:
        return at if at == At(_axis(node)) else None
    if node.op in _REDUCTIONS:
        axes = [axis % x.type.rank for axis in a["axes"]]
        if at.axis in axes:
            return None
        return at if a["keepdims"] else At(at.axis - sum(axis < at.axis for axis in axes), at.each)
    if node.op == "transpose":
        return At(a["perm"].index(at.axis), at.each)
    return _reshaped(node, at) if node.op == "reshape" else None


def _reshaped(node: Node, at: At) -> At | None:
    """The axis of the channels stays one, or takes those behind it, of fixed size, into itself."""
    before, after = node.inputs[0].shape, node.shape
    if len(after) <= at.axis or before[: at.axis] != after[: at.axis] or not isinstance(after[at.axis], int):
        return None
    if after[at.axis] == before[at.axis]:
        return at
    behind = before[at.axis + 1 :]
    if all(isinstance(d, int) for d in behind) and after[at.axis] == int(before[at.axis]) * prod(
        map(int, behind)
    ):
        return At(at.axis, at.each * prod(map(int, behind)))
    return None


def shrunk(graph: Graph, chosen: list[tuple[Channels, Array]]) -> Graph:
    """`graph` with what is kept of these channels."""
    cuts: dict[Node, list[tuple[int, int, Array]]] = {}
    sizes: dict[Node, list[tuple[At, int, bool]]] = {}
    for channels, keep in chosen:
        for node, taken_off in channels.cuts.items():
            cuts.setdefault(node, []).extend((i, axis, spread(keep, each)) for i, axis, each in taken_off)
        for node, at in channels.carried.items():
            if node.op == "reshape" or node.attributes.get("groups", 1) > 1:
                sizes.setdefault(node, []).append((at, len(keep), node.op == "reshape"))
    nodes = [node for node in graph.nodes if node in cuts or node in sizes]
    return rebuild(graph, {node: _made(node, cuts.get(node, []), sizes.get(node, [])) for node in nodes})


def _made(node: Node, cuts: list[tuple[int, int, Array]], sizes: list[tuple[At, int, bool]]) -> Make:
    def anew(inputs: tuple[Node, ...]) -> Node:
        found, attributes = list(inputs), dict(node.attributes)
        for number, axis, keep in cuts:
            found[number] = taken(found[number], keep, axis)
        for at, count, is_reshape in sizes:
            if is_reshape:
                shape = list(attributes["shape"])
                shape[at.axis] = count * at.each
                attributes["shape"] = tuple(shape)
            else:
                attributes["groups"] = count
        return make(node.op, tuple(found), node.source, **attributes)

    return anew


def spread(keep: Array, each: int) -> Array:
    """Of channels that stay, what stays of an axis on which each has `each` elements."""
    return np.asarray((keep[:, None] * each + np.arange(each)).reshape(-1))


def _filters(channels: Channels) -> Array:
    """The norm of each filter, times that of the depthwise filter that carries it on."""
    found = np.ones(channels.count)
    for node, at in channels.carried.items():
        if node.op == "conv2d" and at.each == 1:
            found = found * _norms(node.inputs[1], 0, channels.count)
    return found


def _read(channels: Channels) -> Array:
    """The norm of the weights that read each channel."""
    squared = [_norms(node.inputs[1], 1, channels.count) ** 2 for node in channels.readers]
    return np.asarray(np.sqrt(sum(squared[1:], start=squared[0])))


def _norms(weight: Node, axis: int, count: int) -> Array:
    """Of a weight, cut along an axis into `count` parts of one size."""
    array = np.moveaxis(weight.attributes["value"].array.astype(np.float64), axis, 0)
    return np.asarray(np.sqrt(np.square(array).reshape(count, -1).sum(1)))


def _site(channels: Channels) -> Node:
    """What the first reads that reads them, the channels along the last axis."""
    value = channels.readers[0].inputs[0]
    axis, last = channels.carried[value].axis, value.type.rank - 1
    if axis == last:
        return value
    perm = (*(i for i in range(last + 1) if i != axis), axis)
    return make("transpose", (value,), channels.readers[0].source, perm=perm)


def _each(squares: Array, count: int) -> Array:
    """The mean of what each channel has."""
    return np.asarray(squares.reshape(count, -1).mean(1))
