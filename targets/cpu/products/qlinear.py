"""`qlinear`, `int16_linear` and `split_linear`, of parts: exact sums of integers on every CPU, the same float steps.

`integer.py` has what the kernels share, `amx.py` multiplies tiles of 16 rows, `dots.py` vectors, `widened.py`
vectors of 16-bit values where no instruction sums products of bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from llmc.compiler.calls import Call, Kernel, Operand, Packed
from llmc.compiler.dims import product
from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops import int16
from llmc.compiler.ops.rows import ZERO, line_stride
from llmc.compiler.ops.split import PARTS, part_size
from llmc.errors import LlmcError
from llmc.targets.cpu.products import amx, dots, widened
from llmc.targets.cpu.products.blocking import panel_width
from llmc.targets.cpu.products.integer import Product, row_blocks, rows_of_block, strip_of
from llmc.targets.cpu.storage.packing import pad_columns
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter
from llmc.targets.tir.math import ACTIVATIONS

WIDTHS = (64, 32, 48, 16)  # panel widths, best first

Array = np.ndarray[Any, Any]


def pack_dots(array: Array, width: int, k: int = 0) -> Array:
    """i8 `[n, k]` -> i8 `[ceil(n / width) * width / strip, ceil(k / 4), strip, 4]`, what is missing zero.

    Args:
        k: more columns than there are, if it is given.
    """
    array, (n, columns) = int16.signed_levels(array), array.shape
    padded = np.zeros((-(-n // width) * width, -(-max(k, columns) // 4) * 4), np.int8)
    padded[:n, :columns] = array
    strips = padded.reshape(-1, strip_of(width), padded.shape[1] // 4, 4)
    return np.ascontiguousarray(strips.transpose(0, 2, 1, 3))


def pack_starts(array: Array, width: int, parts: int = 1) -> Array:
    """What each column's sums start from, i32: -128 times the weights of each bracket, padded with zeros."""
    array, part = int16.signed_levels(array), array.shape[1] // parts
    sums = (array[:, (parts - 1 - i) * part :].sum(1, np.int64) for i in range(parts))
    return np.concatenate([pad_columns((-ZERO * total).astype(np.int32), width) for total in sums])


def lower_qlinear(node: Node) -> Call:
    """One call for `qlinear`: items are (half of the rows, panel, block of rows)."""
    return _lower(node, 1)


def lower_split_linear(node: Node) -> Call:
    """`split_linear` likewise."""
    return _lower(node, PARTS)


def lower_int16_linear(node: Node) -> Call:
    """`int16_linear` likewise."""
    return _lower(node, 1, int16.PARTS)


def _lower(node: Node, parts: int, pieces: int = 1) -> Call:
    rows_node, w, w_scale, *others = node.inputs
    zero, extras = zero_and_extras(node, others)
    if w.op != "constant" or w_scale.op != "constant":
        raise LlmcError(f"{node.op}: the weight is computed at run time")
    n, k = int(w.shape[0]), part_size(int(w.shape[1])) if pieces > 1 else int(w.shape[1])
    width = panel_width(n, WIDTHS)
    weight: Weight = w.attributes["value"]
    epilogue: tuple[str, ...] = node.attributes["epilogue"]
    operands: list[Any] = [
        rows_node,
        Packed(
            weight, f"dots{width} {k}" if pieces > 1 else f"dots{width}", partial(pack_dots, width=width, k=k)
        ),
        Packed(weight, f"starts{width}x{parts}", partial(pack_starts, width=width, parts=parts)),
        *operands_after(node, w_scale, zero, extras, width),
    ]
    rows = product(node.shape[:-1])
    kinds = tuple(z.dtype for z in zero)
    pointers = ("u8", "i8", "i32", "f32", *kinds, *("f32",) * (len(extras) + 1))
    given: dict[str, Any] = {
        "n": n,
        "k": k,
        "width": width,
        "epilogue": epilogue,
        "parts": parts,
        "pieces": pieces,
    }
    emit = partial(emit_qlinear, **given, zero="".join(kinds))
    scratch = max(amx.scratch(parts), widened.scratch(k))
    kernel = Kernel(node.op, (n, k, width, epilogue, *kinds), pointers, 1, emit, scratch)
    multiplied = pieces * k * (parts + 1) // 2  # bytes of a row, each as often as it is multiplied
    return Call(
        kernel,
        (*operands, node),
        (rows,),
        -(-n // width) * row_blocks(rows),
        -(-multiplied // 4) * (width // LANES) * rows_of_block(rows),
        2 * rows * n * (k // parts),
        rows * (line_stride(pieces * k) + 4 * n) + n * k,
        node.source,
    )


def operands_after(
    node: Node, w_scale: Node, zero: Sequence[Node], extras: Sequence[Node], width: int
) -> list[Operand]:
    """The scales of columns, the zero point and what the epilogue reads, padded to panels of `width`."""
    pad = partial(pad_columns, width=width)
    found: list[Operand] = [Packed(w_scale.attributes["value"], f"pad{width}", pad), *zero]
    loaded = [s for s in node.attributes["epilogue"] if s not in ACTIVATIONS]
    for step, extra in zip(loaded, extras, strict=True):
        if step == "bias" and extra.op != "constant":
            raise LlmcError(f"{node.op}: the bias is computed at run time")
        found.append(Packed(extra.attributes["value"], f"pad{width}", pad) if step == "bias" else extra)
    return found


def zero_and_extras(node: Node, others: Sequence[Node]) -> tuple[Sequence[Node], Sequence[Node]]:
    """The inputs behind the scales of columns."""
    count = int(node.attributes.get("has_zero", False))
    return others[:count], others[count:]


def emit_qlinear(
    symbol: str,
    cpu: Cpu,
    *,
    n: int,
    k: int,
    width: int,
    epilogue: tuple[str, ...],
    parts: int = 1,
    zero: str = "",
    pieces: int = 1,
) -> Any:
    """out[m, n] = epilogue(x[m, k] . w[n, k]^T * scales), of values in one part or in several"""
    e = Emitter(symbol)
    multiply(Product(e, cpu, n, k, width, epilogue, parts, zero, pieces), e.scratch("int32"))
    return e.function()


def multiply(product: Product, scratch: Buffer) -> None:
    """The work items of a product kernel, by what the CPU multiplies bytes with."""
    cpu = product.cpu
    if cpu.tiles and product.part >= amx.DEPTH:
        amx.emit(product, scratch)
    elif cpu.machine == "x86_64" and not cpu.dots:
        widened.emit(product, scratch)
    else:
        dots.emit(product)


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {
    "qlinear": lower_qlinear,
    "int16_linear": lower_int16_linear,
    "split_linear": lower_split_linear,
}
