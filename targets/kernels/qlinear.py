"""`qlinear`, products of int8: exact sums in int32 on every CPU, then the same float steps.

`integer.py` has what the kernels share, `amx.py` multiplies tiles of 16 rows, `dots.py` vectors, `widened.py`
vectors of 16-bit values where no instruction sums products of bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import sympy

from llmc.compiler.calls import Call, Kernel, Packed
from llmc.compiler.dims import ceil_div, product
from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops.rows import ZERO, line_stride
from llmc.errors import LlmcError
from llmc.targets import Cpu
from llmc.targets.kernels import amx, dots, widened
from llmc.targets.kernels.emit import LANES, Emitter
from llmc.targets.kernels.integer import ROWS_PER_ITEM, Product
from llmc.targets.kernels.linear import pad_columns
from llmc.targets.kernels.math import ACTIVATIONS

WIDTHS = (64, 32, 48, 16)  # panel widths, best first: AMX takes 32 columns at a time

Array = np.ndarray[Any, Any]


def panel_width(n: int) -> int:
    """The width with the fewest padded columns; of equals, the one whose tile is fastest."""
    return min(WIDTHS, key=lambda width: -n % width)


def pack_dots(array: Array, width: int) -> Array:
    """i8 `[n, k]` -> i8 `[ceil(n / width), ceil(k / 4), width, 4]`, what is missing zero."""
    n, k = array.shape
    padded = np.zeros((-(-n // width) * width, -(-k // 4) * 4), np.int8)
    padded[:n, :k] = array
    return np.ascontiguousarray(padded.reshape(-1, width, padded.shape[1] // 4, 4).transpose(0, 2, 1, 3))


def pack_starts(array: Array, width: int) -> Array:
    """What each column's sum starts from, i32: -128 times its weights, padded with zeros."""
    return pad_columns((-ZERO * array.astype(np.int64).sum(1)).astype(np.int32), width)


def lower_qlinear(node: Node) -> Call:
    """One call for `qlinear`: items are (panel, block of rows), the rows of a panel next to each other."""
    rows_node, w, w_scale, *extras = node.inputs
    if w.op != "constant" or w_scale.op != "constant":
        raise LlmcError("qlinear: the weight is computed at run time")
    n, k = (int(d) for d in w.shape)
    width = panel_width(n)
    weight: Weight = w.attributes["value"]
    epilogue: tuple[str, ...] = node.attributes["epilogue"]
    pad = partial(pad_columns, width=width)
    operands: list[Any] = [
        rows_node,
        Packed(weight, f"dots{width}", partial(pack_dots, width=width)),
        Packed(weight, f"starts{width}", partial(pack_starts, width=width)),
        Packed(w_scale.attributes["value"], f"pad{width}", pad),
    ]
    for step, extra in zip([s for s in epilogue if s not in ACTIVATIONS], extras, strict=True):
        if step == "bias" and extra.op != "constant":
            raise LlmcError("qlinear: the bias is computed at run time")
        operands.append(Packed(extra.attributes["value"], f"pad{width}", pad) if step == "bias" else extra)
    rows = product(node.shape[:-1])
    pointers = ("u8", "i8", "i32", *("f32",) * (len(operands) - 2))
    emit = partial(emit_qlinear, n=n, k=k, width=width, epilogue=epilogue)
    kernel = Kernel(
        "qlinear", (n, k, width, epilogue), pointers, 1, emit, max(amx.SCRATCH, widened.scratch(k))
    )
    return Call(
        kernel,
        (*operands, node),
        (rows,),
        -(-n // width) * ceil_div(rows, ROWS_PER_ITEM),
        -(-k // 4) * (width // LANES) * sympy.Min(rows, ROWS_PER_ITEM),
        2 * rows * n * k,
        rows * (line_stride(k) + 4 * n) + n * k,
        node.source,
    )


def emit_qlinear(symbol: str, cpu: Cpu, *, n: int, k: int, width: int, epilogue: tuple[str, ...]) -> Any:
    """out[m, n] = epilogue(x[m, k] . w[n, k]^T * scales)"""
    e = Emitter(symbol)
    operands = Product(e, cpu, n, k, width, epilogue)
    scratch = e.scratch("int32")
    if cpu.tiles and k >= amx.DEPTH:
        amx.emit(operands, scratch)
    elif cpu.machine == "x86_64" and not cpu.dots:
        widened.emit(operands, scratch)
    else:
        dots.emit(operands)
    return e.function()


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {"qlinear": lower_qlinear}
