"""What functions are tried with: numbers that reach what reads them."""

from __future__ import annotations

import numpy as np

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.samples import draw

IDS = input_("ids", "i32", (symbol("batch"), 100))


def drawn(*numbers: Node) -> int:
    """The largest number drawn where the input is compared with these."""
    wide = make("reshape", (make("cast", (IDS,), dtype="i64"),), shape=(*IDS.shape, 1))
    made = {f"y{i}": make("eq", (wide, n)) for i, n in enumerate(numbers)}
    graph = Graph((IDS,), made or {"y": IDS}, {"batch": (1, 9)})
    return int(draw(graph, {"batch": 9}, np.random.default_rng(0))["ids"].max())


def test_numbers_of_one_hot_rows() -> None:
    """Of a table of 257 rows that are picked so, two were tried."""
    table = constant(np.arange(257))
    assert 200 < drawn(table) <= 256
    assert 200 < drawn(constant(np.int64(3)), table) <= 256
    assert 30 < drawn(make("iota", (), length=40)) <= 39


def test_others_are_0_and_1() -> None:
    assert drawn() == 1
    assert drawn(constant(np.int64(16000))) == 1, "one number is no table"
    assert drawn(make("iota", (), length=symbol("batch"))) == 1
    assert drawn(constant(np.array([1 << 40, 0, 5]))) <= 1 << 16
