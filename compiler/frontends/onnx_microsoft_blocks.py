"""Weights of `com.microsoft` in 4 or 8 bits with a scale for each block of a row: they stay as they are stored.

A level of half the range stands for 0, or the zero point of its block. One that is no level, as a fraction is, makes
values of (half - z) scale more, which one number for each block of a row adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmc.compiler.dims import Dim
from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.frontends.onnx_index import wrapped
from llmc.compiler.frontends.onnx_microsoft import microsoft
from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops import constant, make
from llmc.compiler.ops.storage import pack_indices, unpack_indices

Array = np.ndarray[Any, Any]


@onnx_op(*microsoft("MatMulNBits"))
def _product(call: Call) -> Node:
    """x `[..., k]` times the transpose of a weight `[n, k]`."""
    x, rows, columns = call.node(0), call.attributes["N"], call.attributes["K"]
    call.require(
        x.shape[-1] == columns, f"a MatMulNBits of {x.shape[-1]} columns, of which its weight has {columns}"
    )
    call.without_meaning("accuracy_level", "weight_prepacked")  # the activations are not rounded
    _in_order(call, columns)
    weight = _Blocks(call, (rows, columns), levels=1, scales=2, zeros=3)
    y = call.op("linear", x, weight.decoded(weight.stored))
    if weight.offsets is not None:
        y = call.op("add", y, call.op("linear", _sums(call, x, weight.block, weight.blocks), weight.offsets))
    return call.op("add", y, call.node(5)) if call.has(5) else y


@onnx_op(*microsoft("GatherBlockQuantized"))
def _rows(call: Call) -> Node:
    """Rows of a table, of which those that are looked up are decoded."""
    levels, bits = call.node(0), call.attribute("bits", 4)
    rank = levels.type.rank
    table = call.attribute("gather_axis", 0) == 0 and call.attribute("quantize_axis", 1) in (1, -1)
    call.require(rank == 2 and table, "a GatherBlockQuantized that is no look-up of rows")
    columns = int(levels.shape[1]) * (1 if call.kinds[0] in _SINGLE else 8 // bits)
    weight = _Blocks(call, (int(levels.shape[0]), columns), levels=0, scales=2, zeros=3)
    index = wrapped(call, call.node(1), weight.rows)
    parts = [call.op("embedding", part, index) for part in weight.stored]
    y = weight.decoded(parts)
    if weight.offsets is None:
        return y
    offsets = call.op("embedding", weight.offsets, index)
    return call.op("add", y, _each(call, offsets, weight.block, columns))


_UNFIT = "levels or zero points that are not those of its rows and columns"
_SINGLE = {
    21: 0,
    22: 8,
}  # ONNX's 4-bit types, unsigned and signed, each number by itself -> which level is their 0


class _Blocks:
    """A weight `[rows, columns]`: its levels, scales and zero points, and what each block adds where 0 is no level."""

    def __init__(self, call: Call, shape: tuple[int, int], levels: int, scales: int, zeros: int) -> None:
        self.call, (self.rows, self.columns) = call, shape
        self.bits, self.block = call.attribute("bits", 4), call.attribute("block_size", 128)
        call.require(self.bits in (4, 8), f"weights of {self.bits} bits")
        call.require(self.block >= 2 and self.block % 2 == 0, f"blocks of {self.block} columns")
        self.blocks, self.half = -(-self.columns // self.block), 1 << (self.bits - 1)
        fits = _array(call, scales).size == self.rows * self.blocks
        call.require(fits, f"scales that are not {self.blocks} for each of {self.rows} rows")
        steps, name = _array(call, scales), call.node(levels).attributes["value"].name
        rows = pack_indices(self._numbers(levels, self.columns), self.bits)
        steps = _halves(steps.reshape(self.rows, self.blocks))
        points, self.offsets = self._around(zeros, steps, name)
        parts = (_kept(call, rows, f"{name}.levels"), _kept(call, steps, f"{name}.scales"), points)
        self.stored = [part for part in parts if part is not None]

    def decoded(self, parts: Sequence[Node]) -> Node:
        """The values of levels and scales."""
        block = min(self.block, self.columns)
        options = {"columns": self.columns, "bits": self.bits, "block": block}
        return make("blockwise", tuple(parts), self.call.source, **options)  # not folded: it stays small

    def _numbers(self, position: int, count: int) -> Array:
        """u8 `[rows, count]`: the levels of an input, of which 4-bit types have each by itself, bytes two."""
        held, kind = _array(self.call, position), self.call.kinds[position]
        if kind in _SINGLE:
            self.call.require(held.size == self.rows * count, _UNFIT)
            return (held.reshape(self.rows, count).astype(np.int64) + _SINGLE[kind]).astype(np.uint8)
        self.call.require(held.dtype == np.uint8, "levels that are not bytes")
        fits = held.size % max(self.rows, 1) == 0 and held.size * 8 >= self.rows * count * self.bits
        self.call.require(fits, _UNFIT)
        return unpack_indices(held.reshape(self.rows, -1), count, self.bits)[:, :count]

    def _zeros(self, position: int) -> Array | None:
        """`[rows, blocks]`: which levels mean 0, where it is not that of half the range."""
        call, kind = self.call, self.call.kinds[0]
        if not call.has(position):
            return np.zeros((self.rows, self.blocks)) if kind in _SINGLE and not _SINGLE[kind] else None
        if _array(call, position).dtype.kind == "f":
            call.require(_array(call, position).size == self.rows * self.blocks, _UNFIT)
            return _array(call, position).reshape(self.rows, self.blocks)
        return self._numbers(position, self.blocks)

    def _around(self, position: int, steps: Array, name: str) -> tuple[Node | None, Node | None]:
        """Zero points, packed as levels are, if all are levels; or f32 `[rows, blocks]`: (half - zero point) scale."""
        zeros = self._zeros(position)
        if zeros is None or (zeros == self.half).all():
            return None, None
        levels = zeros.clip(0, 2 * self.half - 1).astype(np.uint8)
        if np.array_equal(levels, zeros):
            return _kept(self.call, pack_indices(levels, self.bits), f"{name}.zeros"), None
        found = (self.half - zeros.astype(np.float32)) * steps.astype(np.float32)
        return None, _kept(self.call, found, f"{name}.offsets")


def _array(call: Call, position: int) -> Array:
    node = call.node(position)
    call.require(node.op == "constant", "weights that are computed at run time")
    return np.asarray(node.attributes["value"].array)


def _kept(call: Call, array: Array, name: str) -> Node:
    return constant(Weight(np.ascontiguousarray(array), name), source=call.source)


def _halves(scales: Array) -> Array:
    """In half precision where that holds them to the last digit: kernels then need one step less."""
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), scales) else scales.astype(np.float32)


def _in_order(call: Call, columns: int) -> None:
    """Groups of columns in another order than the columns are refused."""
    if call.has(4):
        groups = _array(call, 4)[:columns]
        same = np.array_equal(groups, np.arange(columns) // call.attribute("block_size", 128))
        call.require(same, "columns that are grouped in another order (g_idx)", "quantise without act_order")


def _sums(call: Call, x: Node, block: int, blocks: int) -> Node:
    """`[..., k]` -> `[..., blocks]`"""
    missing = block * blocks - int(x.shape[-1])
    if missing:
        lead = (0,) * (x.type.rank - 1)
        x = call.op("pad", x, before=(*lead, 0), after=(*lead, missing), value=0.0)
    shape: tuple[Dim, ...] = (*x.shape[:-1], blocks, block)
    return call.op("sum", call.reshape(x, shape), axes=(len(shape) - 1,), keepdims=False)


def _each(call: Call, x: Node, block: int, columns: int) -> Node:
    """`[..., blocks]` -> `[..., columns]`, each number for a block of columns."""
    *lead, blocks = x.shape
    wide = call.expand(call.reshape(x, (*lead, blocks, 1)), (*lead, blocks, block))
    flat = call.reshape(wide, (*lead, int(blocks) * block))
    return call.sliced(flat, len(lead), 0, columns)
