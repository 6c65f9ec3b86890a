"""Rotary position embedding: found as models write it, and applied before heads are split off.

Su et al. 2021, "RoFormer": `x * cos + turned(x) * sin`, where `turned` exchanges the halves of a row, as GPT-NeoX does,
or the numbers of each pair, as GPT-J does (interleaved), and negates what comes first.

Models rotate `[b, h, s, d]`; rotated as `[b, s, h, d]`, which is how a product leaves it, queries and keys
need not be transposed for `mha`.
"""

from __future__ import annotations

from llmc.compiler.dims import Dim
from llmc.compiler.graph import Node
from llmc.compiler.ops import make
from llmc.compiler.rewrite import Context
from llmc.passes.match import reshaped

_SPLIT = (0, 2, 1, 3)  # [b, s, h, d] -> [b, h, s, d]
Span = tuple[Node, int, Dim, int]  # columns of a node's last axis: from, up to, in steps of


def rotary(node: Node) -> Node | None:
    """x * cos + turned(x) * sin -> rotary(x, cos, sin)"""
    match node:
        case Node("add", (Node("mul", ab), Node("mul", cd))) if node.dtype == "f32" and node.type.rank:
            pass
        case _:
            return None
    for factors, others in ((ab, cd), (cd, ab)):
        for x, cos in (factors, factors[::-1]):
            for turned, sin in (others, others[::-1]):
                interleaved = _turns(turned, x)
                if interleaved is not None and x.shape == node.shape:
                    return _rotated(node, x, cos, sin, interleaved)


def _rotated(node: Node, x: Node, cos: Node, sin: Node, interleaved: bool) -> Node | None:
    if any(t.type.rank < 1 or t.shape[-1] != x.shape[-1] for t in (cos, sin)):
        return None
    return make("rotary", (x, cos, sin), node.source, interleaved=interleaved)


def rotary_in_part(node: Node, context: Context) -> Node | None:
    """concat(rotary(x[..., :r], cos, sin), x[..., r:]) -> rotary(x, cos, sin)"""
    match node:
        case Node("concat", (Node("rotary", (part, cos, sin)) as y, rest), {"axis": axis}):
            x, begin, middle, _ = _columns(part)
            wanted = (x, middle, x.shape[-1], 1)
        case _:
            return None
    if begin == 0 and _columns(rest) == wanted and axis == node.type.rank - 1 and context.single(y):
        return make("rotary", (x, cos, sin), y.source, **y.attributes)


def rotate_rows(node: Node) -> Node | None:
    """rotary(transpose(x), cos, sin) -> transpose(rotary(x, cos, sin))"""
    match node:
        case Node("rotary", (Node("transpose", (x,), {"perm": perm}), *tables)) if perm == _SPLIT:
            cos, sin = (_by_token(t, x) for t in tables)
        case _:
            return None
    if cos is None or sin is None:
        return None
    turned = make("rotary", (x, cos, sin), node.source, **node.attributes)
    return make("transpose", (turned,), node.source, perm=_SPLIT)


def _by_token(table: Node, x: Node) -> Node | None:
    """A table `[1|b, 1, s, r]`, the same for all heads, as `[1|b, s, 1, r]`."""
    width = table.shape[-1]
    if table.type.rank < 4:
        table = reshaped(table, (1,) * (4 - table.type.rank) + table.shape)
    if table.shape[1:] != (1, x.shape[1], width):
        return None
    return reshaped(table, (table.shape[0], x.shape[1], 1, width))


def _columns(node: Node) -> Span:
    """What a slice of the last axis, or one of such a slice, is of which node; a node is all of itself."""
    match node:
        case Node("slice", (x,), {"axis": axis, "start": int(start), "stop": int(stop), "step": step}):
            inner, before, _, by = _columns(x)
            if axis == node.type.rank - 1 and by == 1:
                return inner, before + start, before + stop, step
    return node, 0, node.shape[-1], 1


def _turns(node: Node, x: Node) -> bool | None:
    """Whether `node` is x with the numbers of pairs exchanged; False: its halves; None: neither."""
    if node.op not in ("concat", "reshape") or node.shape != x.shape or not x.type.rank:
        return None
    if not isinstance(x.shape[-1], int) or x.shape[-1] % 2:
        return None
    if node.op == "concat":
        return False if _is_half_turn(node, x) else None
    return True if _is_turn_of_pairs(node, x) else None


def _is_half_turn(node: Node, x: Node) -> bool:
    """concat(-x[..., d/2:], x[..., :d/2])"""
    match node:
        case Node("concat", (Node("neg", (high,)), low), {"axis": axis}) if axis == x.type.rank - 1:
            whole, begin, end, step = _columns(x)
            middle = begin + x.shape[-1] // 2
            return step == 1 and (_columns(high), _columns(low)) == (
                (whole, middle, end, 1),
                (whole, begin, middle, 1),
            )
    return False


def _is_turn_of_pairs(node: Node, x: Node) -> bool:
    """stack(-x[..., 1::2], x[..., ::2]) along a new last axis, which is then flattened"""
    match node:
        case Node("reshape", (Node("concat", (second, first), {"axis": axis}) as pairs,)) if (
            axis == x.type.rank
        ):
            odd, even = _negated(second), _unstacked(first)
        case _:
            return False
    whole, begin, end, step = _columns(x)
    if odd is None or even is None or step != 1 or pairs.shape[-1] != 2:
        return False
    spans = [_columns(part) for part in (odd, even)]
    return [(of, at, by) for of, at, _, by in spans] == [(whole, begin + 1, 2), (whole, begin, 2)] and all(
        part.shape[-1] == x.shape[-1] // 2 and last <= end
        for part, (_, _, last, _) in zip((odd, even), spans, strict=True)
    )


def _negated(node: Node) -> Node | None:
    """y of `-y[..., None]`, the axis added before or after."""
    match node:
        case Node("neg", (y,)):
            return _unstacked(y)
    inner = _unstacked(node)
    return inner.inputs[0] if inner is not None and inner.op == "neg" else None


def _unstacked(node: Node) -> Node | None:
    """y of `y[..., None]`"""
    match node:
        case Node("reshape", (y,)) if node.shape == (*y.shape, 1):
            return y


RULES = (rotary, rotary_in_part, rotate_rows)
