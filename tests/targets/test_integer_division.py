"""Divisions of integers in a row: TVM's analyzer must not look through them, it took ten seconds for two."""

from __future__ import annotations

import time

from llmc.targets.cpu.build import compile_object
from llmc.targets.host import find_target
from llmc.targets.tir.emit import Emitter, i64
from llmc.targets.tir.scalar_ops import apply, constant


def test_divisions_in_a_row_are_compiled_at_once() -> None:
    target = find_target("x86-avx2")
    k = Emitter("divided")
    x, y = k.pointer("x", "i64"), k.pointer("y", "i64")
    value, zero = k.load(x, i64(0), 16), constant("i64", 0, 16)
    for op, divisor in (("floordiv", 3), ("floordiv", 5), ("mod", 7)):
        value = apply(k, op, ("i64", "i64"), "i64", [value, k.load(x, i64(16 * divisor), 16)], {})
        wanted = apply(k, "ne", ("i64", "i64"), "bool", [value, zero], {})
        value = apply(k, "where", ("bool", "i64", "i64"), "i64", [wanted, value, zero], {})
    k.store(y, i64(0), value)
    function = k.function()

    began = time.process_time()
    assert compile_object({"divided": function}, target.triple, target.cpus[0])

    assert time.process_time() - began < 3
