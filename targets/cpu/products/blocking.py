"""How a product of rows with packed panels is cut into pieces that the caches hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmc.targets import Cpu

ROWS_PER_ITEM = 48  # a multiple of the full tile heights 6, 8 and 12
WIDTHS = (48, 64, 32, 16)  # panel widths, best first
BLOCK_BYTES = 24 << 10  # of a panel's block of k: with rows of x it fits an L1 of 32 KB
GROUP_BYTES = 640 << 10  # of the rows of x that panels take turns on: they stay in an L2 of 1 MB
UNROLL = 4
AHEAD = 64  # rows of a streamed panel that are asked for, into L2, before they are needed
_GROUP = 3  # items of a group at most: more rows would not make the panel's share of the traffic matter less


@dataclass(frozen=True)
class Blocking:
    """Blocks of k within panels within groups of rows.

    Args:
        k: length of a row, a multiple of `unroll`.
        width: columns of a panel.
        rows: of an item.
        depth: of a block of k, a multiple of `unroll`; the last one may be shorter.
        group: items that go over one panel before the next.
        unroll: steps of k written out.
    """

    k: int
    width: int
    rows: int
    depth: int
    group: int
    unroll: int

    @classmethod
    def of(
        cls,
        k: int,
        width: int,
        rows: int,
        block_bytes: int = BLOCK_BYTES,
        group_bytes: int = GROUP_BYTES,
        unroll: int = UNROLL,
    ) -> Blocking:
        """Equal blocks of k, of float32 values of x and w."""
        unroll = unroll if k % unroll == 0 else 1
        blocks = -(-k // (block_bytes // (4 * width)))
        depth = -(-k // (blocks * unroll)) * unroll
        group = max(1, min(_GROUP, group_bytes // (4 * k * rows)))
        return cls(k, width, rows, depth, group, unroll)

    @property
    def blocks(self) -> int:
        """Blocks of k."""
        return -(-self.k // self.depth)

    @property
    def scratch(self) -> int:
        """Floats of the sums that wait for the next block."""
        return self.group * self.rows * self.width if self.blocks > 1 else 0


@dataclass(frozen=True)
class ProductShape:
    """What a product computes: x `[m, k]` times the transpose of w `[n, k]`, and what follows in registers."""

    n: int
    k: int
    dtype: str
    epilogue: tuple[str, ...]

    def __str__(self) -> str:
        return " + ".join((f"{self.n} x {self.k} {self.dtype}", *self.epilogue))


@dataclass(frozen=True)
class Schedule:
    """What is free to choose about the kernel of a product: no choice changes a bit of its results.

    Args:
        width: columns of a panel. It is the layout of the weights, which all variants of an artifact share.
        rows: of an item. The program counts items, so all variants share it too.
        block_bytes, group_bytes, ahead: as above.
        unroll: steps of k written out, where k is a multiple.
        height: rows of a tile at most; 0: as many as tile_shape() has for the width.
        cpu: name of the variant that all but width and rows are for, the others have the defaults; "" if they are
            for all.
    """

    width: int
    rows: int = ROWS_PER_ITEM
    block_bytes: int = BLOCK_BYTES
    group_bytes: int = GROUP_BYTES
    unroll: int = UNROLL
    ahead: int = AHEAD
    height: int = 0
    cpu: str = ""

    @classmethod
    def default(cls, n: int) -> Schedule:
        """What is used unless something else is asked for."""
        return cls(panel_width(n))

    def on(self, cpu: Cpu) -> Schedule:
        """What holds for one variant."""
        return replace(self if self.cpu in ("", cpu.name) else Schedule(self.width, self.rows), cpu="")

    def cut(self, k: int) -> Blocking:
        """The pieces of a product of rows of length k."""
        return Blocking.of(k, self.width, self.rows, self.block_bytes, self.group_bytes, self.unroll)

    def scratch(self, k: int) -> int:
        """Floats that wait for the next block, in the variant where they are the most."""
        return max(s.cut(k).scratch for s in (self, Schedule(self.width, self.rows)))


def panel_width(n: int, widths: Sequence[int] = WIDTHS) -> int:
    """The width of `widths`, best first, with the fewest padded columns; of equals, the one whose tile is fastest."""
    return min(widths, key=lambda width: -n % width)
