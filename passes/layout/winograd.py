"""`winograd`: 3x3 convolutions with 16 products for each 2x2 pixels, where windows take 36.

A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015. How near it is: docs/numerics.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import numpy as np

from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import make
from llmc.compiler.pipeline import Keeps, Pass, Pipeline, close
from llmc.compiler.rewrite import Decline, rewrite
from llmc.errors import LlmcError
from llmc.passes.match import weight

# Where it is faster, measured on a Zen 5 with AVX-512 (docs/benchmarks.md).
MIN_CHANNELS = 8  # with fewer, to make tiles and pixels takes what the products save
MAX_CHANNELS = 1024  # with more, few tiles fit a cache, and the weight's 16 for 9 are read again for each few
MIN_PIXELS = 36  # with fewer, those 16 for 9 come from memory for longer than the products take
_LEAST = 1.5  # products of windows for one of tiles, which reach beyond images of odd sizes
_LARGEST = 1e38  # of a weight: tiles have sums of up to 2.25 times as much


@dataclass(frozen=True)
class Winograd(Pass):
    """Compute 3x3 convolutions that look at every pixel by tiles: 16 products where windows take 36.

    Run it where images lie with channels last, and after what makes levels of weights.

    Args:
        skip: patterns of module paths to leave alone, such as "encoder.stages.0.*"; "*" leaves all.
        min_channels: convolutions with fewer channels, of the image or the result, stay as they are.
        min_pixels: so do those whose result has fewer; images of dynamic size have enough.
    """

    name = "winograd"
    keeps: ClassVar[Keeps] = close(1e-5)
    skip: tuple[str, ...] = ()
    min_channels: int = MIN_CHANNELS
    min_pixels: int = MIN_PIXELS

    def __post_init__(self) -> None:
        for name, least in (("min_channels", self.min_channels), ("min_pixels", self.min_pixels)):
            if least < 1:
                raise LlmcError(f"winograd: {name} must be positive", found=str(least))

    def run(self, graph: Graph) -> Graph:
        """One walk."""
        return rewrite(graph, (self.by_tiles,))

    def by_tiles(self, node: Node) -> Node | Decline | None:
        """conv2d{channels_last}(x, w[o, c, 3, 3]) -> conv2d{channels_last, winograd}(x, w)"""
        if node.op != "conv2d" or not _fits(node) or node.attributes["winograd"]:
            return None
        if why := self._left(node):
            return Decline(why)
        return make("conv2d", node.inputs, node.source, **{**node.attributes, "winograd": True})

    def _left(self, node: Node) -> str:
        """Why a convolution that could be computed by tiles is not; empty if it is."""
        if any(fnmatchcase(node.source.path, pattern) for pattern in self.skip):
            return "named by skip"
        value = weight(node.inputs[1])
        if value is None:
            return "the weight is no constant of float32"
        if min(value.array.shape[:2]) < self.min_channels:
            return f"fewer than {self.min_channels} channels"
        if value.array.shape[1] > MAX_CHANNELS:
            return f"more than {MAX_CHANNELS} channels"
        if why := self._too_small([d for d in node.shape[1:3] if isinstance(d, int)]):
            return why
        return "" if (np.abs(value.array) < _LARGEST).all() else "the weight has values that are too large"

    def _too_small(self, known: Sequence[int]) -> str:
        """Why an image is, of whose sizes these are known; empty if it is not."""
        if len(known) == 2 and math.prod(known) < self.min_pixels:
            return f"fewer than {self.min_pixels} pixels"
        saved = 36 / 16 * math.prod(d / (d + d % 2) for d in known)
        return "" if saved >= _LEAST else "tiles reach too far beyond the image"


def _fits(node: Node) -> bool:
    """3x3 taps side by side, at every pixel, over all channels, which lie last."""
    a = node.attributes
    plain = a["stride"] == a["dilation"] == (1, 1) and a["groups"] == 1
    return bool(a["channels_last"] and plain and node.inputs[1].shape[2:] == (3, 3))


def winograd_steps(graph: Graph) -> Pipeline:
    """The pass, where it applies."""
    change = Winograd()
    applies = any(isinstance(change.by_tiles(node), Node) for node in graph.everywhere())
    return Pipeline.of(change) if applies else Pipeline(())
