"""What an attention kernel's code depends on: heads, where operands lie in memory, and the mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from llmc.compiler.graph import Node
from llmc.targets.kernels.emit import Expr


@dataclass(frozen=True)
class Layout:
    """Where element (batch, head, token, feature) of an operand lies.

    Args:
        tokens: True for [batch, token, width] with the head's features side by side, False for [batch, head,
            token, feature].
        width: elements from a token to the next.
        offset: column of head 0, feature 0.
        size: features of a head.
    """

    tokens: bool
    width: int
    offset: int
    size: int

    def start(self, batch: Expr, head: Expr, heads: int, length: Expr) -> Expr:
        """Element index of token 0 of a head."""
        if self.tokens:
            return batch * length * self.width + head * self.size + self.offset
        return (batch * heads + head) * length * self.width


class Layouts(NamedTuple):
    """Of queries, keys, values and the result."""

    q: Layout
    k: Layout
    v: Layout
    out: Layout


@dataclass(frozen=True)
class Shape:
    """What an attention kernel's code depends on: the key of its `Kernel`.

    Args:
        mask: dtype ("bool" or "f32") and, for each of batch, head and query, whether the mask varies along it.
        keys: a bool [batch, key] mask is given too.
    """

    heads: int
    kv_heads: int
    layouts: Layouts
    scale: float
    causal: bool
    keys: bool
    mask: tuple[str, bool, bool, bool] | None


def mask_of(node: Node) -> tuple[str, bool, bool, bool]:
    """`Shape.mask` of an operand."""
    shape = (1,) * (4 - len(node.shape)) + node.shape
    return node.dtype, shape[0] != 1, shape[1] != 1, shape[2] != 1
