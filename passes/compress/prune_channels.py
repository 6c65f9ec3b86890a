"""`prune-channels`: output channels of convolutions are taken out, with all that reads them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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
from llmc.passes.match import is_of_adapter

_POOLS = ("max_pool2d", "avg_pool2d")
_REDUCTIONS = ("mean", "sum", "max", "min")


@dataclass(frozen=True)
class At:
    """Where the channels of a convolution lie in a value: `axis` is `outer` times all of them, `each` elements each."""

    axis: int
    each: int = 1
    outer: int = 1

    def spread(self, keep: Array, count: int) -> Array:
        """What stays of the axis, of `count` channels of which these stay."""
        every = np.arange(self.outer * count * self.each).reshape(self.outer, count, self.each)
        return np.asarray(every[:, keep].reshape(-1))

    def by_channel(self, array: Array, count: int) -> Array:
        """An array whose first axis is this one, [channels, what each has]."""
        parts = array.reshape(self.outer, count, self.each, -1)
        return np.asarray(parts.swapaxes(0, 1).reshape(count, -1))


@dataclass
class Channels:
    """The channels of one convolution: all that makes, carries or reads them.

    Args:
        conv: what makes them: a `conv2d`, or the `linear` that one of 1x1 has become.
        carried: value -> where they lie in it.
        cuts: node -> (number of an input, where they lie in it) of weights that lose what goes.
        readers: the products whose sums lose terms, and where the channels lie in the inputs of their weights.
        left: why they stay; empty if they can go.
    """

    conv: Node
    carried: dict[Node, At] = field(default_factory=dict)
    cuts: dict[Node, list[tuple[int, At]]] = field(default_factory=dict)
    readers: list[tuple[Node, At]] = field(default_factory=list)
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
        every = [channels_of(graph, node) for node in graph.nodes if _is_convolution(node)]
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
        return [(c, _loudness(c, found[sites[c.conv]].squares) * _read(c)) for c in wanted]


def channels_of(graph: Graph, conv: Node) -> Channels:
    """Follows the channels of a convolution to all that reads them."""
    channels = Channels(conv)
    if conv.inputs[1].op != "constant":
        channels.left = f"whose weight is stored as {conv.inputs[1].op}"
    elif conv.attributes.get("groups", 1) > 1:
        channels.left = "in groups, which follow what they read"
    elif "residual" in conv.attributes["epilogue"]:
        channels.left = "added to others"
    if channels.left:
        return channels
    channels.carried[conv] = At(_axis(conv))
    channels.cuts[conv] = [(i, At(0)) for i in range(1, len(conv.inputs))]
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
    return conv.type.rank - 1 if conv.op == "linear" or conv.attributes["channels_last"] else 1


def _is_convolution(node: Node) -> bool:
    return node.op == "conv2d" or (node.op == "linear" and node.type.rank == 4 and not is_of_adapter(node))


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
        read_at = replace(at, axis=1)
        channels.cuts.setdefault(node, []).append((1, read_at))
        channels.readers.append((node, read_at))
        return ""
    if not groups == channels.count == int(w.shape[0]):
        return "read in groups"
    if "residual" in node.attributes["epilogue"]:
        return "added to others"
    channels.cuts[node] = [(i, At(0)) for i in range(1, len(node.inputs))]
    channels.carried[node] = At(_axis(node))
    return ""


def _of_elementwise(channels: Channels, node: Node, at: At) -> str:
    """Other operands are the channels too, or constants, or the same for all of them."""
    behind = node.type.rank - at.axis  # operands are aligned at the last axis
    cuts = []
    for number, other in enumerate(node.inputs):
        mine = channels.carried.get(other)
        if mine is not None:
            if (other.type.rank - mine.axis, mine.each, mine.outer) != (behind, at.each, at.outer):
                return "read by others along another axis"
        elif other.type.rank >= behind and other.shape[-behind] != 1:
            if other.op != "constant":
                return f"joined with others by {node.op}"
            cuts.append((number, replace(at, axis=other.type.rank - behind)))
    if cuts:
        channels.cuts[node] = cuts
    channels.carried[node] = replace(at, axis=node.type.rank - behind)
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
        gone = 0 if a["keepdims"] else sum(axis < at.axis for axis in axes)
        return replace(at, axis=at.axis - gone)
    if node.op == "transpose":
        return replace(at, axis=a["perm"].index(at.axis))
    return _reshaped(node, at) if node.op == "reshape" else None


def _reshaped(node: Node, at: At) -> At | None:
    """The axis of the channels stays one, or the last axis takes in all that is behind another, of fixed size."""
    before, after = node.inputs[0].shape, node.shape
    if before[: at.axis + 1] == after[: at.axis + 1]:
        return at
    first = len(after) - 1
    joined = before[first:]
    if first > at.axis or before[:first] != after[:first] or not all(isinstance(d, int) for d in joined):
        return None
    sizes = [int(d) for d in joined]
    number = at.axis - first
    return At(first, at.each * prod(sizes[number + 1 :]), prod(sizes[:number]) * at.outer)


def shrunk(graph: Graph, chosen: list[tuple[Channels, Array]]) -> Graph:
    """`graph` with what is kept of these channels."""
    cuts: dict[Node, list[tuple[int, int, Array]]] = {}
    sizes: dict[Node, list[tuple[At, int, bool]]] = {}
    for channels, keep in chosen:
        for node, taken_off in channels.cuts.items():
            cuts.setdefault(node, []).extend(
                (i, a.axis, a.spread(keep, channels.count)) for i, a in taken_off
            )
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
                shape[at.axis] = at.outer * count * at.each
                attributes["shape"] = tuple(shape)
            else:
                attributes["groups"] = count
        return make(node.op, tuple(found), node.source, **attributes)

    return anew


def _filters(channels: Channels) -> Array:
    """The norm of each filter, times that of the depthwise filter that carries it on."""
    found = np.ones(channels.count)
    for node in channels.carried:
        if _is_convolution(node):
            found = found * _norms(node.inputs[1], At(0), channels.count)
    return found


def _read(channels: Channels) -> Array:
    """The norm of the weights that read each channel."""
    squared = [_norms(node.inputs[1], at, channels.count) ** 2 for node, at in channels.readers]
    return np.asarray(np.sqrt(sum(squared[1:], start=squared[0])))


def _norms(weight: Node, at: At, count: int) -> Array:
    """Of what each channel has of a weight."""
    array = np.moveaxis(weight.attributes["value"].array.astype(np.float64), at.axis, 0)
    return np.asarray(np.linalg.norm(at.by_channel(array, count), axis=1))


def _loudness(channels: Channels, squares: Array) -> Array:
    """The root of the mean square of each channel, but for what is one factor for all."""
    value = channels.readers[0][0].inputs[0]
    return np.asarray(np.sqrt(channels.carried[value].by_channel(squares, channels.count).mean(1)))


def _site(channels: Channels) -> Node:
    """What the first reads that reads them, the channels along the last axis."""
    value = channels.readers[0][0].inputs[0]
    axis, last = channels.carried[value].axis, value.type.rank - 1
    if axis == last:
        return value
    perm = (*(i for i in range(last + 1) if i != axis), axis)
    return make("transpose", (value,), channels.readers[0][0].source, perm=perm)
