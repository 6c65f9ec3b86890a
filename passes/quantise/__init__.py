"""`quantize`: products on int8 or with half-precision weights, written out; `qfuse`: one kernel for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from llmc.compiler.graph import Graph, Node, Weight
from llmc.compiler.ops import OPS, constant, make
from llmc.compiler.ops.quantise import LONGEST
from llmc.compiler.ops.rows import pack_rows, row_stride
from llmc.compiler.pipeline import LOSSY, Keeps, Pass
from llmc.compiler.rewrite import Decline, RewritePass
from llmc.errors import LlmcError
from llmc.passes.match import weight

STATIC = "int8-static"
MODES = ("int8", STATIC, "fp16")
SMALL_TABLE = 65536  # bytes; a smaller embedding table stays as it is
_HALF_MAX = 65504.0

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Quantize(Pass):
    """Write products with constant weights and embedding tables as quantised and dequantised again.

    int8: weights by output channel, activations by token as they come. int8-static: the activations of each
    product share one scale found by calibration. fp16: weights rounded to half precision. Norms, activation
    functions and residuals stay float; a gelu that is rounded to int8 next becomes `gelu_poly`.

    Args:
        mode: "int8", "int8-static" or "fp16".
        skip: patterns of module paths to leave alone, such as "encoder.layer.0.*".
        min_columns: products with fewer output columns stay float.
        scales: for int8-static, the scale of the input of each product, in the order of the graph.
    """

    name = "quantize"
    keeps: ClassVar[Keeps] = LOSSY
    mode: str = "int8"
    skip: tuple[str, ...] = ()
    min_columns: int = 16
    scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise LlmcError(f"quantize: no mode {self.mode!r}", hint=f"use {', '.join(MODES)}")
        if self.min_columns < 1:
            raise LlmcError("quantize: min_columns must be positive", found=str(self.min_columns))
        if self.scales and self.mode != STATIC:
            raise LlmcError("quantize: scales are for mode int8-static", found=self.mode)
        if any(not 0 < s < float("inf") for s in self.scales):
            raise LlmcError("quantize: a scale is not a positive number")

    def products(self, graph: Graph) -> tuple[Node, ...]:
        """The `linear` nodes of `graph` that this pass quantises."""
        return tuple(node for node in graph.nodes if self._wanted(node))

    def sites(self, graph: Graph) -> tuple[Node, ...]:
        """The different inputs of `products`: what int8-static needs a scale for, in order."""
        return tuple(dict.fromkeys(node.inputs[0] for node in self.products(graph)))

    def _wanted(self, node: Node) -> bool:
        if node.op != "linear" or node.inputs[1].op != "constant" or node.inputs[1].dtype != "f32":
            return False
        n, k = node.inputs[1].shape
        return self.min_columns <= int(n) and 0 < int(k) < LONGEST and not self._skipped(node)

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
        order = iter(graph.nodes)
        made = _Made(self.mode, {})

        def change(node: Node) -> Node:
            original = next(order)
            if original in coarse:
                node = _with_poly(node)
            if original in wanted:
                return self._product(node, scales.get(original.inputs[0]), made)
            if node.op in ("embedding", "embed_norm") and not self._skipped(node):
                inputs = [made.table(i) if _is_table(node, at) else i for at, i in enumerate(node.inputs)]
                same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
                return node if same else node.with_inputs(inputs)
            return node

        return graph.replace(change)

    def _product(self, node: Node, scale: float | None, made: _Made) -> Node:
        x, w, *extras = node.inputs
        narrow = made.table(w)
        if narrow is w:
            return node
        x = x if self.mode == "fp16" else made.activation(x, scale)
        return make("linear", (x, narrow, *extras), node.source, **node.attributes)

    def _scales(self, graph: Graph) -> Mapping[Node, float]:
        if self.mode != STATIC:
            return {}
        sites = self.sites(graph)
        if len(sites) != len(self.scales):
            raise LlmcError(
                f"quantize: {len(self.scales)} scales are given for {len(sites)} inputs of products",
                hint="llmc compile --quant int8-static --calib FILE finds them",
            )
        return dict(zip(sites, self.scales, strict=True))


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
        q, scale = quantised_rows(value.array)
    except LlmcError as error:
        raise LlmcError(error.problem, at=value.name or str(w.source)) from None
    parts = (Weight(q, f"{value.name}.int8"), Weight(scale, f"{value.name}.scale"))
    return make("dequantize", tuple(constant(p, source=w.source) for p in parts), w.source)


def _as_half(w: Node) -> Node:
    value = weight(w)
    assert value is not None
    if not np.abs(value.array).max(initial=0) <= _HALF_MAX:
        return w  # it would become infinite
    half = constant(Weight(value.array.astype(np.float16), f"{value.name}.fp16"), source=w.source)
    return make("cast", (half,), w.source, dtype="f32")


# --- fusion


def integer_product(node: Node) -> Node | Decline | None:
    """linear(dequantize(quantize(x, s), s), dequantize(w, t), ...) -> qlinear(quantize_rows(x), w, t, ...)"""
    match node:
        case Node("linear", (Node("dequantize", (xq, s)), Node("dequantize", (w, t)), *extras)):
            pass
        case _:
            return None
    if xq.op != "quantize" or xq.inputs[1] is not s:
        return Decline("the activation is not quantised by the scale it is multiplied with")
    if w.op != "constant" or t.op != "constant" or t.shape not in ((w.shape[0], 1), (1, 1), ()):
        return Decline("the weight is not a constant quantised by row")
    x = xq.inputs[0]
    if s.op == "row_scale" and s.inputs[0] is x:
        rows = make("quantize_rows", (x,), x.source)
    elif s.shape == ():
        rows = make("quantize_rows", (x, s), x.source, has_scale=True)
    else:
        return Decline("the activation's scale is neither its row's nor one number")
    scale = t.attributes["value"]
    flat = np.ascontiguousarray(np.broadcast_to(scale.array, (w.shape[0], 1)).reshape(-1))
    column = constant(Weight(flat, scale.name), source=t.source)
    return make("qlinear", (rows, w, column, *extras), node.source, **node.attributes)


def half_product(node: Node) -> Node | None:
    """linear(x, cast(w as half), ...) -> linear(x, w as half, ...)"""
    match node:
        case Node("linear", (x, Node("cast", (w,)), *extras)) if w.op == "constant" and w.dtype == "f16":
            return make("linear", (x, w, *extras), node.source, **node.attributes)


def _narrow(table: Node) -> Node | None:
    """The constant that `table` is made of: packed rows, or half precision."""
    match table:
        case Node("dequantize", (q, s)) if q.op == s.op == "constant" and s.shape == (*q.shape[:-1], 1):
            rows = pack_rows(
                q.attributes["value"].array, s.attributes["value"].array, row_stride(q.shape[-1])
            )
            name = f"{q.attributes['value'].name}.rows"
            return constant(Weight(rows, name), source=table.source)
        case Node("cast", (half,)) if half.op == "constant" and half.dtype == "f16":
            return half


def narrow_embedding(node: Node) -> Node | None:
    """embedding(dequantize(q, s), i) -> dequantize_rows(embedding(rows, i)); half precision likewise"""
    if node.op != "embedding" or node.inputs[0].type.rank != 2 or node.dtype != "f32":
        return None
    table = _narrow(node.inputs[0])
    if table is None:
        return None
    picked = make("embedding", (table, node.inputs[1]), node.source)
    if table.dtype == "f16":
        return make("cast", (picked,), node.source, dtype="f32")
    return make("dequantize_rows", (picked,), node.source, size=int(node.shape[-1]))


def narrow_embed_norm(node: Node) -> Node | None:
    """embed_norm(dequantize(q, s), i, ...) -> embed_norm(rows, i, ...); half precision likewise"""
    if node.op != "embed_norm":
        return None
    inputs = list(node.inputs)
    for at in range(0, 2 * node.attributes["tables"], 2):
        inputs[at] = _narrow(inputs[at]) or inputs[at]
    same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
    return None if same else node.with_inputs(inputs)


@dataclass(frozen=True)
class Qfuse(RewritePass):
    """Fuse dequantised operands into integer products, and narrow tables and weights into what reads them.

    Sums of products become exact, so the answers move by the float rounding that is saved.
    """

    name = "qfuse"
    keeps: ClassVar[Keeps] = Keeps("close", 1e-4)
    rules = (integer_product, half_product, narrow_embedding, narrow_embed_norm)


# What `--quant` appends to a pipeline, and for a CPU to one on int8.
QUANTISATIONS: Mapping[str, str] = MappingProxyType(
    {
        "none": "",
        "int8": "quantize,qfuse,cse",
        STATIC: 'quantize{mode="int8-static"},qfuse,cse',  # and the scales that calibration finds
        "fp16": 'quantize{mode="fp16"},qfuse,cse',
    }
)
ATTENTION = "qattention"
