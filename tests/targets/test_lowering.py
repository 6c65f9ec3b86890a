"""The table of lowerings, whole graphs through it, and the laboratory's own alarms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from kernel_lab import Lab, check_no_contraction, run_all

from llmc.compiler.calls import Call, Kernel
from llmc.compiler.graph import Graph, Node
from llmc.compiler.interpret import run
from llmc.compiler.ops import OPS, input_, make
from llmc.targets.cpu.backend import BACKEND
from llmc.targets.cpu.lower import LOWERINGS
from llmc.targets.lowering import REGIONS, free_ops
from llmc.targets.tir.emit import LANES, Emitter, fma, i64


def test_every_op_has_a_kernel() -> None:
    assert set(LOWERINGS) | free_ops() | REGIONS == set(OPS)
    assert not set(LOWERINGS) & free_ops()


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs(kernels: Lab, random_graph: Callable[..., Any], seed: int) -> None:
    graph, inputs = random_graph(seed)
    assert len(BACKEND.lower(graph)) == sum(node.op not in free_ops() for node in graph.nodes)
    results = run_all(kernels, graph, inputs)
    for name, expected in run(graph, inputs).items():
        scale = max(1.0, float(np.abs(expected).max()))
        assert np.abs(results[name] - expected).max() <= 2e-5 * scale, name


def _product_into_sum(fused: bool, held: bool) -> Any:
    k = Emitter("f")
    x, y = k.pointer("x", "f32"), k.pointer("y", "f32")
    value = k.load(x, i64(0), LANES)
    product = k.let(value * value)
    if held:
        register = k.registers(1)
        k.set(register, 0, product)
        product = k.get(register)
    k.store(y, i64(0), fma(value, value, value) if fused else product + value)
    return k.function()


@pytest.mark.parametrize("held", [False, True])
def test_contraction_is_noticed(held: bool) -> None:
    check_no_contraction(_product_into_sum(fused=True, held=held))
    with pytest.raises(AssertionError, match="a product feeds"):
        check_no_contraction(_product_into_sum(fused=False, held=held))


def _careless(node: Node, extra: int) -> Call:
    """A call of a kernel that writes `extra` elements too far, or to its input if that is negative."""

    def emit(symbol: str, cpu: Any) -> Any:
        k = Emitter(symbol)
        x, y = k.pointer("x", "f32"), k.pointer("y", "f32")
        with k.loop(k.begin, k.end) as i:
            k.store(x if extra < 0 else y, i + i64(max(extra, 0)), k.load(x, i) + k.load(x, i))
        return k.function()

    kernel = Kernel("careless", extra, ("f32", "f32"), 0, emit)
    return Call(kernel, (*node.inputs, node), (), 8, 1, 8, 64, node.source)


@pytest.mark.parametrize(("extra", "alarm"), [(1, "past the end"), (-1, "wrote to its input")])
def test_stray_writes_are_noticed(tmp_path: Any, extra: int, alarm: str) -> None:
    x = input_("x", "f32", (8,))
    lab = Lab(tmp_path, {"neg": lambda node: _careless(node, extra)})
    with pytest.raises(AssertionError, match=alarm):
        lab.run(Graph((x,), {"y": make("neg", (x,))}), {"x": np.ones(8, np.float32)})
