"""Quantisation of rows and integer products: exact sums in int32 on every CPU, then the same float steps.

Weights are packed once for all CPUs as `[ceil(n / width)][ceil(k / 4)][width][4]` int8 (`pack_dots`), so that 4
bytes of a row meet 4 bytes of each of 16 columns. `vpdpbusd` multiplies them where the CPU has it; elsewhere
they are widened to 16 bits and `vpmaddwd` sums pairs (never `vpmaddubsw`, which saturates). Activations are stored
as q + 128, unsigned, as `vpdpbusd` wants one operand: sums start at -128 times the column's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import sympy
from tvm import tirx

from llmc.compiler.calls import Call, Kernel, Packed
from llmc.compiler.dims import ceil_div, product
from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops.quantise import LEVELS, TINY
from llmc.compiler.ops.rows import ZERO, row_stride, scale_offset
from llmc.errors import LlmcError
from llmc.targets import Cpu
from llmc.targets.kernels import neon
from llmc.targets.kernels.emit import LANES, Buffer, Emitter, Expr, div, f32, fma, i64, splat, vector
from llmc.targets.kernels.linear import ROWS_PER_ITEM, pad_columns, panel_width, tiles
from llmc.targets.kernels.math import ACTIVATIONS, to_level

AHEAD = 24  # groups of 4 rows of a panel that are asked for before they are needed

Array = np.ndarray[Any, Any]


# --- rows


def lower_row_scale(node: Node) -> Call:
    """One item is one row."""
    (x,) = node.inputs
    k = _row_length(x)
    kernel = Kernel("row_scale", k, ("f32", "f32"), 0, partial(emit_row_scale, k=k))
    return _row_call(node, kernel, x, k)


def lower_quantize_rows(node: Node) -> Call:
    """One item is one row."""
    x, has_scale = node.inputs[0], bool(node.attributes["has_scale"])
    k = _row_length(x)
    pointers = ("f32",) * len(node.inputs) + ("u8",)
    emit = partial(emit_quantize_rows, k=k, has_scale=has_scale)
    return _row_call(node, Kernel("quantize_rows", (k, has_scale), pointers, 0, emit), x, k)


def lower_dequantize_rows(node: Node) -> Call:
    """One item is one row."""
    k = int(node.attributes["size"])
    kernel = Kernel("dequantize_rows", k, ("u8", "f32"), 0, partial(emit_dequantize_rows, k=k))
    return _row_call(node, kernel, node, k)


def _row_length(x: Node) -> int:
    if not isinstance(x.shape[-1], int):
        raise LlmcError(f"the last axis must have a fixed size, found {x.type}")
    return x.shape[-1]


def _row_call(node: Node, kernel: Kernel, long: Node, k: int) -> Call:
    rows = product(long.shape[:-1])
    vectors = -(-k // LANES)
    return Call(
        kernel, (*node.inputs, node), (), rows, 4 * vectors, 4 * rows * k, rows * (5 * k + 16), node.source
    )


def emit_row_scale(symbol: str, cpu: Cpu, *, k: int) -> Any:
    """out[row] = max |x[row]| / 127"""
    e = Emitter(symbol)
    x, out = e.pointer("x", "f32"), e.pointer("out", "f32")
    with e.loop(e.begin, e.end, "row") as row:
        e.store(out, row, _scale_of(e, x, e.let(row * k), k))
    return e.function()


def emit_quantize_rows(symbol: str, cpu: Cpu, *, k: int, has_scale: bool) -> Any:
    """Packed rows of x, each with its own scale or all with the one given."""
    e = Emitter(symbol)
    x = e.pointer("x", "f32")
    given = e.pointer("scale", "f32") if has_scale else None
    out = e.pointer("out", "u8")
    words = e.alias(out, "float32")
    with e.loop(e.begin, e.end, "row") as row:
        start, target = e.let(row * k), e.let(row * row_stride(k))
        scale = _scale_of(e, x, start, k) if given is None else e.load(given, i64(0))
        inverse = e.let(splat(e.let(f32(1.0) / scale)))

        def convert(at: Expr, mask: Expr | None) -> None:
            # past the end a load gives 0, which is the padding wanted
            level = to_level(e, e.load(x, start + at, LANES, mask), inverse)
            byte = tirx.Cast("uint8x16", level + splat(tirx.const(ZERO, "int32")))
            e.store(out, target + at, byte)

        _columns(e, k, convert)
        tail = e.let(row * (row_stride(k) // 4) + scale_offset(k) // 4)
        for i, word in enumerate((scale, f32(0.0), f32(0.0), f32(0.0))):
            e.store(words, tail + i, word)
    return e.function()


def emit_dequantize_rows(symbol: str, cpu: Cpu, *, k: int) -> Any:
    """out[row, i] = q[row, i] * scale[row]"""
    e = Emitter(symbol)
    rows, out = e.pointer("rows", "u8"), e.pointer("out", "f32")
    words = e.alias(rows, "float32")
    with e.loop(e.begin, e.end, "row") as row:
        start, target = e.let(row * row_stride(k)), e.let(row * k)
        scale = splat(row_scale(e, words, row, k))

        def widen(at: Expr, mask: Expr | None) -> None:
            e.store(out, target + at, level_of(e, rows, start + at) * scale, mask)

        _columns(e, k, widen)
    return e.function()


def row_scale(e: Emitter, words: Buffer, row: Expr, k: int) -> Expr:
    """The scale of a packed row of k values; `words` is the rows' memory as float32."""
    return e.load(words, e.let(row * (row_stride(k) // 4) + scale_offset(k) // 4))


def level_of(e: Emitter, rows: Buffer, at: Expr) -> Expr:
    """16 quantised values as float32."""
    wide = tirx.Cast("int32x16", e.load(rows, at, LANES)) - splat(tirx.const(ZERO, "int32"))
    return e.let(tirx.Cast("float32x16", wide))


def _scale_of(e: Emitter, x: Buffer, start: Expr, k: int) -> Expr:
    """max |x| / 127 of k values, 1 for a row of zeros, NaN if there is one.

    Magnitudes are compared as integers: the order is that of the floats, with NaN above all.
    """
    top = e.registers(1, "int32x16")
    e.set(top, 0, splat(tirx.const(0, "int32")))

    def widest(at: Expr, mask: Expr | None) -> None:
        bits = tirx.reinterpret("int32x16", e.load(x, start + at, LANES, mask))
        magnitude = e.let(tirx.bitwise_and(bits, splat(tirx.const(0x7FFFFFFF, "int32"))))
        e.set(top, 0, tirx.max(e.get(top), magnitude))

    _columns(e, k, widest)
    most = e.fold(e.let(e.get(top)), tirx.max)
    scale = e.let(tirx.reinterpret("float32", most) / f32(float(LEVELS)))
    return e.let(tirx.Select(scale < f32(TINY), f32(1.0), scale))


def _columns(e: Emitter, n: int, body: Callable[[Expr, Expr | None], None]) -> None:
    """body(column, mask) for every 16 columns of n; the mask is None but for a tail."""
    with e.loop(0, n // LANES, "c") as c:
        body(e.let(c * LANES), None)
    if n % LANES:
        body(i64(n - n % LANES), e.first(i64(n % LANES)))


# --- products


def pack_dots(array: Array, width: int) -> Array:
    """i8 `[n, k]` -> i8 `[ceil(n / width), ceil(k / 4), width, 4]`, what is missing zero."""
    n, k = array.shape
    padded = np.zeros((-(-n // width) * width, -(-k // 4) * 4), np.int8)
    padded[:n, :k] = array
    return np.ascontiguousarray(padded.reshape(-1, width, padded.shape[1] // 4, 4).transpose(0, 2, 1, 3))


def pack_starts(array: Array, width: int) -> Array:
    """What each column's sum starts from, i32: -128 times its weights, padded with zeros."""
    return pad_columns((-ZERO * array.astype(np.int64).sum(1)).astype(np.int32), width)


@dataclass(frozen=True)
class Tile:
    """A register tile: `rows` x `vectors` accumulators of `lanes` int32."""

    rows: int
    vectors: int
    lanes: int


def tile_of(cpu: Cpu, width: int) -> Tile:
    """The tile whose accumulators, weights and one row's bytes fit the registers."""
    if cpu.machine == "aarch64":
        return Tile(neon.DOT_ROWS if cpu.dots else neon.WIDE_ROWS, neon.QUADS, 4)
    if cpu.vectors < 32:
        return Tile(4, 2, cpu.lanes)
    vectors = width // LANES
    rows = {1: 12, 2: 12, 3: 8, 4: 6} if cpu.dots else {1: 12, 2: 10, 3: 6, 4: 5}
    return Tile(rows[vectors], vectors, LANES)


def lower_qlinear(node: Node) -> Call:
    """One call for `qlinear`: items are (panel, block of rows), as for `linear`."""
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
    kernel = Kernel("qlinear", (n, k, width, epilogue), pointers, 1, emit)
    return Call(
        kernel,
        (*operands, node),
        (rows,),
        -(-n // width) * ceil_div(rows, ROWS_PER_ITEM),
        -(-k // 4) * (width // LANES) * sympy.Min(rows, ROWS_PER_ITEM),
        2 * rows * n * k,
        rows * (row_stride(k) + 4 * n) + n * k,
        node.source,
    )


def emit_qlinear(symbol: str, cpu: Cpu, *, n: int, k: int, width: int, epilogue: tuple[str, ...]) -> Any:
    """out[m, n] = epilogue(x[m, k] . w[n, k]^T * scales)"""
    e = Emitter(symbol)
    body = _Product(e, cpu, n, k, width, epilogue)
    m = e.scalar("m")
    tile = tile_of(cpu, width)
    blocks = e.let(div(m + (ROWS_PER_ITEM - 1), ROWS_PER_ITEM))
    with e.loop(e.begin, e.end, "item") as item:
        panel = e.let(div(item, blocks))
        first = e.let((item - panel * blocks) * ROWS_PER_ITEM)
        count = e.let(tirx.min(i64(ROWS_PER_ITEM), m - first))
        for part in range(0, width, tile.vectors * tile.lanes):

            def one(row: Expr, height: int, part: int = part, panel: Expr = panel) -> None:
                body.tile(row, panel, part, height, min(tile.vectors, (width - part) // tile.lanes))

            tiles(e, first, count, tile.rows, one)
    return e.function()


class _Product:
    """Writes the tiles of one product kernel."""

    def __init__(self, e: Emitter, cpu: Cpu, n: int, k: int, width: int, epilogue: tuple[str, ...]) -> None:
        self.e, self.n, self.k, self.width, self.epilogue = e, n, k, width, epilogue
        self.cpu, self.lanes = cpu, tile_of(cpu, width).lanes
        self.dot = _vnni if cpu.dots else _widened
        rows, w = e.pointer("rows", "u8"), e.pointer("w", "i8")
        self.starts, self.w_scale = e.pointer("starts", "i32"), e.pointer("w_scale", "f32")
        self.extras = [e.pointer(step, "f32") for step in epilogue if step not in ACTIVATIONS]
        self.out = e.pointer("out", "f32")
        self.rows, self.row_floats, self.w = (
            e.alias(rows, "int32"),
            e.alias(rows, "float32"),
            e.alias(w, "int32"),
        )

    def tile(self, row: Expr, panel: Expr, part: int, rows: int, vectors: int) -> None:
        """Rows row..row+rows, `vectors` vectors of columns from `part` of the panel on."""
        column = self.e.let(panel * self.width + part)
        sums = self._sums(row, panel, part, rows, vectors, column)
        self._finish(sums, row, column, rows, vectors)

    def _sums(self, row: Expr, panel: Expr, part: int, rows: int, vectors: int, column: Expr) -> Buffer:
        """acc[i, j] = exact sums of 4-byte groups, in any order."""
        e, lanes, groups = self.e, self.lanes, -(-self.k // 4)
        panel_start = e.let(panel * (groups * self.width) + part)
        bases = [e.let((row + i) * (row_stride(self.k) // 4)) for i in range(rows)]
        if self.cpu.machine == "aarch64":
            return neon.sums(e, self.cpu, self.rows, bases, self.w, panel_start, groups, self.width)
        acc = e.registers(rows * vectors, vector("int32", lanes))
        for j in range(vectors):
            start = e.load(self.starts, column + j * lanes, lanes)
            for i in range(rows):
                e.set(acc, i * vectors + j, start)
        with e.loop(0, groups, "k") as at:
            here = e.let(panel_start + at * self.width)
            b = [e.load(self.w, here + j * lanes, lanes) for j in range(vectors)]
            for j in range(0, vectors * lanes, LANES):
                e.prefetch(self.w, here + AHEAD * self.width + j)
            dots = self.dot(e, lanes, b)
            for i in range(rows):
                a = e.let(splat(e.load(self.rows, bases[i] + at), lanes))
                for j, total in enumerate(dots(a, [e.get(acc, i * vectors + j) for j in range(vectors)])):
                    e.set(acc, i * vectors + j, total)
        return acc

    def _finish(self, acc: Buffer, row: Expr, column: Expr, rows: int, vectors: int) -> None:
        """float(sum) * (row scale * column scale), the epilogue, the store; padded columns stay unwritten."""
        e, lanes = self.e, self.lanes
        masks: list[Expr | None] = [None] * vectors
        if self.n % self.width:
            left = [tirx.max(i64(self.n) - (column + j * lanes), i64(0)) for j in range(vectors)]
            masks = [e.first(e.let(count), lanes) for count in left]
        scales = [e.load(self.w_scale, column + j * lanes, lanes) for j in range(vectors)]

        def store_row(i: Expr, sums: list[Expr]) -> None:
            base = e.let((row + i) * self.n + column)
            x_scale = e.let(splat(row_scale(e, self.row_floats, row + i, self.k), lanes))
            for j, total in enumerate(sums):
                at = e.let(base + j * lanes)
                value = e.let(tirx.Cast(vector("float32", lanes), total))
                scale = e.let(x_scale * scales[j])
                extras = self._extras(column + j * lanes, at, masks[j])
                e.store(self.out, at, _epilogue(e, value, scale, self.epilogue, extras), masks[j])

        if not any(step in ACTIVATIONS for step in self.epilogue):
            for i in range(rows):
                store_row(i64(i), [e.get(acc, i * vectors + j) for j in range(vectors)])
            return
        # An activation is long: writing it out for every register of every tile would cost code.
        held = e.registers(rows * vectors, vector("int32", lanes))
        for i in range(rows * vectors):
            e.set(held, i, e.get(acc, i))
        with e.loop(0, rows, "row") as i:
            store_row(i, [e.let(e.get(held, i * vectors + j)) for j in range(vectors)])

    def _extras(self, column: Expr, at: Expr, mask: Expr | None) -> Callable[[int, str], Expr]:
        def load(number: int, step: str) -> Expr:
            if step == "bias":
                return self.e.load(self.extras[number], column, self.lanes)
            return self.e.load(self.extras[number], at, self.lanes, mask)

        return load


def _epilogue(
    e: Emitter, value: Expr, scale: Expr, steps: tuple[str, ...], extra: Callable[[int, str], Expr]
) -> Expr:
    """The steps on value * scale; a first bias or residual is added by one fused multiply-add."""
    number = 0
    if steps and steps[0] not in ACTIVATIONS:
        value, steps, number = e.let(fma(value, scale, extra(0, steps[0]))), steps[1:], 1
    else:
        value = e.let(value * scale)
    for step in steps:
        if step in ACTIVATIONS:
            value = ACTIVATIONS[step](e, value)
        else:
            value, number = e.let(value + extra(number, step)), number + 1
    return value


Dots = Callable[[Expr, list[Expr]], list[Expr]]  # (4 bytes of a row in each lane, sums) -> sums


def _vnni(e: Emitter, lanes: int, b: list[Expr]) -> Dots:
    """sums + 4 products u8 x s8 in each lane: one instruction."""
    weights = [e.let(tirx.reinterpret("int8x64", w)) for w in b]
    name = "llvm.x86.avx512.vpdpbusd.512"

    def dots(a: Expr, sums: list[Expr]) -> list[Expr]:
        row = e.let(tirx.reinterpret("uint8x64", a))
        pairs = zip(sums, weights, strict=True)
        return [tirx.call_llvm_pure_intrin("int32x16", name, total, row, w) for total, w in pairs]

    return dots


def _widened(e: Emitter, lanes: int, b: list[Expr]) -> Dots:
    """The same by bytes 0 and 2, then 1 and 3, widened to 16 bits: products of 9 by 8 bits, summed in 32."""
    half, name = (
        f"int16x{2 * lanes}",
        "llvm.x86.avx512.pmaddw.d.512" if lanes == 16 else "llvm.x86.avx2.pmadd.wd",
    )
    eight, low = splat(tirx.const(8, "int16"), 2 * lanes), splat(tirx.const(0x00FF00FF, "int32"), lanes)
    words = [e.let(tirx.reinterpret(half, w)) for w in b]
    odd = [e.let(tirx.shift_right(w, eight)) for w in words]
    even = [e.let(tirx.shift_right(e.let(tirx.shift_left(w, eight)), eight)) for w in words]

    def dots(a: Expr, sums: list[Expr]) -> list[Expr]:
        shifted = e.let(tirx.shift_right(a, splat(tirx.const(8, "int32"), lanes)))
        parts = [e.let(tirx.reinterpret(half, tirx.bitwise_and(v, low))) for v in (a, shifted)]
        result = []
        for total, *pair in zip(sums, even, odd, strict=True):
            for row, w in zip(parts, pair, strict=True):
                total = e.let(total + tirx.call_llvm_pure_intrin(vector("int32", lanes), name, row, w))
            result.append(total)
        return result

    return dots


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {
    "row_scale": lower_row_scale,
    "quantize_rows": lower_quantize_rows,
    "dequantize_rows": lower_dequantize_rows,
    "qlinear": lower_qlinear,
}
