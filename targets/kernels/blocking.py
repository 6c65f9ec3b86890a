"""How a product of rows with packed panels is cut into pieces that the caches hold."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK_BYTES = 24 << 10  # of a panel's block of k: with rows of x it fits an L1 of 32 KB
GROUP_BYTES = 640 << 10  # of the rows of x that panels take turns on: they stay in an L2 of 1 MB
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
    def of(cls, k: int, width: int, rows: int) -> Blocking:
        """Equal blocks of k, of float32 values of x and w."""
        unroll = 4 if k % 4 == 0 else 1
        blocks = -(-k // (BLOCK_BYTES // (4 * width)))
        depth = -(-k // (blocks * unroll)) * unroll
        group = max(1, min(_GROUP, GROUP_BYTES // (4 * k * rows)))
        return cls(k, width, rows, depth, group, unroll)

    @property
    def blocks(self) -> int:
        """Blocks of k."""
        return -(-self.k // self.depth)

    @property
    def scratch(self) -> int:
        """Floats of the sums that wait for the next block."""
        return self.group * self.rows * self.width if self.blocks > 1 else 0
