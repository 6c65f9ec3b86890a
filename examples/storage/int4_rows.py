"""A storage format: weights as numbers of 4 bits and one scale for each row.

    llmc compile ./my-model -x int4_rows.py --add-pass int4@compress -o small.llmc

Products on CPUs decode it on the way into their registers; other backends get plain weights by `unpack`.
"""

from functools import partial

import numpy as np
from tvm import tirx

from llmc import Extension
from llmc.compiler.calls import Packed
from llmc.compiler.graph import TensorType
from llmc.compiler.ops import make
from llmc.compiler.ops.declare import REQUIRED, define
from llmc.compiler.ops.storage import pack_indices, unpack_indices
from llmc.compiler.pipeline import LOSSY, Pass
from llmc.passes.compress.weights import products, replaced, stored
from llmc.targets.cpu.storage.codebook import halves, pack_nibbles
from llmc.targets.cpu.storage.packing import pad_columns
from llmc.targets.cpu.storage.panels import Stored
from llmc.targets.tir.emit import LANES, mod, splat


def decode(levels, scales, columns):
    return (unpack_indices(levels, columns, 4).astype(np.float32) - 8) * scales[:, None]


@define("int4_rows", decode, traits={"stored": True}, columns=REQUIRED)
def int4_rows(levels, scales, columns):
    """levels u8 `[n, ceil(columns / 2)]`, scales f32 `[n]` -> f32 `[n, columns]`"""
    return TensorType("f32", (levels.shape[0], columns))


class Int4(Pass):
    """Round the weights of products to 15 levels in each row."""

    keeps = LOSSY

    def run(self, graph):
        return replaced(graph, {p.weight: rounded(p.weight, p.array) for p in products(graph)})


def rounded(weight, array):
    scales = np.maximum(np.abs(array).max(1) / 7, 1e-30).astype(np.float32)
    levels = pack_indices((np.rint(array / scales[:, None]) + 8).astype(np.uint8), 4)
    parts = (stored(levels, weight, ".levels"), stored(scales, weight, ".scales"))
    return make("int4_rows", parts, weight.source, columns=array.shape[1])


def panels(weight, width):
    levels, scales = (i.attributes["value"] for i in weight.inputs)
    unpacked = partial(unpack_indices, columns=weight.attributes["columns"], bits=4)
    packed = Packed(levels, f"int4 {width}", lambda array: pack_nibbles(unpacked(array), width))
    padded = Packed(scales, f"pad{width}", partial(pad_columns, width=width))
    return Stored("int4_rows", (packed, padded), ("u8", "f32"), partial(decode_panel, width=width))


def decode_panel(e, cpu, parts, panel, held, count, *, width):
    """held[v] = (level - 8) * scale of its column; vector v has 16 of the panel's columns."""
    (levels, scales), half = parts, LANES // 2
    with e.loop(0, count, "v") as v:
        column = e.let(panel * width + mod(v, width // LANES) * LANES)
        for i, level in enumerate(halves(e, levels, e.let((panel * count + v) * half))):
            value = tirx.Cast(f"float32x{half}", tirx.Cast(f"int32x{half}", e.let(level)))
            scale = e.load(scales, column + i * half, half)
            e.store(held, v * LANES + i * half, e.let(value - splat(8.0, half)) * scale)


extension = Extension("int4_rows", (int4_rows,), formats={"cpu": {"int4_rows": panels}}, passes=(Int4,))
