"""16 x 16 transposes in registers."""

from __future__ import annotations

from collections.abc import Sequence

from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, f32, i64, splat
from llmc.targets.tir.later import tirx


def transpose(e: Emitter, rows: Sequence[Expr]) -> list[Expr]:
    """16 vectors of 16 lanes, transposed: four rounds of exchanges between rows 1, 2, 4 and 8 apart."""
    rows = list(rows)
    for step in (1, 2, 4, 8):
        for i in range(LANES):
            if i & step:
                continue
            a, b = rows[i], rows[i + step]
            low = [lane if not lane & step else LANES + lane - step for lane in range(LANES)]
            high = [lane + step if not lane & step else LANES + lane for lane in range(LANES)]
            rows[i], rows[i + step] = shuffle(e, a, b, low), shuffle(e, a, b, high)
    return rows


def shuffle(e: Emitter, a: Expr, b: Expr, lanes: Sequence[int]) -> Expr:
    """Lane i of the result is lane lanes[i] of a followed by b."""
    return e.let(tirx.Shuffle([a, b], [tirx.const(lane, "int32") for lane in lanes]))


def load_transposed(e: Emitter, buffer: Buffer, at: Sequence[Expr], columns: int) -> list[Expr]:
    """Columns 0..columns of the 16 rows that start at the elements `at`: one vector a column, one lane a row."""
    mask = e.first(i64(columns)) if columns < LANES else None
    return transpose(e, [e.load(buffer, index, LANES, mask) for index in at])[:columns]


def store_transposed(
    e: Emitter, buffer: Buffer, at: Sequence[Expr], values: Sequence[Expr], rows: Expr
) -> None:
    """The inverse: lane r of every vector goes to row r, which starts at `at[r]`; only rows 0..rows are written."""
    columns = len(values)
    mask = e.first(i64(columns)) if columns < LANES else None
    padded = [*values, *[splat(f32(0.0))] * (LANES - columns)]
    for r, value in enumerate(transpose(e, padded)):
        with e.when(i64(r) < rows):
            e.store(buffer, at[r], value, mask)


def zipped(e: Emitter, lines: Sequence[Expr]) -> list[Expr]:
    """Vectors of 16 columns of a power of 2 of rows -> the same by columns: all rows of the first column come first."""
    if len(lines) == 1:
        return list(lines)
    half = len(lines) // 2
    pairs = []
    low = [lane // 2 + LANES * (lane % 2) for lane in range(LANES)]
    for a, b in zip(lines[:half], lines[half:], strict=True):
        pairs.append((shuffle(e, a, b, low), shuffle(e, a, b, [lane + LANES // 2 for lane in low])))
    return [*zipped(e, [p[0] for p in pairs]), *zipped(e, [p[1] for p in pairs])]


def unzipped(e: Emitter, lines: Sequence[Expr]) -> list[Expr]:
    """The inverse."""
    if len(lines) == 1:
        return list(lines)
    half = len(lines) // 2
    evens = [2 * lane for lane in range(LANES)]
    pairs = list(zip(unzipped(e, lines[:half]), unzipped(e, lines[half:]), strict=True))
    return [shuffle(e, a, b, [lane + odd for lane in evens]) for odd in (0, 1) for a, b in pairs]
