"""Weights that are stored compressed: scales by blocks have their ops in ONNX, other formats are written out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops.storage import unpack_indices
from llmc.compiler.to_onnx.emitter import OPSET_BLOCKS, Emitter
from llmc.compiler.to_onnx.table import exports

_KINDS = {8: TensorProto.INT8, 4: TensorProto.INT4}


@dataclass(frozen=True)
class Blocks:
    """A weight [..., n, k] as whole numbers and a scale for each block of columns.

    Args:
        q: i8, of 8 or 4 bits.
        scales: f32 [..., n, blocks].
        block: columns; 0 where each row has one scale.
    """

    q: Weight
    scales: Weight
    bits: int
    block: int

    @staticmethod
    def of(node: Node) -> Blocks:
        """What a `blockwise` node of constants stands for."""
        levels, scales = (i.attributes["value"] for i in node.inputs)
        columns, bits, block = (node.attributes[name] for name in ("columns", "bits", "block"))
        whole = unpack_indices(levels.array, columns, bits).astype(np.int16) - (1 << (bits - 1))
        wide = scales.array.astype(np.float32)
        block = 0 if block >= columns and levels.array.ndim == 2 else min(block, columns)
        name = levels.name or node.source.path
        return Blocks(Weight(whole.astype(np.int8), name), Weight(wide, f"{name}.scale"), bits, block)

    def written(self, e: Emitter) -> str:
        """f32 [..., n, k]"""
        q = e.tensors.add(self.q, int(_KINDS[self.bits]))
        if not self.block and self.bits == 8:
            flat = Weight(self.scales.array.reshape(-1), self.scales.name)
            return e.op("DequantizeLinear", q, e.tensors.add(flat), axis=0)
        e.opset = OPSET_BLOCKS
        block = self.block or self.q.array.shape[-1]
        return e.op("DequantizeLinear", q, e.tensors.add(self.scales), axis=-1, block_size=block)


@exports("blockwise")
def _blockwise(e: Emitter, node: Node) -> str:
    return Blocks.of(node).written(e)
