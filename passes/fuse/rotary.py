"""Rotary position embedding, applied before heads are split off.

Models rotate `[b, h, s, d]`; rotated as `[b, s, h, d]`, which is how a product leaves it, queries and keys
need not be transposed for `mha`. Su et al. 2021, "RoFormer", in the form with halves:
`x * cos + concat(-x[d/2:], x[:d/2]) * sin`.
"""

from __future__ import annotations

from llmc.compiler.graph import Node
from llmc.compiler.ops import make
from llmc.passes.match import reshaped

_SPLIT = (0, 2, 1, 3)  # [b, s, h, d] -> [b, h, s, d]


def rotate_rows(node: Node) -> Node | None:
    """rotary(transpose(x), cos, sin) -> transpose(rotary(x, cos, sin))"""
    match node:
        case Node("add", (Node("mul", (a, cos)), Node("mul", (turned, sin)))):
            pass
        case _:
            return None
    match a:
        case Node("transpose", (x,), {"perm": perm}) if perm == _SPLIT and _is_half_turn(turned, a):
            tables = [_by_token(t, a) for t in (cos, sin)]
        case _:
            return None
    if tables[0] is None or tables[1] is None:
        return None
    around = _half_turn(x, turned)
    products = (make("mul", (x, tables[0]), node.source), make("mul", (around, tables[1]), node.source))
    return make("transpose", (make("add", products, node.source),), node.source, perm=_SPLIT)


def _is_half_turn(node: Node, x: Node) -> bool:
    """concat(-x[..., d/2:], x[..., :d/2])"""
    match node:
        case Node(
            "concat", (Node("neg", (Node("slice", (y,), high),)), Node("slice", (z,), low)), {"axis": 3}
        ):
            half, width = low["stop"], x.shape[3]
            spans = (high["start"], high["stop"], low["start"]) == (half, width, 0)
            steps = {high["step"], low["step"]} == {1} and {high["axis"], low["axis"]} == {3}
            return y is x and z is x and spans and steps
    return False


def _half_turn(x: Node, like: Node) -> Node:
    parts = [
        make("slice", (x,), like.source, **cut.attributes)
        for cut in (like.inputs[0].inputs[0], like.inputs[1])
    ]
    return make("concat", (make("neg", (parts[0],), like.source), parts[1]), like.source, axis=3)


def _by_token(table: Node, x: Node) -> Node | None:
    """A table `[1|b, 1, s, d]`, the same for all heads, as `[1|b, s, 1, d]`."""
    _, _, s, d = x.shape
    if table.type.rank < 4:
        table = reshaped(table, (1,) * (4 - table.type.rank) + table.shape)
    if table.shape[1:] != (1, s, d):
        return None
    return reshaped(table, (table.shape[0], s, 1, d))
