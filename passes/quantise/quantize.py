"""`quantize`: products and convolutions on int8, or products with half-precision weights, written out.

`qfuse` makes kernels of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np

from llmc.compiler.graph import Graph, Node, Weight
from llmc.compiler.ops import OPS, constant, make
from llmc.compiler.ops.quantise import LONGEST
from llmc.compiler.pipeline import LOSSY, Keeps, Pass
from llmc.errors import LlmcError
from llmc.passes.match import is_of_adapter, weight
from llmc.passes.quantise.told import tell_quantised, tell_ranges

STATIC = "int8-static"
MODES = ("int8", STATIC, "fp16")
PRODUCTS = ("linear", "conv2d")
SHORTEST = 64  # products of a convolution's sum: with fewer, levels cost what they save
SMALL_TABLE = 65536  # bytes; a smaller embedding table stays as it is
_HALF_MAX = 65504.0

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Quantize(Pass):
    """Write products with constant weights, convolutions and embedding tables as quantised and dequantised again.

    int8: weights by output channel, activations by token, or image, as they come. int8-static: the activations of each
    product share one scale found by calibration, but where that loses too much (`calibration.dynamic`). fp16: weights
    rounded to half precision, not those of convolutions. Norms, activation functions and residuals stay float; a gelu
    that is rounded to int8 next becomes `gelu_poly`.

    Args:
        mode: "int8", "int8-static" or "fp16".
        skip: patterns of module paths to leave alone, such as "encoder.layer.0.*".
        slower: patterns likewise, of products that would take longer than in float.
        min_columns: products with fewer output columns stay float.
        scales: for int8-static, the scale of the input of each product, in the order of the graph; 0: by token, as it
            comes.
    """

    name = "quantize"
    keeps: ClassVar[Keeps] = LOSSY
    mode: str = "int8"
    skip: tuple[str, ...] = ()
    slower: tuple[str, ...] = ()
    min_columns: int = 16
    scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise LlmcError(f"quantize: no mode {self.mode!r}", hint=f"use {', '.join(MODES)}")
        if self.min_columns < 1:
            raise LlmcError("quantize: min_columns must be positive", found=str(self.min_columns))
        if self.scales and self.mode != STATIC:
            raise LlmcError("quantize: scales are for mode int8-static", found=self.mode)
        if any(not 0 <= s < float("inf") for s in self.scales):
            raise LlmcError("quantize: a scale is not a positive number, nor 0")

    def products(self, graph: Graph) -> tuple[Node, ...]:
        """The `linear` and `conv2d` nodes of `graph` that this pass quantises."""
        return tuple(node for node in graph.nodes if self._wanted(node))

    def finds(self, graph: Graph) -> bool:
        """Whether there is a product, or a table, to quantise."""
        looked_up = (node for node in graph.nodes if node.op in ("embedding", "embed_norm"))
        tables = (_is_table(n, at) and not self._skipped(n) for n in looked_up for at in range(len(n.inputs)))
        return bool(self.products(graph)) or any(tables)

    def sites(self, graph: Graph) -> tuple[Node, ...]:
        """The different inputs of `products`: what int8-static needs a scale for, in order."""
        return tuple(dict.fromkeys(node.inputs[0] for node in self.products(graph)))

    def _wanted(self, node: Node) -> bool:
        return node.op in PRODUCTS and not self._left_product(node)

    def _left_product(self, node: Node) -> str:
        """Why a product stays float; empty if it does not."""
        w = node.inputs[1]
        if w.op != "constant" or w.dtype != "f32":
            return f"stored as {w.op if w.op != 'constant' else w.dtype}"
        if is_of_adapter(node):
            return "of an adapter"
        left = self._left_convolution(node) if node.op == "conv2d" else ""
        if left:
            return left
        n, k = int(w.shape[0]) // node.attributes.get("groups", 1), math.prod(int(d) for d in w.shape[1:])
        if n < self.min_columns:
            return f"with fewer than {self.min_columns} output columns"
        if not 0 < k < LONGEST:
            return f"with rows of no value, or of {LONGEST} and more"
        if any(fnmatchcase(node.source.path, pattern) for pattern in self.slower):
            return f"slower on {self.mode} than in float"
        return "named by skip" if self._skipped(node) else ""

    def _left_convolution(self, node: Node) -> str:
        a, x, w = node.attributes, node.inputs[0], node.inputs[1]
        if self.mode == "fp16" or not a["channels_last"]:
            return "read by conv2d"
        if w.shape[1] == 1 and a["groups"] > 1:
            return "of convolutions by channel"
        if math.prod(int(d) for d in w.shape[1:]) < SHORTEST:
            return f"of convolutions with fewer than {SHORTEST} products to a sum"
        if self.mode == "int8" and not all(isinstance(d, int) for d in x.shape[1:]):
            return "of images of dynamic size"
        return ""

    def _left(self, node: Node, w: Node) -> str:
        """Why the weight of a product or table stays float, given that it does."""
        if node.op in PRODUCTS:
            return self._left_product(node) or "with a value beyond the range of f16"
        if self._skipped(node):
            return "named by skip"
        known = any(i is w and _is_table(node, at) for at, i in enumerate(node.inputs))
        return "with a value beyond the range of f16" if known else f"tables of at most {SMALL_TABLE} bytes"

    def _skipped(self, node: Node) -> bool:
        return any(fnmatchcase(node.source.path, pattern) for pattern in self.skip)

    def enters(self) -> bool:
        """Scales that were found by calibration belong to the products of a graph, not of a body."""
        return self.mode != STATIC

    def run(self, graph: Graph) -> Graph:
        """One walk; equal weights and equal activations are quantised once."""
        wanted = set(self.products(graph))
        coarse = set() if self.mode == "fp16" else _rounded_gelus(graph, wanted)
        scales = self._scales(graph)
        made = _Made(self.mode, {}, {})

        def change(before: Node, node: Node) -> Node:
            if before in coarse:
                node = _with_poly(node)
            if before in wanted:
                return self._product(node, scales.get(before.inputs[0]) or None, made)
            if node.op in ("embedding", "embed_norm") and not self._skipped(node):
                inputs = [made.table(i) if _is_table(node, at) else i for at, i in enumerate(node.inputs)]
                same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
                return node if same else node.with_inputs(inputs)
            return node

        after = graph.rebuild(change)
        tell_quantised(graph, {w for w, new in made.known.items() if new is not w}, self._left)
        if self.mode == STATIC:
            tell_ranges(scales)
        return after

    def _product(self, node: Node, scale: float | None, made: _Made) -> Node:
        x, w, *extras = node.inputs
        narrow = made.table(w)
        if narrow is w:
            return node
        if self.mode != "fp16":
            x = made.image(x) if node.op == "conv2d" and scale is None else made.activation(x, scale)
        return make(node.op, (x, narrow, *extras), node.source, **node.attributes)

    def _scales(self, graph: Graph) -> Mapping[Node, float]:
        if self.mode != STATIC:
            return {}
        sites = self.sites(graph)
        if len(sites) != len(self.scales):
            raise LlmcError(
                f"quantize: {len(self.scales)} scales are given for {len(sites)} inputs of products",
                hint="llmc compile --quant int8-static --calib FILE finds them",
            )
        scales = dict(zip(sites, self.scales, strict=True))
        for node in self.products(graph):
            if node.op == "conv2d" and not scales[node.inputs[0]]:
                raise LlmcError("quantize: a scale of 0 is for products alone", at=str(node.source))
        return scales


def _is_table(node: Node, position: int) -> bool:
    """Whether an input of `embedding` or `embed_norm` is a constant table worth quantising."""
    if position % 2 or (node.op == "embed_norm" and position >= 2 * node.attributes["tables"]):
        return False
    value = weight(node.inputs[position])
    if value is None or value.array.dtype != np.float32 or value.array.ndim != 2:
        return False
    return value.array.nbytes > SMALL_TABLE


def _rounded_gelus(graph: Graph, wanted: Set[Node]) -> set[Node]:
    """The products that end in a gelu of which nothing is used but its int8 levels."""
    users, kept = graph.users, set(graph.roots)

    def rounded(node: Node) -> bool:
        readers = users[node]
        return bool(readers) and all(
            r in wanted and r.inputs.count(node) == 1 and r.inputs[0] is node for r in readers
        )

    return {
        node
        for node in graph.nodes
        if node.op == "linear"
        and node.attributes["epilogue"][-1:] == ("gelu",)
        and node not in kept
        and rounded(node)
    }


def _with_poly(node: Node) -> Node:
    """gelu -> gelu_poly, which is off by 5e-4 at most; a level is 8e-3 of the row's largest value"""
    steps = (*node.attributes["epilogue"][:-1], "gelu_poly")
    return make("linear", node.inputs, node.source, **{**node.attributes, "epilogue": steps})


@dataclass
class _Made:
    """The nodes made so far, by what they were made of."""

    mode: str
    known: dict[Node, Node]
    images: dict[Node, Node]

    def once(self, source: Node, build: Callable[[Node], Node]) -> Node:
        if source not in self.known:
            self.known[source] = build(source)
        return self.known[source]

    def table(self, w: Node) -> Node:
        """w[rows, k] -> dequantize(q, scale[rows, 1]), or cast(w as half)"""
        return self.once(w, _as_half if self.mode == "fp16" else _as_int8)

    def activation(self, x: Node, scale: float | None) -> Node:
        """x -> dequantize(quantize(x, s), s)"""

        def build(x: Node) -> Node:
            s = make("row_scale", (x,)) if scale is None else constant(np.float32(scale), source=x.source)
            return make("dequantize", (make("quantize", (x, s), x.source), s), x.source)

        return self.once(x, build)

    def image(self, x: Node) -> Node:
        """x[b, h, w, c] -> dequantize(quantize(x, s), s), s of each image"""
        if x not in self.images:
            batch, *rest = x.shape
            whole = make("reshape", (x,), x.source, shape=(batch, math.prod(int(d) for d in rest)))
            s = make("reshape", (make("row_scale", (whole,)),), x.source, shape=(batch, 1, 1, 1))
            self.images[x] = make("dequantize", (make("quantize", (x, s), x.source), s), x.source)
        return self.images[x]


def quantised_rows(w: Array) -> tuple[Array, Array]:
    """f32 `[rows, k]` -> i8 `[rows, k]` and f32 `[rows, 1]`, symmetric by row.

    Raises:
        LlmcError: a value is not finite.
    """
    if not np.isfinite(w).all():
        raise LlmcError("a weight holds values that are not finite")
    scale = OPS["row_scale"].reference(w)
    return OPS["quantize"].reference(w, scale), scale


def _as_int8(w: Node) -> Node:
    value = weight(w)
    assert value is not None
    try:
        q, scale = quantised_rows(value.array.reshape(len(value.array), -1))
    except LlmcError as error:
        raise LlmcError(error.problem, at=value.name or str(w.source)) from None
    by_row = (len(q), *(1,) * (value.array.ndim - 1))
    parts = (
        Weight(q.reshape(value.array.shape), f"{value.name}.int8"),
        Weight(scale.reshape(by_row), f"{value.name}.scale"),
    )
    return make("dequantize", tuple(constant(p, source=w.source) for p in parts), w.source)


def _as_half(w: Node) -> Node:
    value = weight(w)
    assert value is not None
    if not np.abs(value.array).max(initial=0) <= _HALF_MAX:
        return w  # it would become infinite
    half = constant(Weight(value.array.astype(np.float16), f"{value.name}.fp16"), source=w.source)
    return make("cast", (half,), w.source, dtype="f32")
