"""Which rows a group has, for every backend: what `ends` holds is kept within the rows, whatever it is."""

from __future__ import annotations

from llmc.targets.tir.emit import Buffer, Emitter, Expr, i64
from llmc.targets.tir.later import tirx


def group_rows(k: Emitter, ends: Buffer, group: Expr, groups: Expr, rows: Expr) -> tuple[Expr, Expr]:
    """First row of a group and the row behind its last. Group `groups` is what comes behind all others.

    Ends that go back count as the largest before them: a group never shares a row with another.
    """
    first, last = k.registers(1, "int64"), k.registers(1, "int64")
    k.set(last, 0, i64(0))
    k.set(first, 0, i64(0))
    with k.loop(0, k.let(tirx.min(group + 1, groups)), "g") as g:
        end = k.let(tirx.Cast("int64", k.load(ends, g)))
        k.set(first, 0, k.let(k.get(last)))
        k.set(last, 0, k.let(tirx.min(tirx.max(k.let(k.get(last)), end), rows)))
    with k.when(tirx.EQ(group, groups)):
        k.set(first, 0, k.let(k.get(last)))
        k.set(last, 0, rows)
    return k.let(k.get(first)), k.let(k.get(last))
