"""Packed rows: whole numbers and their scale in one piece of bytes, which the file has apart.

What moves rows moves both parts. Of split rows the floats that were split are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.graph import Graph, Node, Weight
from llmc.compiler.ops import constant, make
from llmc.compiler.ops.channel_rows import in_two_steps
from llmc.compiler.ops.float_steps import makes_levels_of
from llmc.compiler.ops.rows import unpack_rows

if TYPE_CHECKING:
    from llmc.compiler.to_onnx.emitter import Emitter

Parts = tuple[Node, Node]  # i8 [..., k] and f32 [..., 1], or [] where all rows share one scale
_READERS = (
    "qlinear",
    "split_linear",
    "int16_linear",
    "int16_blockwise",
    "int8_blockwise",
    "bf16_linear",
    "dequantize_rows",
)  # of their first input


def finds_scales(graph: Graph) -> bool:
    """Whether a graph rounds values to levels by scales that it finds."""
    return any(makes_levels_of(node) and not _is_given(node) for node in graph.everywhere())


def _is_given(node: Node) -> bool:
    """Whether the scale of the levels that a node makes is a constant."""
    return node.op in ("quantize", "quantize_rows") and [i.op for i in node.inputs[1:2]] == ["constant"]


def packed_nodes(graph: Graph) -> frozenset[Node]:
    """The nodes that hold packed rows, in a graph or body: they are never written as they are."""
    found: set[Node] = set()
    for node in reversed(graph.nodes):
        if node.op in _READERS:
            found.add(node.inputs[0])
        if node.op == "embed_norm":
            found |= {
                table for table in node.inputs[: 2 * node.attributes["tables"] : 2] if table.dtype == "u8"
            }
        if node in found:
            found |= set(node.inputs[: _rows_read(node)])
    return frozenset(found)


def _rows_read(node: Node) -> int:
    """How many of the first inputs are packed rows, of a node that holds some."""
    return len(node.inputs) if node.op == "concat" else int(node.op in _MOVES)


def packed(e: Emitter, rows: Node, size: int) -> Parts:
    """The two parts of packed rows of `size` values."""
    if (rows, size) not in e.packed:
        e.packed[rows, size] = _packed(e, rows, size)
    return e.packed[rows, size]


def _packed(e: Emitter, rows: Node, size: int) -> Parts:
    if rows.op == "constant":
        return _constants(rows.attributes["value"], size)
    if rows.op == "quantize_rows":
        x, *given = rows.inputs
        scale, *zero = given or [make("row_scale", (x,), rows.source)]
        return make("quantize", (x, scale, *zero), rows.source), scale
    if rows.op == "channel_rows":
        return packed(e, in_two_steps(rows), size)
    if rows.op == "concat":
        return _concatenated([packed(e, part, size) for part in rows.inputs], rows)
    if rows.op not in _MOVES:
        raise UnsupportedError(f"packed rows that {rows.op} makes")
    q, scale = packed(e, rows.inputs[0], size)
    move = _MOVES[rows.op]
    return move(rows, q, size), move(rows, scale, 1) if scale.type.rank else scale


def _constants(weight: Weight, size: int) -> Parts:
    q, scale = unpack_rows(weight.array, size)
    return constant(q, weight.name), constant(scale, f"{weight.name}.scale" if weight.name else "")


def _concatenated(parts: Sequence[Parts], rows: Node) -> Parts:
    """Of rows that share a scale each row gets it."""
    axis = rows.attributes["axis"]
    wide = [s if s.type.rank else make("expand", (s,), shape=(*q.shape[:-1], 1)) for q, s in parts]
    return make("concat", [q for q, _ in parts], axis=axis), make("concat", wide, axis=axis)


def _shaped(op: str) -> Callable[[Node, Node, int], Node]:
    """Of an op that states its shape."""
    return lambda rows, x, size: make(op, (x,), rows.source, shape=(*rows.shape[:-1], size))


def _alike(rows: Node, x: Node, size: int) -> Node:
    return make(rows.op, (x, *rows.inputs[1:]), rows.source, **rows.attributes)


_MOVES: Mapping[str, Callable[[Node, Node, int], Node]] = {
    **{op: _shaped(op) for op in ("reshape", "expand")},
    **dict.fromkeys(("slice", "transpose", "embedding"), _alike),
    "concat": _alike,
}


def dequantised(rows: Node, size: int) -> Node:
    """The floats of packed rows."""
    return make("dequantize_rows", (rows,), rows.source, size=size)


def split_values(rows: Node) -> Node:
    """The floats that rows in several bytes are of."""
    if rows.op in ("split_rows", "int16_rows", "bf16_rows"):
        return rows.inputs[0]
    if rows.op == "int8_rows":
        return _rounded_by_block(rows.inputs[0], int(rows.attributes["block"]))
    if rows.op not in _MOVES:
        raise UnsupportedError(f"rows of several bytes that {rows.op} makes")
    x = split_values(rows.inputs[0])
    return _MOVES[rows.op](rows, x, int(x.shape[-1]))


def _rounded_by_block(x: Node, block: int) -> Node:
    """The floats of levels with a scale for each block of a row."""
    k = int(x.shape[-1])
    if k % block:
        raise UnsupportedError(f"blocks of {block} in rows of {k}")
    parts = make("reshape", (x,), x.source, shape=(*x.shape[:-1], k // block, block))
    rows = make("quantize_rows", (parts,), x.source)
    return make("reshape", (dequantised(rows, block),), x.source, shape=x.shape)
