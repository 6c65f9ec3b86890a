"""Where a thread keeps what in its scratch memory, in float32s from the start; what each call reserves follows.

All arithmetic keeps the queries first, then scores and output, and behind these what is its own.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

from llmc.compiler.ops.int8_attention import KEYS
from llmc.targets.tir.attention_shape import Layouts
from llmc.targets.tir.emit import LANES

QUERIES = 64  # of one work item
VECTORS = QUERIES // LANES
FOURS = KEYS // 4  # groups of keys of a block
KEPT, KEPT_BYTES = 2, 8  # blocks of keys whose levels are kept: as floats, as bytes


class Scratch(NamedTuple):
    """Of all arithmetic."""

    queries: int  # [feature][query]
    scores: int  # [key][query]
    output: int  # [feature][query]
    own: int


class FloatScratch(NamedTuple):
    """Of arithmetic in float32."""

    values: int  # [key][feature], each key's on whole vectors
    keys: int  # likewise, where they are stored in fewer bits
    end: int


class Int8Scratch(NamedTuple):
    """Of int8 whose integers are kept as floats."""

    scales: int  # [keys, their inverses, values, their inverses][feature]
    levels: int  # [block][keys, values][key][feature]; the last block is one not kept
    end: int


class ByteScratch(NamedTuple):
    """Of int8 whose integers are bytes, four to an element."""

    scales: int  # as of `Int8Scratch`
    levels: int  # [block][keys: [key][four features], values: [feature][four keys]]
    starts: int  # [query]
    weights: int  # [four keys][query]
    fours: int  # values by [four keys][feature]
    end: int


def pitch(size: int) -> int:
    """From the values of a key to those of the next."""
    return -(-size // LANES) * LANES


def common(layouts: Layouts) -> Scratch:
    return Scratch(
        *accumulate((QUERIES * layouts.q.size, QUERIES * KEYS, QUERIES * layouts.v.size), initial=0)
    )


def float_scratch(layouts: Layouts) -> FloatScratch:
    keys = 0 if layouts.k.stored == "f32" else KEYS * pitch(layouts.k.size)
    return FloatScratch(*accumulate((KEYS * pitch(layouts.v.size), keys), initial=common(layouts).own))


def int8_scratch(layouts: Layouts) -> Int8Scratch:
    size = layouts.q.size
    return Int8Scratch(*accumulate((4 * size, (KEPT + 1) * 2 * KEYS * size), initial=common(layouts).own))


def byte_scratch(layouts: Layouts) -> ByteScratch:
    size = layouts.q.size
    parts = 4 * size, (KEPT_BYTES + 1) * 2 * FOURS * size, QUERIES, FOURS * QUERIES, FOURS * size
    return ByteScratch(*accumulate(parts, initial=common(layouts).own))


def reserved(layouts: Layouts, int8: bool) -> int:
    """Bytes that a call reserves for each thread: as many as the steps of any CPU need.

    With int8 they have been more by a block of values in float, which nothing lies in.
    """
    if not int8:
        return 4 * float_scratch(layouts).end
    unused = KEYS * pitch(layouts.v.size)
    return 4 * (max(int8_scratch(layouts).end, byte_scratch(layouts).end) + unused)
