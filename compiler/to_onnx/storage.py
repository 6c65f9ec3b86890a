"""Weights that are stored compressed: scales by blocks have their ops in ONNX, other formats are written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from llmc.compiler.dims import dim
from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops import constant, make
from llmc.compiler.ops.storage import unpack_indices
from llmc.compiler.to_onnx.emitter import OPSET_BLOCKS, Emitter, computed
from llmc.compiler.to_onnx.table import exports

_KINDS = {8: TensorProto.INT8, 4: TensorProto.INT4}


@dataclass(frozen=True)
class Blocks:
    """A weight [..., n, k] as whole numbers and a scale for each block of columns.

    Args:
        q: i8, of 8 or 4 bits.
        scales: f32 [..., n, blocks].
        block: columns; 0 where each row has one scale.
        zeros: which number stands for 0 in each block, if not 0 itself.
    """

    q: Weight
    scales: Weight
    bits: int
    block: int
    zeros: Weight | None = None

    @staticmethod
    def of(node: Node) -> Blocks:
        """What a `blockwise` node of constants stands for."""
        levels, scales, *zeros = (i.attributes["value"] for i in node.inputs)
        columns, bits, block = (node.attributes[name] for name in ("columns", "bits", "block"))

        def signed(packed: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
            wide = unpack_indices(packed, count, bits).astype(np.int16) - (1 << (bits - 1))
            return np.asarray(wide.astype(np.int8))

        wide = scales.array.astype(np.float32)
        block = 0 if block >= columns and levels.array.ndim == 2 else min(block, columns)
        name = levels.name or node.source.path
        q = Weight(signed(levels.array, columns), name)
        around = [Weight(signed(z.array, wide.shape[-1]), f"{name}.zero") for z in zeros]
        return Blocks(q, Weight(wide, f"{name}.scale"), bits, block, *around)

    def written(self, e: Emitter) -> str:
        """f32 [..., n, k]"""
        q = e.tensors.add(self.q, int(_KINDS[self.bits]))
        if not self.block and self.bits == 8 and self.zeros is None:
            flat = Weight(self.scales.array.reshape(-1), self.scales.name)
            return e.op("DequantizeLinear", q, e.tensors.add(flat), axis=0)
        e.opset = OPSET_BLOCKS
        block = self.block or self.q.array.shape[-1]
        zeros = [] if self.zeros is None else [e.tensors.add(self.zeros, int(_KINDS[self.bits]))]
        return e.op("DequantizeLinear", q, e.tensors.add(self.scales), *zeros, axis=-1, block_size=block)


@exports("blockwise")
def _blockwise(e: Emitter, node: Node) -> str | Node:
    return Blocks.of(node).written(e) if all(i.op == "constant" for i in node.inputs) else _decoded(node)


@exports("bfloat16")
def _bfloat16(e: Emitter, node: Node) -> Node:
    """Written out; rows are looked up in what is."""
    (halves,) = node.inputs
    if halves.op == "constant":
        return computed(e, node)
    if halves.op != "embedding":
        raise UnsupportedError(f"bfloat16 of what {halves.op} makes")
    table, index = halves.inputs
    whole = make("bfloat16", (table,), node.source, **node.attributes)
    return make("embedding", (whole, index), node.source)


@exports("codebook")
def _codebook(e: Emitter, node: Node) -> Node:
    """A weight is written out; of rows that were picked from a table each number is looked up."""
    if all(i.op == "constant" for i in node.inputs):
        return computed(e, node)
    indices, values = node.inputs
    whole = make("cast", (indices,), dtype="i32")
    whole = whole if node.attributes["bits"] == 8 else _halves(whole, node.attributes["columns"])
    return make("embedding", (values, whole), node.source)


def _decoded(node: Node) -> Node:
    """The arithmetic, for rows that were picked from a table."""
    levels, scales, *zeros = node.inputs
    columns, bits, block = (node.attributes[name] for name in ("columns", "bits", "block"))

    def numbers(packed: Node, count: int) -> Node:
        whole = make("cast", (packed,), dtype="i32")
        return whole if bits == 8 else _halves(whole, count)

    def each(by_block: Node) -> Node:
        return by_block if block >= columns else _each(by_block, block, columns)

    middle = constant(np.int32(1 << (bits - 1)))
    zero = each(numbers(zeros[0], -(-columns // block))) if zeros else middle
    value = make("cast", (make("sub", (numbers(levels, columns), zero)),), dtype="f32")
    return make("mul", (value, each(make("cast", (scales,), dtype="f32"))), node.source)


def _halves(packed: Node, columns: int) -> Node:
    """i32 [..., bytes] -> [..., columns], even columns from the low halves."""
    low = make("bitand", (packed, constant(np.int32(15))))
    high = make("floordiv", (packed, constant(np.int32(16))))
    apart = [make("reshape", (x,), shape=(*x.shape, 1)) for x in (low, high)]
    both = make("concat", apart, axis=packed.type.rank)
    return _flat(both, columns)


def _each(scales: Node, block: int, columns: int) -> Node:
    """[..., blocks] -> [..., columns], each as often as its block has columns."""
    apart = make("reshape", (scales,), shape=(*scales.shape, 1))
    return _flat(make("expand", (apart,), shape=(*scales.shape, block)), columns)


def _flat(x: Node, columns: int) -> Node:
    """The last two axes as one, cut to so many columns."""
    last = x.type.rank - 2
    wide = make("reshape", (x,), shape=(*x.shape[:last], dim(x.shape[last] * x.shape[last + 1])))
    return make("slice", (wide,), axis=last, start=0, stop=columns)
