"""Integer products on 64-bit ARM: `sdot` where the CPU has it, else products of bytes widened to 16 bits.

Both operands of ARM's instructions are signed, so the 128 that packed rows carry is taken off each byte (its top
bit flips) and the sums start at 0. The weights are packed as for x86: [k / 4][width][4]. A tile is 16 columns.
"""

from __future__ import annotations

from collections.abc import Callable

from llmc.targets.target import Cpu
from llmc.targets.tir.emit import Buffer, Emitter, Expr, splat
from llmc.targets.tir.later import tirx

QUADS = 4  # 128-bit registers of 4 columns each that make 16 columns
DOT_ROWS = 6  # of a tile: 6 x 4 sums, 6 pieces of rows and one of weights fill 31 of 32 registers
WIDE_ROWS = 2  # 2 x 8 sums of pairs, weights of 2 groups, products
_TOP = 0x80808080 - (1 << 32)  # the top bit of each byte of an int32

Block = Callable[[Expr, int], None]  # (first group, groups) -> adds their products to the sums


def sums(
    e: Emitter,
    cpu: Cpu,
    rows: Buffer,
    bases: list[Expr],
    w: Buffer,
    start: Expr,
    groups: int,
    width: int,
    lowest: bool = False,
) -> Buffer:
    """Exact sums of a tile, int32x4 registers `[row][quad]`.

    Args:
        rows, w: packed rows and weights as int32, one group of 4 bytes each.
        bases: index of each row's first group.
        start: index in `w` of group 0 of the tile's first column; a group further is `width` elements further.
        groups: how many groups there are, ceil(k / 4).
        lowest: whether there may be levels of -128.
    """
    if cpu.dots:
        return _dots(e, rows, bases, w, start, groups, width)
    return _widened(e, rows, bases, w, start, groups, width, 1 if lowest else 2)


def _in_blocks(e: Emitter, groups: int, size: int, body: Block) -> None:
    """`body` for all groups, `size` at a time, then for what is left."""
    with e.loop(0, groups // size, "k") as at:
        body(e.let(at * size), size)
    if groups % size:
        body(tirx.IntImm("int64", groups - groups % size), groups % size)


def flip(e: Emitter, value: Expr, lanes: int) -> Expr:
    """Unsigned bytes around 128 as signed ones."""
    return e.let(tirx.bitwise_xor(value, splat(tirx.const(_TOP, "int32"), lanes)))


def _dots(
    e: Emitter, rows: Buffer, bases: list[Expr], w: Buffer, start: Expr, groups: int, width: int
) -> Buffer:
    """Blocks of 4 groups: 16 bytes of each row in a register, whose quarters `sdot` takes by index."""
    acc = _zeros(e, len(bases) * QUADS)

    def block(first: Expr, count: int) -> None:
        # a row is padded to 16 bytes, so a last block reads no further than the row
        held = [flip(e, e.load(rows, base + first, 4), 4) for base in bases]
        for group in range(count):
            line = e.let(start + (first + group) * width)
            for quad in range(QUADS):
                weights = e.let(tirx.reinterpret("int8x16", e.load(w, line + quad * 4, 4)))
                for i, row in enumerate(held):
                    quarter = tirx.Shuffle([row], [tirx.const(group, "int32")] * 4)
                    four = e.let(tirx.reinterpret("int8x16", e.let(quarter)))
                    total = e.get(acc, i * QUADS + quad)
                    e.set(acc, i * QUADS + quad, _sdot(total, weights, four))

    _in_blocks(e, groups, 4, block)
    return acc


def dot(e: Emitter, cpu: Cpu, total: Expr, weights: Expr, row: Expr) -> Expr:
    """Each of 4 int32 plus the 4 products of its signed bytes, all operands int32x4."""
    if cpu.dots:
        return _sdot(total, *(e.let(tirx.reinterpret("int8x16", value)) for value in (weights, row)))
    halves = []
    for half in (tirx.vectorlow, tirx.vectorhigh):
        parts = (e.let(half("int32x2", value)) for value in (weights, row))
        a, b = (e.let(tirx.reinterpret("int8x8", part)) for part in parts)
        halves.append(e.let(_pair_sums(e.let(_product(a, b)))))
    return e.let(total + e.let(_joined(*halves)))


def _sdot(total: Expr, weights: Expr, row: Expr) -> Expr:
    """Each of 4 int32 plus its 4 products of signed bytes."""
    return tirx.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", total, weights, row)


def _widened(
    e: Emitter, rows: Buffer, bases: list[Expr], w: Buffer, start: Expr, groups: int, width: int, size: int
) -> Buffer:
    """`size` groups at a time: two products of magnitude 128 * 127 fit 16 bits, and pairs are summed in 32.

    A register of pair sums holds 2 columns, so there are 8 a row until the end.
    """
    pairs = _zeros(e, len(bases) * 2 * QUADS)

    def block(first: Expr, count: int) -> None:
        held = []
        for base in bases:
            four = [flip(e, splat(e.load(rows, base + first + g), 2), 2) for g in range(count)]
            held.append([e.let(tirx.reinterpret("int8x8", value)) for value in four])
        for pair in range(2 * QUADS):
            lines = [e.let(start + (first + g) * width + pair * 2) for g in range(count)]
            weights = [e.let(tirx.reinterpret("int8x8", e.load(w, line, 2))) for line in lines]
            for i, row in enumerate(held):
                products = [e.let(_product(a, b)) for a, b in zip(weights, row, strict=True)]
                short = e.let(products[0] + products[1]) if count == 2 else products[0]
                at = i * 2 * QUADS + pair
                e.set(pairs, at, e.get(pairs, at) + _pair_sums(short))

    _in_blocks(e, groups, size, block)
    acc = e.registers(len(bases) * QUADS, "int32x4")
    for i in range(len(bases) * QUADS):
        e.set(acc, i, _joined(e.get(pairs, 2 * i), e.get(pairs, 2 * i + 1)))
    return acc


def _product(a: Expr, b: Expr) -> Expr:
    return tirx.call_llvm_pure_intrin("int16x8", "llvm.aarch64.neon.smull.v8i16", a, b)


def _pair_sums(value: Expr) -> Expr:
    """8 int16 -> 4 int32, neighbours summed."""
    return tirx.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", value)


def _joined(a: Expr, b: Expr) -> Expr:
    """Neighbours summed: 4 lanes of a and 4 of b -> 4."""
    return tirx.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.addp.v4i32", a, b)


def _zeros(e: Emitter, count: int) -> Buffer:
    acc = e.registers(count, "int32x4")
    for i in range(count):
        e.set(acc, i, splat(tirx.const(0, "int32"), 4))
    return acc
