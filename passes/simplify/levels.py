"""Levels and what they mean: views of constant levels, whose scales move with them; levels made again."""

from __future__ import annotations

from llmc.compiler.graph import Node
from llmc.compiler.ops import make
from llmc.passes.match import is_levels, reshaped, scalar


def levels_turned(node: Node) -> Node | None:
    """transpose(dequantize(constant levels, ...)) -> dequantize(transpose(levels), ...)"""
    match node:
        case Node("transpose", (w,), {"perm": perm}) if is_levels(w):
            levels, *parts = w.inputs
            parts = [_whole(part, w.type.rank) for part in parts]
            turned = [p if not p.shape else make("transpose", (p,), node.source, perm=perm) for p in parts]
            moved = make("transpose", (levels,), node.source, perm=perm)
            return make("dequantize", (moved, *turned), node.source)


def _whole(part: Node, rank: int) -> Node:
    """One number, or as many axes as the levels have."""
    if all(d == 1 for d in part.shape):
        return reshaped(part, ())
    return reshaped(part, (*(1,) * (rank - part.type.rank), *part.shape))


def levels_reshaped(node: Node) -> Node | None:
    """reshape(dequantize(constant levels, ...)) -> dequantize(reshape(levels), ...) of one scale, or one a row"""
    match node:
        case Node("reshape", (w,)) if is_levels(w) and node.shape[:1] == w.shape[:1]:
            levels, *parts = w.inputs
            shapes = [_shape_of(part, w, node.type.rank) for part in parts]
            if None in shapes:
                return None
            moved = [reshaped(p, s) for p, s in zip(parts, shapes, strict=True) if s is not None]
            return make("dequantize", (reshaped(levels, node.shape), *moved), node.source)


def _shape_of(part: Node, w: Node, rank: int) -> tuple[int, ...] | None:
    if all(d == 1 for d in part.shape):
        return ()
    rows = int(w.shape[0])
    return (rows, *(1,) * (rank - 1)) if part.shape == (rows, *(1,) * (w.type.rank - 1)) else None


def levels_again(node: Node) -> Node | None:
    """quantize(dequantize(q, s, z), s, z) -> q"""
    match node:
        case Node("quantize", (Node("dequantize", (q, s, z)), t, y)) if q.dtype == node.dtype:
            # a level times s is off by half an ulp at most, so its quotient by s is nearest to the level
            known = scalar(s)
            if known is not None and known > _SMALLEST and _equal(s, t) and _equal(z, y):
                return q


def _equal(a: Node, b: Node) -> bool:
    if a is b:
        return True
    one, other = scalar(a), scalar(b)
    return one is not None and other is not None and bool(one == other)


_SMALLEST = 1e-30  # of a scale whose products with levels have all their digits
