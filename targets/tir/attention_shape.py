"""What attention asks of a kernel on any target: heads, where operands lie in memory, and the mask."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from llmc.compiler.dims import Dim
from llmc.compiler.graph import Node
from llmc.compiler.ops.rows import row_stride
from llmc.compiler.ops.rules import same_dim
from llmc.compiler.ops.stored_heads import STORED
from llmc.errors import LlmcError
from llmc.targets.tir.emit import Expr


@dataclass(frozen=True)
class Layout:
    """Where element (batch, head, token, feature) of an operand lies.

    Args:
        tokens: True for [batch, token, width] with the head's features side by side, False for [batch, head,
            token, feature].
        width: elements from a token to the next.
        offset: column of head 0, feature 0.
        size: features of a head.
        stored: dtype of the elements; "u8" are packed rows, one for each head.
    """

    tokens: bool
    width: int
    offset: int
    size: int
    stored: str = "f32"

    @property
    def pitch(self) -> int:
        """Elements from a head to the next, where they lie side by side."""
        return row_stride(self.size) if self.stored == "u8" else self.size

    def start(self, batch: Expr, head: Expr, heads: int, length: Expr) -> Expr:
        """Element index of token 0 of a head."""
        if self.tokens:
            return batch * length * self.width + head * self.pitch + self.offset
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
        mask: dtype ("bool" or "f32") and, for each of batch, head, query and key, whether the mask varies along it.
        keys: a bool [batch, key] mask is given too.
        causal: the last query sees all keys, each before it one less.
        window: of the keys that it sees, a query attends to the last so many; 0: to all.
        evenly: a sequence without keys takes all values evenly.
        few: there is code of its own for one or two queries.
    """

    heads: int
    kv_heads: int
    layouts: Layouts
    scale: float
    causal: bool
    keys: bool
    mask: tuple[str, bool, bool, bool, bool] | None
    evenly: bool = False
    window: int = 0
    few: bool = False


class Problem(NamedTuple):
    """A `mha`, `ragged_mha` or `attention` node: the shape of its kernel, and the sizes of one call."""

    shape: Shape
    batch: Dim
    queries: Dim
    keys: Dim


def problem(node: Node) -> Problem:
    """What `mha` (heads side by side in the tokens' rows) or `attention` (heads are an axis) asks for.

    Raises:
        LlmcError: the operands are not f32, or the heads or their sizes are not fixed.
    """
    if any(i.dtype != "f32" and not (node.op == "mha" and i.dtype in STORED) for i in node.inputs[:3]):
        raise LlmcError(f"{node.op}: no kernel for {node.inputs[0].dtype}")
    if node.inputs[1].dtype == "f16" and node.attributes["head_dim"] % 16:
        raise LlmcError(f"{node.op}: no kernel for halves of heads of {node.attributes['head_dim']} features")
    return _by_heads(node) if node.op == "attention" else _by_tokens(node)


def _by_tokens(node: Node) -> Problem:
    q, k, *_ = node.inputs
    mask = mask_of(node.inputs[-1], k.shape[1]) if node.attributes["has_bias"] else None
    causal, keys = node.attributes["causal"], node.attributes["has_keys"]
    shape = replace(token_shape(node, causal, keys, mask), window=node.attributes["window"] or 0)
    return Problem(shape, q.shape[0], q.shape[1], k.shape[1])


def token_shape(
    node: Node, causal: bool, keys: bool, mask: tuple[str, bool, bool, bool, bool] | None
) -> Shape:
    """The shape where the heads of a token lie side by side in its row."""
    a = node.attributes
    size, heads = a["head_dim"], a["heads"]
    widths = [int(operand.shape[-1]) for operand in node.inputs[:3]]
    kinds = [operand.dtype for operand in node.inputs[:3]]
    places = zip(widths, a["offsets"], kinds, strict=True)
    at = [Layout(True, width, offset, size, kind) for width, offset, kind in places]
    layouts = Layouts(at[0], at[1], at[2], Layout(True, heads * size, 0, size))
    groups, scale = a["kv_heads"] or heads, float(a["scale"])
    return Shape(heads, groups, layouts, scale, causal, keys, mask, a["evenly"])


def _by_heads(node: Node) -> Problem:
    a = node.attributes
    q, k, v, *rest = node.inputs
    (batch, heads, s, d), (_, kv_heads, t, _), e = q.shape, k.shape, v.shape[-1]
    if not all(isinstance(x, int) for x in (heads, kv_heads, d, e)):
        raise LlmcError(f"attention: heads and head sizes must be fixed, found {q.type}, {k.type}")
    layouts = Layouts(*(Layout(False, size, 0, size) for size in (d, d, e, e)))
    mask = mask_of(rest[0], t) if a["has_mask"] else None
    shape = Shape(
        heads, kv_heads, layouts, float(a["scale"]), a["causal"], False, mask, window=a["window"] or 0
    )
    return Problem(shape, batch, s, t)


def mask_of(node: Node, keys: Dim) -> tuple[str, bool, bool, bool, bool]:
    """`Shape.mask` of an operand."""
    batch, head, query, key = (1,) * (4 - len(node.shape)) + node.shape
    return node.dtype, batch != 1, head != 1, query != 1, same_dim(key, keys)
