"""Schedules of products: whatever is chosen, each result has the same bits."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from kernel_lab import CUTS, Lab, differing, same_bits

from llmc.compiler.dims import evaluate, symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import constant, input_, make
from llmc.targets.cpu.products.blocking import ProductShape, Schedule
from llmc.targets.cpu.products.linear import lower_linear, lower_scheduled
from llmc.targets.cpu.variants import AVX2, AVX512, AVX512VNNI, NEON

N, K = 168, 136  # by widths of 32, 48 and 64, padding is a vector and more
SHAPE = ProductShape(N, K, "f32", ("bias", "relu"))
# no block of k is like another's, items of an odd number of rows, tiles as tall as the registers allow and of one
# row; blocks of k on some variants only
SCHEDULES = (
    Schedule(32, 7, 128 * 9, 4 * K * 7 * 2, 2, 16, 5),
    Schedule(64, 96, 64 << 10, 160 << 10, 8, 64, 3),
    Schedule(16, 24, 64 * 50, 1, 1, 160, 14),
    Schedule(48, 5, 64 << 10, 1 << 20, 4, 3, 1, "avx512"),
)


def node() -> Node:
    rng = np.random.default_rng(3)
    weight, bias = (constant(rng.normal(size=size).astype(np.float32)) for size in ((N, K), (N,)))
    return make("linear", (input_("x", "f32", (symbol("m"), K)), weight, bias), epilogue=SHAPE.epilogue)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_same_bits(kernels: Lab, schedule: Schedule, tmp_path: Path) -> None:
    product = node()
    graph = Graph((product.inputs[0],), {"y": product}, {"m": (1, 999)})
    lab = Lab(tmp_path, {"linear": partial(lower_scheduled, schedules={SHAPE: schedule})})
    for rows, cuts in zip((1, 4, 13, 110), ((1 << 40,), *CUTS), strict=True):  # as one thread, as several
        inputs = {"x": np.random.default_rng(rows).normal(size=(rows, K)).astype(np.float32)}
        expected = kernels.run(graph, inputs)["y"]
        for cpu in differing(["linear"]):
            assert same_bits(lab.run(graph, inputs, None, cpu, cuts)["y"], expected), (rows, cpu.name)


def test_the_default_is_named_as_without_schedules() -> None:
    plain, same = lower_linear(node()), lower_linear(node(), Schedule.default(N))
    assert plain.kernel.key == (N, K, 16, ("bias", "relu"), "f32")
    assert plain.kernel.symbol == same.kernel.symbol
    assert lower_linear(node(), SCHEDULES[0]).kernel.symbol != plain.kernel.symbol


def test_items_are_of_the_schedules_rows() -> None:
    call = lower_linear(node(), SCHEDULES[0])
    assert evaluate(call.items, {"m": 15}) == 6 * 3


def test_a_schedule_for_one_variant_leaves_the_others_alone() -> None:
    schedule = SCHEDULES[-1]
    assert schedule.on(AVX512) == replace(schedule, cpu="")
    for cpu in (AVX2, AVX512VNNI, NEON):
        assert schedule.on(cpu) == Schedule(schedule.width, schedule.rows)
    assert SCHEDULES[0].on(AVX2) == SCHEDULES[0]
