"""`blockwise`: weights of products in 8 or 4 bits with a scale for each block of a row; activations are as they were.

What a next token costs is the bytes of weights that are read, and these are a quarter or an eighth. Levels are rounded
to the nearest. Dettmers and Zettlemoyer 2023, "The case for 4-bit precision", for what blocks are good for. Of 8 bits
with a scale for each row tables lose most: of SmolLM2-135M theirs is twice the error of other weights, and with blocks
of 64 for them alone perplexity rises by 0.36 % where it rose by 0.46 %.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from llmc.compiler.dims import Dim
from llmc.compiler.effects import tell_weights
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import make
from llmc.compiler.ops.storage import pack_indices
from llmc.compiler.pipeline import LOSSY, Keeps, Pass
from llmc.errors import LlmcError
from llmc.passes.compress.tables import changes, tables
from llmc.passes.compress.weights import Product, left, products, rebuild, stored, values

Array = np.ndarray[Any, Any]
TABLE_BLOCK = 64  # columns that share a scale in tables and heads of `--quant w8` and int8
_SMALL = 4096  # bytes; a smaller matrix stays as it is
_HALVES = (6.2e-5, 65504.0)  # what half precision holds with all its digits


@dataclass(frozen=True)
class Blockwise(Pass):
    """Store the weights of products as whole numbers and scales.

    Args:
        bits: 8 or 4.
        block: columns that share a scale, an even number; 0: a whole row.
        table_block: likewise of embedding tables, and of products with as many rows as one, as output heads are; 0: as
            `block`.
        skip: patterns of module paths to leave alone.
        min_columns: products with fewer output columns stay float.
        tables: whether embedding tables are stored so too.
    """

    name = "blockwise"
    keeps: ClassVar[Keeps] = LOSSY
    bits: int = 8
    block: int = 0
    table_block: int = 0
    skip: tuple[str, ...] = ()
    min_columns: int = 16
    tables: bool = True

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise LlmcError("blockwise: bits is 4 or 8", found=str(self.bits))
        for block in (self.block, self.table_block):
            if block < 0 or block % 2:
                raise LlmcError("blockwise: block is an even number, or 0 for a whole row", found=str(block))

    def run(self, graph: Graph) -> Graph:
        """Every weight once, however many read it."""
        found = list(tables(graph))
        made = self.made_of(products(graph, self.skip), {table.shape[0] for table in found})
        for table in found if self.tables else ():
            array = values(table)
            if table not in made and table.op == "constant" and array is not None and self._fits(array):
                made[table] = self._stored(table, array, self.table_block)
        tell_weights(graph, made, lambda weight: self._left(graph, weight))
        return rebuild(graph, changes(graph, made))

    def made_of(self, found: Iterable[Product], words: Collection[Dim] = ()) -> dict[Node, Node]:
        """The weights of products, those that are worth it, and what stands for each from now on.

        Args:
            words: rows of tables.
        """
        chosen = [(p.weight, p.array) for p in found if self._fits(p.array)]
        return {w: self._stored(w, a, self.table_block if len(a) in words else 0) for w, a in chosen}

    def _fits(self, array: Array) -> bool:
        """Whether an array is a matrix that is worth it."""
        enough = array.dtype == np.float32 and array.ndim == 2 and len(array) >= self.min_columns
        return enough and array.nbytes > _SMALL

    def _left(self, graph: Graph, weight: Node) -> str:
        few = f"with fewer than {self.min_columns} output columns, or of at most {_SMALL} bytes"
        return left(graph, weight, self.skip) or few

    def _stored(self, weight: Node, array: Array, block: int) -> Node:
        if not np.isfinite(array).all():
            raise LlmcError("a weight holds values that are not finite", at=str(weight.source))
        columns = array.shape[1]
        block = min(block or self.block, columns) or columns
        levels, scales = rounded(array, self.bits, block)
        parts = (
            stored(pack_indices(levels, self.bits), weight, ".levels"),
            stored(scales, weight, ".scales"),
        )
        return make("blockwise", parts, weight.source, columns=columns, bits=self.bits, block=block)


def rounded(array: Array, bits: int, block: int) -> tuple[Array, Array]:
    """f32 `[n, k]` -> levels u8 `[n, k]` and scales `[n, ceil(k / block)]`.

    8 bits are symmetric, -127 to 127. Of 4 bits, the value that is farthest from 0 becomes the lowest level, -8, of
    which there is no counterpart: that uses all 16. Scales of 4 bits are half precision where that holds them.
    """
    rows, columns = array.shape
    padded = np.pad(array, ((0, 0), (0, -columns % block))).reshape(rows, -1, block)
    if bits == 8:
        scales = np.abs(padded).max(2) / np.float32(127)
    else:
        farthest = np.take_along_axis(padded, np.abs(padded).argmax(2)[..., None], 2)[..., 0]
        scales = _halves(farthest / np.float32(-8))
    step = np.where(scales == 0, 1, scales).astype(np.float32)[..., None]
    half, low = 1 << (bits - 1), -127 if bits == 8 else -8
    levels = np.clip(np.rint(padded / step), low, half - 1) + half
    return levels.reshape(rows, -1)[:, :columns].astype(np.uint8), scales


def _halves(scales: Array) -> Array:
    """Scales in half precision, if that loses no more than digits."""
    size = np.abs(scales[scales != 0])
    fits = not size.size or (size.min() >= _HALVES[0] and size.max() <= _HALVES[1])
    return scales.astype(np.float16 if fits else np.float32)
