"""An op from outside on ARM: under qemu it has the bits that it has on x86."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_lab import same_bits

import llmc
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import constant, input_, make

pytestmark = pytest.mark.qemu


def test_ops_of_the_examples(extension, build, emulate):
    extension("softsign", "swiglu")
    rng = np.random.default_rng(4)
    x = input_("x", "f32", (symbol("batch"), symbol("seq"), 34))
    y = make("mul", (make("exp", (make("softsign", (x,)),)), constant(np.float32(2))))
    y = make("linear", (make("swiglu", (y,)), constant(rng.normal(size=(9, 17)).astype(np.float32))))
    graph = Graph((x,), {"y": y}, {"batch": (1, 4), "seq": (1, 16)})
    inputs = {"x": rng.normal(size=(3, 5, 34)).astype(np.float32)}
    with llmc.load(build(graph, "x86-avx2")) as model:
        expected = model(**inputs)["y"]
    assert same_bits(expected, emulate(build(graph, "arm"), inputs)["y"])
