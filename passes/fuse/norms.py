"""Fusion into layer norms: a sum of two rows, or of embeddings, normalised in one walk over the row."""

from __future__ import annotations

from llmc.compiler.graph import Node
from llmc.compiler.ops import make
from llmc.compiler.rewrite import Context, Decline, Miss
from llmc.passes.match import is_scalar, reshaped, scalar

Pair = tuple[Node, Node]


def embed_norm(node: Node, context: Context) -> Node | Decline | None:
    """layer_norm(embedding(t0, i0) + embedding(t1, i1) + ...) -> embed_norm(t0, i0, t1, i1, ...)"""
    if node.op != "layer_norm" or len(node.inputs) != 3 or node.type.rank != 3:
        return None
    leaves = _addends(node.inputs[0], context)
    looked_up = [_lookup(leaf) for leaf in leaves]
    if not any(looked_up):
        return None
    pairs = [pair or _one_row(leaf, node) for pair, leaf in zip(looked_up, leaves, strict=True)]
    found = [p for p in pairs if p is not None]
    if len(found) < len(pairs):
        return Decline("not every addend is an embedding read once")
    if any(table.shape[1:] != node.shape[-1:] for table, _ in found):
        return Decline("a table has one number for a whole row")
    flat = [n for table, index in found for n in (table, index)]
    fused = make(
        "embed_norm",
        (*flat, *node.inputs[1:]),
        node.source,
        eps=node.attributes["eps"],
        tables=len(found),
    )
    return fused if fused.type == node.type else Decline("the embeddings are broadcast")


def _addends(node: Node, context: Context) -> list[Node]:
    """The leaves of a tree of sums that nothing else reads, left to right."""
    if node.op == "add" and context.single(node):
        return [leaf for i in node.inputs for leaf in _addends(i, context)]
    return [node]


def _lookup(node: Node) -> Pair | None:
    """Table and index `[b, s]` or `[1, s]` of an embedding, or of rows cut out of a table."""
    match node:
        case Node("expand", (x,)) if x.shape[-1] == node.shape[-1]:
            return _lookup(x)
        case Node("embedding", (table, index)) if table.type.rank == 2 and table.dtype == "f32":
            return (table, _matrix(index)) if index.type.rank <= 2 else None
        case Node("reshape", (Node("slice" | "embedding") as x,)) if node.shape[-1] == x.shape[-1]:
            inner = _lookup(x)
            return inner and (inner[0], reshaped(inner[1], _matrix_shape(node.shape[:-1])))
        case Node("slice", (table,), {"axis": 0, "start": start, "step": step}) if table.op == "constant":
            if table.type.rank == 2:
                index = make("iota", (), node.source, length=node.shape[0], start=start, step=step)
                return table, _matrix(index)


def _one_row(leaf: Node, like: Node) -> Pair | None:
    """A constant row, as a table of one row read at every place: what one segment's embedding folds to."""
    row = leaf.inputs[0] if leaf.op == "expand" else leaf
    if row.op == "constant" and row.shape == (1,) * (row.type.rank - 1) + like.shape[-1:]:
        index = make("iota", (), leaf.source, length=like.shape[1], step=0)
        return reshaped(row, (1, like.shape[-1])), _matrix(index)


def _matrix(index: Node) -> Node:
    """An index as `[b, s]`, or `[1, s]` if it is the same for the whole batch."""
    if index.op != "expand":
        return reshaped(index, _matrix_shape(index.shape))
    bare, length = index.inputs[0], index.shape[-1]
    if bare.shape == () or bare.shape[-1] != length:
        number = scalar(bare)
        if number is None:
            return index
        bare = make("iota", (), index.source, length=length, start=int(number), step=0, dtype=index.dtype)
    return reshaped(bare, _matrix_shape(bare.shape))


def _matrix_shape(shape: tuple[object, ...]) -> tuple[object, ...]:
    return (1,) * (2 - len(shape)) + shape


def add_norm(node: Node, context: Context) -> Node | Decline | None:
    """layer_norm(x + r) -> add_norm(x, r); a product has taken the other as its residual before this"""
    match node:
        case Node("layer_norm", (Node("add", (x, r)) as total, weight, bias)):
            if x.type != total.type or r.type != total.type:
                return Decline("the sum broadcasts")
            if not context.single(total):
                return Decline("the sum is read elsewhere too", total)
            return make("add_norm", (x, r, weight, bias), node.source, eps=node.attributes["eps"])


def norm_from_parts(node: Node) -> Node | Miss | Decline | None:
    """(x - mean(x)) / sqrt(mean((x - mean(x))**2) + eps) -> layer_norm(x)"""
    if node.op not in ("div", "mul"):
        return None
    found = _quotient(node)
    if isinstance(found, Miss):
        return found
    centred, variance = found
    match variance:
        case Node("add", (Node("mean", (square,), {"axes": axes, "keepdims": True}), eps)):
            pass
        case Node("add", (eps, Node("mean", (square,), {"axes": axes, "keepdims": True}))):
            pass
        case _:
            return None
    x = _of_centred(centred)
    if x is None or axes != (x.type.rank - 1,) or not _is_square(square, centred) or scalar(eps) is None:
        return None
    if not isinstance(x.shape[-1], int):
        return Decline("the rows are of dynamic size")
    if x.dtype == "f32" and float(scalar(eps)) >= 0 and x.type == node.type:
        return make("layer_norm", (x,), node.source, eps=float(scalar(eps)), has_weight=False, has_bias=False)


def _quotient(node: Node) -> Pair | Miss:
    """a and v of a / sqrt(v), a * rsqrt(v), a * (1 / sqrt(v))"""
    match node:
        case Node("div", (a, Node("sqrt", (v,)))):
            return a, v
        case Node("mul", (a, b)):
            for x, root in ((a, b), (b, a)):
                match root:
                    case Node("rsqrt", (v,)):
                        return x, v
                    case Node("div", (one, Node("sqrt", (v,)))) if is_scalar(one, 1):
                        return x, v
    return Miss(node, "divides by no root", 1)


def _of_centred(node: Node) -> Node | None:
    """x of x - mean(x) over the last axis"""
    match node:
        case Node("sub", (x, Node("mean", (y,), {"axes": axes, "keepdims": True}))):
            return x if x is y and axes == (x.type.rank - 1,) else None


def _is_square(node: Node, x: Node) -> bool:
    """Whether `node` is x**2, of x itself or of x computed a second time"""
    match node:
        case Node("mul", (a, b)):
            base = a if a is b else None
        case Node("pow", (a, two)):
            base = a if is_scalar(two, 2) else None
        case _:
            base = None
    if base is None:
        return False
    return base is x or (_of_centred(base) is not None and _of_centred(base) is _of_centred(x))


def norm_weight(node: Node, context: Context) -> Node | Decline | None:
    """layer_norm(x) * w -> layer_norm(x, w), w constant"""
    match node:
        case Node("mul", (Node("layer_norm") as y, Node("constant") as w)) if _is_parameter(y, w):
            pass
        case Node("mul", (Node("constant") as w, Node("layer_norm") as y)) if _is_parameter(y, w):
            pass
        case _:
            return None
    if len(y.inputs) > 1:
        return None
    if not context.single(y):
        return Decline("the norm is read elsewhere too", y)
    inputs = (y.inputs[0], reshaped(w, w.shape[-1:]))
    return make("layer_norm", inputs, node.source, eps=y.attributes["eps"], has_weight=True, has_bias=False)


def norm_bias(node: Node, context: Context) -> Node | Decline | None:
    """layer_norm(x, w) + b -> layer_norm(x, w, b), b constant"""
    match node:
        case Node("add", (Node("layer_norm") as y, Node("constant") as b)) if _is_parameter(y, b):
            pass
        case Node("add", (Node("constant") as b, Node("layer_norm") as y)) if _is_parameter(y, b):
            pass
        case _:
            return None
    if y.attributes["has_bias"] or not y.attributes["has_weight"]:
        return None
    if not context.single(y):
        return Decline("the norm is read elsewhere too", y)
    inputs = (*y.inputs, reshaped(b, b.shape[-1:]))
    return make("layer_norm", inputs, node.source, eps=y.attributes["eps"], has_weight=True, has_bias=True)


def _is_parameter(y: Node, p: Node) -> bool:
    """Whether a constant has one number for each column."""
    return p.shape == (1,) * (p.type.rank - 1) + y.shape[-1:] and p.type.rank <= y.type.rank


# Norms written out in elementary ops; they come first, so that what follows sees whole norms.
PARTS = (norm_from_parts, norm_weight, norm_bias)
RULES = (embed_norm, add_norm)
