"""Identities of the ops that move elements: views of views, and broadcasting kept for as late as possible."""

from __future__ import annotations

import numpy as np

from llmc.compiler.dims import dim
from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops import OPS, constant, make
from llmc.compiler.rewrite import Context
from llmc.passes.match import reshaped, resized, scalar, without_ones


def drop_identity(node: Node) -> Node | None:
    """reshape, expand, ensure_shape or slice to the same shape, transpose in order, concat of one -> x"""
    match node:
        case Node("reshape" | "expand" | "ensure_shape", (x,)) if x.shape == node.shape:
            return x
        case Node("slice", (x,), {"start": 0, "step": 1}) if x.shape == node.shape:
            return x
        case Node("transpose", (x,), {"perm": perm}) if perm == tuple(range(len(perm))):
            return x
        case Node("concat", (x,)):
            return x


def reshape_of_reshape(node: Node) -> Node | None:
    """reshape(reshape(x)) -> reshape(x)"""
    match node:
        case Node("reshape", (Node("reshape", (x,)),)):
            return make("reshape", (x,), node.source, shape=node.shape)


def transpose_of_transpose(node: Node) -> Node | None:
    """transpose(transpose(x, p), q) -> transpose(x, p[q])"""
    match node:
        case Node("transpose", (Node("transpose", (x,), {"perm": p}),), {"perm": q}):
            return make("transpose", (x,), node.source, perm=tuple(p[i] for i in q))


def expand_of_expand(node: Node) -> Node | None:
    """expand(expand(x)) -> expand(x)"""
    match node:
        case Node("expand", (Node("expand", (x,)),)):
            return make("expand", (x,), node.source, shape=node.shape)


def expand_to_reshape(node: Node) -> Node | None:
    """expand(x) that only adds axes of size 1 -> reshape(x)"""
    match node:
        case Node("expand", (x,)) if without_ones(x.shape) == without_ones(node.shape):
            return make("reshape", (x,), node.source, shape=node.shape)


def slice_of_slice(node: Node) -> Node | None:
    """x[a:b:s][c:d:t] -> x[a+s*c : a+s*(d-1)+1 : s*t]"""
    match node:
        case Node("slice", (Node("slice", (x,), inner),), outer) if inner["axis"] == outer["axis"]:
            a, s, c, d = inner["start"], inner["step"], outer["start"], outer["stop"]
            return make(
                "slice",
                (x,),
                node.source,
                axis=outer["axis"],
                start=dim(a + s * c),
                stop=dim(a + s * (d - 1) + 1),
                step=s * outer["step"],
            )


def slice_of_concat(node: Node) -> Node | None:
    """concat(x0, x1, ...)[start of xi : end of xi] -> xi"""
    match node:
        case Node("slice", (Node("concat", parts, {"axis": axis}),), cut):
            place, span = 0, (axis, cut["start"], cut["stop"])
            for part in parts:
                end = dim(place + part.shape[axis])
                if span == (cut["axis"], place, end):
                    return part if part.shape == node.shape else None
                place = end


def read_uniform(node: Node) -> Node | None:
    """gather, embedding, slice, transpose, reshape of one value everywhere -> expand(value)"""
    match node:
        case Node("gather" | "embedding" | "slice" | "transpose" | "reshape", (x, *_)) if x.op == "expand":
            value = scalar(x)
            if value is not None:
                return resized(constant(Weight(np.asarray(value)), source=node.source), node)


def reshape_of_expand(node: Node) -> Node | None:
    """reshape(expand(x)) that only adds or drops axes of size 1 -> expand(reshape(x))"""
    match node:
        case Node("reshape", (Node("expand", (x,)) as wide,)):
            if without_ones(wide.shape) != without_ones(node.shape):
                return None
            padded = (1,) * (len(wide.shape) - len(x.shape)) + x.shape
            kept = iter([d for d, w in zip(padded, wide.shape, strict=True) if w != 1])
            small = tuple(1 if w == 1 else next(kept) for w in node.shape)
            return resized(reshaped(x, small), node)


def broadcast_late(node: Node) -> Node | None:
    """f(expand(x), y) -> expand(f(x, y)): masks stay small, and broadcasting is f's own"""
    if not OPS[node.op].elementwise or not any(i.op == "expand" for i in node.inputs):
        return None
    bare = [i.inputs[0] if i.op == "expand" else i for i in node.inputs]
    return resized(make(node.op, bare, node.source, **node.attributes), node)


def view_late(node: Node) -> Node | None:
    """f(reshape(x), reshape(y), scalars) -> reshape(f(x, y, scalars)): so views meet, and cancel"""
    if not OPS[node.op].elementwise:
        return None
    wide = [i for i in node.inputs if any(d != 1 for d in i.shape)]
    if not wide or any(i.op != "reshape" or i.shape != node.shape for i in wide):
        return None
    if len({i.inputs[0].shape for i in wide}) > 1:
        return None
    bare = [i.inputs[0] if i in wide else reshaped(i, ()) for i in node.inputs]
    return reshaped(make(node.op, bare, node.source, **node.attributes), node.shape)


def view_early(node: Node, context: Context) -> Node | None:
    """reshape(f(x, y, scalars)) -> f(reshape(x), reshape(y), scalars): for chains, which views would cut"""
    match node:
        case Node("reshape", (inner,)) if OPS[inner.op].elementwise and context.single(inner):
            if inner.shape != () and _no_broadcast(inner, context):  # a scalar has no input to view
                parts = [i if i.shape == () else reshaped(i, node.shape) for i in inner.inputs]
                return make(inner.op, parts, inner.source, **inner.attributes)


def _no_broadcast(node: Node, context: Context) -> bool:
    """Whether a view can move up to the leaves of the chain that ends here."""
    if not OPS[node.op].elementwise or not context.single(node):
        return True
    same = all(i.shape in (node.shape, ()) for i in node.inputs)
    return same and all(_no_broadcast(i, context) for i in node.inputs)


def drop_ones_of_repeat(node: Node) -> Node | None:
    """reshape(expand(x)) where some axis is 1 before and after expand -> the same without that axis"""
    match node:
        case Node("reshape", (Node("expand", (x,)) as wide,)):
            padded = (1,) * (wide.type.rank - x.type.rank) + x.shape
            kept = [a for a, d in enumerate(wide.shape) if d != 1]
            if len(kept) < wide.type.rank:
                small = reshaped(x, tuple(padded[a] for a in kept))
                return reshaped(
                    make("expand", (small,), wide.source, shape=without_ones(wide.shape)), node.shape
                )


def transpose_of_merged(node: Node) -> Node | None:
    """transpose(reshape(x[b, h, m, n], [b*h, m, n]), swap) -> reshape(transpose(x, swap))"""
    match node:
        case Node("transpose", (Node("reshape", (x,)) as merged,), {"perm": (0, 2, 1)}):
            if x.type.rank == 4 and x.shape[2:] == merged.shape[1:]:
                return reshaped(make("transpose", (x,), node.source, perm=(0, 1, 3, 2)), node.shape)


def product_of_merged(node: Node) -> Node | None:
    """matmul(reshape(x[b, h, m, k], [b*h, m, k]), reshape(y, ...)) -> reshape(matmul(x, y))"""
    match node:
        case Node("matmul", (Node("reshape", (x,)) as a, Node("reshape", (y,)) as b)) if node.type.rank == 3:
            split = x.type.rank == y.type.rank == 4 and x.shape[:2] == y.shape[:2]
            if split and x.shape[2:] == a.shape[1:] and y.shape[2:] == b.shape[1:]:
                return reshaped(make("matmul", (x, y), node.source), node.shape)


def product_broadcasts(node: Node) -> Node | None:
    """matmul(x, expand(y)) -> matmul(x, y), where the product broadcasts y itself"""
    match node:
        case Node("matmul", (x, Node("expand", (y,)))) if (
            y.type.rank > 1 and y.shape[-2:] == node.inputs[1].shape[-2:]
        ):
            made = make("matmul", (x, y), node.source)
            return made if made.shape == node.shape else None


def transpose_of_expand(node: Node) -> Node | None:
    """transpose(expand(x)) -> expand(transpose(x))"""
    match node:
        case Node("transpose", (Node("expand", (x,)),), {"perm": perm}):
            padded = reshaped(x, (1,) * (len(perm) - x.type.rank) + x.shape)
            return resized(make("transpose", (padded,), node.source, perm=perm), node)


def fixed_dim(node: Node) -> Node | None:
    """dim(5) -> 5"""
    match node:
        case Node("dim", (), {"value": int(size)}):
            return constant(np.int64(size), source=node.source)


RULES = (
    drop_identity,
    reshape_of_reshape,
    transpose_of_transpose,
    expand_of_expand,
    expand_to_reshape,
    slice_of_slice,
    slice_of_concat,
    read_uniform,
    reshape_of_expand,
    broadcast_late,
    view_late,
    drop_ones_of_repeat,
    transpose_of_merged,
    transpose_of_expand,
    product_of_merged,
    product_broadcasts,
    fixed_dim,
)
