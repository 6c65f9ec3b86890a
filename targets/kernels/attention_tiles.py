"""Attention on int8 by AMX: tiles of 16 keys or features by 16 queries.

The bytes lie as `attention_bytes.py` packs them, which is how the tile unit reads its second operand. Tiles are
configured once for a call.
"""

from __future__ import annotations

from collections.abc import Mapping

from tvm import tirx

from llmc.targets import Cpu
from llmc.targets.kernels.amx import CONFIG, tile_instruction
from llmc.targets.kernels.attention_bytes import FOURS, ByteHead
from llmc.targets.kernels.attention_head import QUERIES
from llmc.targets.kernels.attention_shape import Shape
from llmc.targets.kernels.emit import LANES, Buffer, Emitter, Expr, div, i64, splat

DEPTH = 64  # bytes of k in a row of a tile at most
_KEYS, _QUERIES, _VALUES, _WEIGHTS = range(4, 8)  # tiles; 0 to 3 are the sums of 64 queries


def fits(size: int) -> bool:
    """Whether heads of so many features are whole tiles."""
    return size <= DEPTH or size % DEPTH == 0


def scratch(size: int) -> int:
    """Bytes for heads of so many features, more than `attention_bytes.scratch` says."""
    return CONFIG


class TileHead(ByteHead):
    """A work item whose products are the tile unit's."""

    def __init__(
        self, e: Emitter, cpu: Cpu, shape: Shape, pointers: Mapping[str, Buffer], s: Expr, t: Expr
    ) -> None:
        super().__init__(e, cpu, shape, pointers, s, t)
        self.config = self.fours + FOURS * self.size
        self.depth = min(self.size, DEPTH)  # bytes of a row of keys in a tile

    def open(self) -> None:
        """Palette 1: u16 bytes of a row of each tile from byte 16 on, u8 rows of each from byte 48 on."""
        e = self.e
        widths = [64] * 4 + [self.depth, 64, 64, 64]
        heights = [16] * 4 + [16, self.depth // 4, 16, 16]
        content = bytes([1, *[0] * 15]) + b"".join(w.to_bytes(2, "little") for w in widths) + bytes(16)
        content += bytes(heights) + bytes(8)
        for at in range(CONFIG // 4):
            word = int.from_bytes(content[4 * at : 4 * at + 4], "little")
            e.store(self.words, i64(self.config + at), tirx.const(word, "int32"))
        tile_instruction(e, "ldtilecfg", self._place(i64(self.config)))

    def close(self) -> None:
        tile_instruction(self.e, "tilerelease")

    def _place(self, at: Expr) -> Expr:
        return tirx.address_of(tirx.BufferLoad(self.words, [at]))

    def _load(self, tile: int, at: Expr, stride: int) -> None:
        tile_instruction(self.e, "tileloadd64", tile, self._place(at), i64(stride))

    def _store(self, tile: int, at: Expr) -> None:
        tile_instruction(self.e, "tilestored64", tile, self._place(at), i64(4 * QUERIES))

    def score(self, keys: Expr) -> None:
        """Scores of 16 keys at a time; those past the last are not read."""
        self.gather(keys)
        e = self.e

        def of(first: Expr, vectors: int) -> None:
            with e.loop(0, div(keys + (LANES - 1), LANES), "tile") as tile:
                column = e.let(first * LANES)
                for v in range(vectors):  # a stride of 0: all rows start alike
                    self._load(v, self.starts + column + v * LANES, 0)
                for step in range(0, self.size, DEPTH):
                    rows = e.let(self.levels + tile * (LANES * self.size // 4) + step // 4)
                    self._load(_KEYS, rows, self.size)
                    for v in range(vectors):
                        at = e.let(step // 4 * QUERIES + column + v * LANES)
                        self._load(_QUERIES, at, 4 * QUERIES)
                        tile_instruction(e, "tdpbusd", v, _KEYS, _QUERIES)
                for v in range(vectors):
                    self._store(v, e.let(self.scores + tile * (LANES * QUERIES) + column + v * LANES))

        self.by_vectors(of)

    def soften(self, keys: Expr) -> None:
        """The tile unit takes 64 keys: those that are not there weigh nothing."""
        super().soften(keys)
        e = self.e
        with e.loop(self.groups, i64(FOURS), "four") as four, e.loop(0, self.vectors, "v") as v:
            zero = splat(tirx.const(0, "int32"))
            e.store(self.words, self.weights + four * QUERIES + v * LANES, zero)

    def multiply(self, group: Expr) -> None:
        e = self.e

        def of(first: Expr, vectors: int) -> None:
            column = e.let(first * LANES)
            self._load(_VALUES, e.let(self.values + group * (LANES * FOURS)), 4 * FOURS)
            for v in range(vectors):
                tile_instruction(e, "tilezero", v)
                self._load(_WEIGHTS, e.let(self.weights + column + v * LANES), 4 * QUERIES)
                tile_instruction(e, "tdpbsud", v, _VALUES, _WEIGHTS)
                self._store(v, e.let(self.scores + column + v * LANES))

        self.by_vectors(of)
