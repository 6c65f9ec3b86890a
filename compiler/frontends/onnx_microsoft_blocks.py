"""Weights of `com.microsoft` in 4 or 8 bits with a scale for each block of a row: they stay as small as they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.frontends.onnx_microsoft import microsoft
from llmc.compiler.frontends.onnx_values import want_table
from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops import constant, make

Array = np.ndarray[Any, Any]


@onnx_op(*microsoft("MatMulNBits"))
def _matmul_bits(call: Call) -> Node:
    """x @ w', w `[N, K]` of levels `[N, blocks, bytes]`; the low half of a byte comes first.

    ONNX Runtime may round activations to 8 bits by `accuracy_level`; here they are as they are.
    """
    call.without_meaning("accuracy_level", "weight_prepacked")
    rows, columns = int(call.attributes["N"]), int(call.attributes["K"])
    bits, block = int(call.attribute("bits", 4)), int(call.attributes["block_size"])
    call.require(bits in (4, 8), f"levels of {bits} bits")
    call.require(not call.has(4), "weights in an order of groups (g_idx)", "quantise without act_order")
    levels, scales = (_constant(call, i) for i in (1, 2))
    blocks = -(-columns // block)
    fits = levels.size == rows * blocks * block * bits // 8 and scales.size == rows * blocks
    call.require(fits, "levels and scales that are not of N rows of K columns")
    packed = levels.reshape(rows, -1)[:, : -(-columns * bits // 8)]
    by_block = scales.reshape(rows, blocks).astype(np.float32)
    zeros = _zeros(call, (rows, blocks), bits)
    if zeros is None and (block % 2 == 0 or block >= columns):
        weight = make(
            "blockwise",
            (_held(call, packed), _held(call, by_block)),
            call.source,
            columns=columns,
            bits=bits,
            block=min(block, columns),
        )
    else:
        want_table(rows, columns)
        whole = _unpacked(packed, bits)[:, :columns].astype(np.float32)
        zeros = np.full((rows, blocks), 1 << (bits - 1)) if zeros is None else zeros
        spread = [np.repeat(v, block, 1)[:, :columns] for v in (zeros.astype(np.float32), by_block)]
        weight = _held(call, (whole - spread[0]) * spread[1])
    y = call.op("linear", call.node(0), weight)
    return call.op("add", y, call.node(5)) if call.has(5) else y


def _constant(call: Call, position: int) -> Array:
    node = call.node(position)
    call.require(node.op == "constant", "weights that are computed")
    array: Array = node.attributes["value"].array
    return array


def _held(call: Call, array: Array, name: str = "") -> Node:
    return constant(Weight(np.ascontiguousarray(array), name), source=call.source)


def _unpacked(packed: Array, bits: int) -> Array:
    return packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)


def _zeros(call: Call, shape: tuple[int, int], bits: int) -> Array | None:
    """The zero points of all blocks, floats or packed as levels are; None where each is the middle."""
    if not call.has(3):
        return None
    array, (rows, blocks) = _constant(call, 3), shape
    if array.dtype == np.uint8:
        array = _unpacked(array.reshape(rows, -1), bits)[:, :blocks]
    call.require(array.size == rows * blocks, "zero points that are not one for each block")
    array = array.reshape(shape)
    return None if (array == 1 << (bits - 1)).all() else array
