"""`blockwise`: weights of products in 8 or 4 bits with a scale for each block of a row; activations are as they were.

What a next token costs is the bytes of weights that are read, and these are a quarter or an eighth. Levels are rounded
to the nearest. Dettmers and Zettlemoyer 2023, "The case for 4-bit precision", for what blocks are good for. Of 8 bits
with a scale for each row tables lose most: of SmolLM2-135M theirs is twice the error of other weights, and with blocks
of 64 for them alone perplexity rises by 0.36 % where it rose by 0.46 %.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from llmc.compiler.dims import Dim
from llmc.compiler.effects import tell_weights
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS, make
from llmc.compiler.ops.storage import pack_indices
from llmc.compiler.pipeline import LOSSY, Keeps, Pass
from llmc.errors import LlmcError
from llmc.passes.compress.rounding import nearest, of_least_error
from llmc.passes.compress.tables import changes, tables
from llmc.passes.compress.weights import Product, left, products, rebuild, stored, values

Array = np.ndarray[Any, Any]
TABLE_BLOCK = 64  # columns that share a scale in tables and heads of `--quant w8` and int8
_FEW_ROWS = 1024  # of a table, at most: other tables are of words
_SMALL = 4096  # bytes; a smaller matrix stays as it is
SCALES = ("largest", "search")


@dataclass(frozen=True)
class Matrix:
    """A weight f32 `[n, k]` that is to be stored, in how many bits, and how many columns share a scale."""

    weight: Node
    array: Array
    bits: int
    block: int

    def stored(self, levels: Array, scales: Array, suffix: str = "") -> Node:
        """What stands for it: levels u8 `[n, k]` and scales, as `rounding.nearest` has them."""
        parts = (
            stored(pack_indices(levels, self.bits), self.weight, f"{suffix}.levels"),
            stored(scales, self.weight, f"{suffix}.scales"),
        )
        attributes = {"columns": self.array.shape[1], "bits": self.bits, "block": self.block}
        return make("blockwise", parts, self.weight.source, **attributes)


@dataclass(frozen=True)
class Blockwise(Pass):
    """Store the weights of products as whole numbers and scales.

    Args:
        bits: 8 or 4.
        block: columns that share a scale, an even number; 0: a whole row.
        table_block: likewise of embedding tables, and of products with as many rows as the largest, as output heads
            have; 0: as `block`.
        head_bits: of such products, with blocks of 64 if no `table_block` is given; 0: as `bits`. Nothing comes after a
            head that would even an error out.
        skip: patterns of module paths to leave alone.
        min_columns: products with fewer output columns stay float.
        tables: whether embedding tables are stored so too.
        frequent: of 4-bit tables that look-ups alone read, this share of their rows, the first, have another 4 bits
            for what the first leave: vocabularies begin with what is frequent. Tables of few rows, as those of
            positions, have 8 bits.
        scales: "largest", so that a block's largest value is a level, or "search": those of least square error.
    """

    name = "blockwise"
    keeps: ClassVar[Keeps] = LOSSY
    bits: int = 8
    block: int = 0
    table_block: int = 0
    head_bits: int = 0
    skip: tuple[str, ...] = ()
    min_columns: int = 16
    tables: bool = True
    frequent: float = 0.0
    scales: str = "largest"

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) or self.head_bits not in (0, 4, 8):
            found = str(self.bits if self.bits not in (4, 8) else self.head_bits)
            raise LlmcError(f"{self.name}: bits is 4 or 8", found=found)
        for block in (self.block, self.table_block):
            if block < 0 or block % 2:
                raise LlmcError(
                    f"{self.name}: block is an even number, or 0 for a whole row", found=str(block)
                )
        if not 0 <= self.frequent <= 1:
            raise LlmcError(f"{self.name}: frequent is a share from 0 to 1", found=f"{self.frequent:g}")
        if self.scales not in SCALES:
            raise LlmcError(f"{self.name}: no scales {self.scales!r}", hint=f"use {' or '.join(SCALES)}")

    def run(self, graph: Graph) -> Graph:
        """Every weight once, however many read it."""
        return self.with_stored(graph, {w: self.rounded(m) for w, m in self.matrices(graph).items()})

    def finds(self, graph: Graph) -> bool:
        """Whether there is a weight to store."""
        return bool(self.matrices(graph))

    def matrices(self, graph: Graph) -> dict[Node, Matrix]:
        """The weights that are to be stored."""
        found = list(tables(graph))
        words = [table.shape[0] for table in found if table.op == "constant"]
        chosen = self.matrices_of(products(graph, self.skip), {max(map(int, words), default=0)})
        for table in found if self.tables else ():
            array = values(table)
            if table not in chosen and table.op == "constant" and array is not None and self._fits(array):
                bits = 8 if self.frequent and len(array) <= _FEW_ROWS else self.bits
                chosen[table] = self._matrix(table, array, bits, self.table_block or self.block)
        return chosen

    def matrices_of(self, found: Iterable[Product], words: Collection[Dim] = ()) -> dict[Node, Matrix]:
        """The weights of products, those that are worth it.

        Args:
            words: rows of tables.
        """
        made = {}
        for weight, array in ((p.weight, p.array) for p in found if self._fits(p.array)):
            bits, block = self._of_heads() if len(array) in words else (self.bits, self.block)
            made[weight] = self._matrix(weight, array, bits, block)
        return made

    def _of_heads(self) -> tuple[int, int]:
        """Bits and block."""
        bits = self.head_bits or self.bits
        return bits, self.table_block or (self.block if bits == self.bits else TABLE_BLOCK)

    def rounded(self, matrix: Matrix, suffix: str = "") -> Node:
        """To the nearest level."""
        rounding = nearest if self.scales == "largest" else of_least_error
        return matrix.stored(*rounding(matrix.array, matrix.bits, matrix.block), suffix)

    def with_stored(self, graph: Graph, made: Mapping[Node, Node]) -> Graph:
        """`graph` with what stands for weights from now on; tells of all."""
        tell_weights(graph, made, lambda weight: self._left(graph, weight))
        finer = {made[table]: book for table in made if (book := self._finer(graph, table, made[table]))}
        return rebuild(graph, changes(graph, made, finer))

    def finer_rows(self, graph: Graph, table: Node, bits: int) -> int:
        """How many rows of a table have another 4 bits for what the first leave."""
        looked_up = all(user.op in ("embedding", "embed_norm") for user in graph.users[table])
        return int(self.frequent * int(table.shape[0])) if looked_up and bits == 4 else 0

    def _finer(self, graph: Graph, table: Node, book: Node) -> Node | None:
        """What the first rows of a table lack, rounded, and a row of zeros; None if they have enough."""
        rows = self.finer_rows(graph, table, book.attributes["bits"])
        if not rows:
            return None
        array = table.attributes["value"].array[:rows]
        levels, scales = (part.attributes["value"].array[:rows] for part in book.inputs)
        lacking = array - OPS["blockwise"].reference(levels, scales, **book.attributes)
        matrix = Matrix(table, np.pad(lacking, ((0, 1), (0, 0))), 4, book.attributes["block"])
        return self.rounded(matrix, ".finer")

    def _fits(self, array: Array) -> bool:
        """Whether an array is a matrix that is worth it."""
        enough = array.dtype == np.float32 and array.ndim == 2 and len(array) >= self.min_columns
        return enough and array.nbytes > _SMALL

    def _left(self, graph: Graph, weight: Node) -> str:
        few = f"with fewer than {self.min_columns} output columns, or of at most {_SMALL} bytes"
        return left(graph, weight, self.skip) or few

    def _matrix(self, weight: Node, array: Array, bits: int, block: int) -> Matrix:
        if not np.isfinite(array).all():
            raise LlmcError("a weight holds values that are not finite", at=str(weight.source))
        columns = array.shape[1]
        return Matrix(weight, array, bits, min(block, columns) or columns)
