"""`channels-last`: images with the channels of a pixel side by side, all through a network.

Then a 1x1 convolution is a product like any other, with all that llmc knows of products (Georganas et al., "Anatomy of
High-Performance Deep Learning Convolutions on SIMD Architectures", 2018, on what layouts cost). Convolutions and pools
change to that order between two transposes, and transposes move towards the outputs until they meet and cancel.
"""

from __future__ import annotations

from typing import Any, ClassVar

from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS, make
from llmc.compiler.ops.conv import NO_PADDING, TO_FIRST, TO_LAST
from llmc.compiler.pipeline import Keeps, Pipeline, close
from llmc.compiler.rewrite import Decline, RewritePass
from llmc.passes.match import is_weight, reshaped, without_ones
from llmc.passes.simplify import Simplify
from llmc.passes.simplify.fold import Fold
from llmc.passes.simplify.levels import levels_again, levels_reshaped, levels_turned
from llmc.passes.simplify.shapes import drop_identity, transpose_of_transpose
from llmc.passes.simplify.share import Cse

_ONES = (1, 1, 1, 1)


def _turned(node: Node) -> Node | None:
    """x of transpose(x), an image with channels first that lies with channels last."""
    match node:
        case Node("transpose", (x,), {"perm": perm}) if perm == TO_FIRST:
            return x
    return None


def _last(node: Node) -> Node:
    """An image with channels first, with channels last."""
    return _turned(node) or make("transpose", (node,), node.source, perm=TO_LAST)


def _first(node: Node) -> Node:
    return make("transpose", (node,), node.source, perm=TO_FIRST)


def conv_last(node: Node) -> Node | None:
    """conv2d(x, w) -> transpose(conv2d{channels_last}(transpose(x), w))"""
    match node:
        case Node("conv2d", (x, w, *extras), {"channels_last": False}) if is_weight(w):
            turned = [_last(extra) if extra.type.rank == 4 else extra for extra in extras]
            attributes = {**node.attributes, "channels_last": True}
            return _first(make("conv2d", (_last(x), w, *turned), node.source, **attributes))
    return None


def pool_last(node: Node) -> Node | Decline | None:
    """max_pool2d(x) -> transpose(max_pool2d{channels_last}(transpose(x))), and avg_pool2d"""
    match node:
        case Node("max_pool2d" | "avg_pool2d" as op, (x,), {"channels_last": False} as a):
            if not isinstance(x.shape[1], int):
                return Decline("the number of channels is dynamic")
            return _first(make(op, (_last(x),), node.source, **{**a, "channels_last": True}))
    return None


def product_of_pixels(node: Node) -> Node | None:
    """conv2d{channels_last}(x, w[o, c, 1, 1]) -> linear(x, w[o, c])"""
    match node:
        case Node("conv2d", (x, w, *extras), {"channels_last": True, "groups": 1} as a):
            if w.shape[2:] == a["stride"] == (1, 1) and a["padding"] == NO_PADDING:
                return make(
                    "linear",
                    (x, reshaped(w, w.shape[:2]), *extras),
                    node.source,
                    epilogue=a["epilogue"],
                )
    return None


def elementwise_late(node: Node) -> Node | None:
    """f(transpose(x), transpose(y), constant, scalars) -> transpose(f(x, y, ...))"""
    if not OPS[node.op].elementwise:
        return None
    whole = [i for i in node.inputs if i.shape == node.shape]
    if not whole or 2 * sum(_turned(i) is not None for i in whole) < len(whole):
        return None  # more would have to be turned than need not be turned back
    operands = [_last(i) if i in whole else _operand(i) for i in node.inputs]
    if any(o is None for o in operands):
        return None
    return _first(make(node.op, [o for o in operands if o is not None], node.source, **node.attributes))


def _operand(node: Node) -> Node | None:
    """What broadcasts against channels last as `node` does against channels first; None: it would have to be moved."""
    if (x := _turned(node)) is not None:
        return x
    shape: tuple[Any, ...] = (*_ONES[node.type.rank :], *node.shape)
    batch, channels, height, width = shape
    if height == width == 1:
        shape = (batch, 1, 1, channels)
    elif channels == 1:
        shape = (batch, height, width, 1)
    elif node.op == "constant":
        return make(
            "transpose", (reshaped(node, (batch, channels, height, width)),), node.source, perm=TO_LAST
        )
    else:
        return None
    return node if shape == _ONES else reshaped(node, shape)


def reduced_last(node: Node) -> Node | None:
    """mean(transpose(x), axes) -> transpose(mean(x, axes)), and sum, max, min"""
    match node:
        case Node("mean" | "sum" | "max" | "min" as op, (y,), {"axes": axes, "keepdims": keepdims}):
            if (x := _turned(y)) is None:
                return None
            inner = tuple(sorted(TO_FIRST[a] for a in axes))
            made = make(op, (x,), node.source, axes=inner, keepdims=keepdims)
            if keepdims:
                return _first(made)
            kept = [TO_FIRST[a] for a in range(4) if a not in axes]
            perm = tuple(sorted(kept).index(a) for a in kept)
            return made if perm == tuple(range(len(perm))) else make("transpose", (made,), perm=perm)
    return None


def joined_last(node: Node) -> Node | None:
    """concat(transpose(x), transpose(y), axis) -> transpose(concat(x, y))"""
    match node:
        case Node("concat", parts, {"axis": axis}) if all(_turned(p) for p in parts):
            return _first(make("concat", [_last(p) for p in parts], node.source, axis=TO_FIRST[axis]))
    return None


def cut_last(node: Node) -> Node | None:
    """slice(transpose(x)) -> transpose(slice(x)), and pad, ensure_shape"""
    match node:
        case Node("slice", (y,), {"axis": axis} as a) if x := _turned(y):
            return _first(make("slice", (x,), node.source, **{**a, "axis": TO_FIRST[axis]}))
        case Node("ensure_shape", (y,), {"shape": shape}) if x := _turned(y):
            return _first(make("ensure_shape", (x,), node.source, shape=tuple(shape[i] for i in TO_LAST)))
        case Node("pad", (y,), {"before": before, "after": after, "value": value}) if x := _turned(y):
            turned: Any = {"before": before, "after": after}
            turned = {name: tuple(pads[i] for i in TO_LAST) for name, pads in turned.items()}
            return _first(make("pad", (x,), node.source, **turned, value=value))
    return None


def pixels_in_a_row(node: Node) -> Node | None:
    """reshape(transpose(x), [b, c, h * w]) -> transpose(reshape(x, [b, h * w, c]))"""
    match node:
        case Node("reshape", (y,)) if node.type.rank == 3 and (x := _turned(y)) is not None:
            if node.shape[:2] == y.shape[:2]:
                rows = reshaped(x, (node.shape[0], node.shape[2], node.shape[1]))
                return make("transpose", (rows,), node.source, perm=(0, 2, 1))
    return None


def product_of_images(node: Node) -> Node | None:
    """linear(reshape(transpose(x), [b, c * h * w]), w) -> linear(reshape(x), w with its columns in that order)"""
    match node:
        case Node("linear", (Node("reshape", (y,)) as flat, w, *extras)) if (x := _turned(y)) is not None:
            image = y.shape[1:]
            if flat.type.rank != 2 or flat.shape[0] != y.shape[0] or not is_weight(w):
                return None
            if not all(isinstance(d, int) for d in image):
                return None
            columns = make("transpose", (reshaped(w, (w.shape[0], *image)),), w.source, perm=TO_LAST)
            inputs = (reshaped(x, flat.shape), reshaped(columns, w.shape), *extras)
            return make("linear", inputs, node.source, **node.attributes)
    return None


def view_of_transpose(node: Node) -> Node | None:
    """transpose(x) that only moves axes of size 1 -> reshape(x)"""
    match node:
        case Node("transpose", (x,), {"perm": perm}):
            moved = [a for a in perm if x.shape[a] != 1]
            if moved == sorted(moved) and without_ones(x.shape) == without_ones(node.shape):
                return reshaped(x, node.shape)
    return None


class ChannelsLast(RewritePass):
    """Images lie as CPUs like them, channels of a pixel side by side: 1x1 convolutions become products.

    Run it after `fuse`, and `simplify` and `fold` after it.
    """

    name = "channels-last"
    keeps: ClassVar[Keeps] = close(1e-6)
    rules = (
        conv_last,
        pool_last,
        product_of_pixels,
        elementwise_late,
        reduced_last,
        joined_last,
        cut_last,
        pixels_in_a_row,
        product_of_images,
        transpose_of_transpose,
        view_of_transpose,
        drop_identity,
        levels_turned,
        levels_reshaped,
        levels_again,
    )


def channels_last_steps(graph: Graph) -> Pipeline:
    """The passes that turn a graph's images; none where nothing looks at windows of one."""
    turning = ChannelsLast()
    if not any(isinstance(rule(n), Node) for n in graph.everywhere() for rule in (conv_last, pool_last)):
        return Pipeline(())
    return Pipeline.of(turning, Simplify(), Fold(), Cse())
