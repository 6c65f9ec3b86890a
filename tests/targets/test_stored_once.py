"""Tables that a product has by panels: looked up there, stored once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_lab import Lab, assert_as_reference, run_all, same_bits

from llmc.compiler.calls import Call, Packed, every_call
from llmc.compiler.dims import symbol
from llmc.compiler.graph import DTYPES, Graph, Node
from llmc.compiler.module import Module
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.plan import make_plans
from llmc.compiler.stored_once import store_once
from llmc.targets.backend import Backend
from llmc.targets.cpu.backend import BACKEND as CPU
from llmc.targets.cpu.lower import LOWERINGS
from llmc.targets.cuda.backend import CudaBackend

Array = np.ndarray[Any, Any]
B, S = symbol("batch"), symbol("seq")
DIMS = {"batch": (1, 4), "seq": (1, 80)}
IDS = input_("ids", "i64", (B, S))
SIZES = [(1, 1), (48, 16), (131, 95)]  # rows, columns: whole panels, parts, tails
RNG = np.random.default_rng(3)


def table_of(rows: int, columns: int, dtype: str = "f32") -> Node:
    return constant(RNG.normal(size=(rows, columns)).astype(DTYPES[dtype]))


def looked_up(table: Node) -> dict[str, Node]:
    """The table's rows, alone and with a norm of their sum with rows of another one."""
    columns = int(table.shape[1])
    scale, shift = (constant(RNG.normal(size=columns).astype(np.float32)) for _ in range(2))
    norm = (table, IDS, table_of(5, columns), IDS, scale, shift)
    return {
        "rows": make("embedding", (table, IDS)),
        "norm": make("embed_norm", norm, eps=1e-5, tables=2),
    }


def head(table: Node) -> Node:
    return make("linear", (input_("x", "f32", (B, S, table.shape[1])), table))


def tied(table: Node) -> Graph:
    product = head(table)
    return Graph((IDS, product.inputs[0]), {**looked_up(table), "head": product}, DIMS)


def plain_operands(calls: Sequence[Any], table: Node) -> list[Call]:
    return [call for call in every_call(calls) if table in call.operands]


class Beside(Lab):
    """With a product that is lowered with the graph and not run: LLVM takes longest for products."""

    def __init__(self, folder: Path, product: Node) -> None:
        super().__init__(folder, LOWERINGS)  # type: ignore[arg-type]
        self.product = product

    def calls_of(self, graph: Graph) -> dict[Any, Call]:
        outputs = {**graph.outputs, "product": self.product}
        calls = super().calls_of(Graph((*graph.inputs, self.product.inputs[0]), outputs, graph.dims))
        return {node: call for node, call in calls.items() if node is not self.product}


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_the_same_bits_from_panels(kernels: Lab, rows: int, columns: int, dtype: str, tmp_path: Path) -> None:
    """Ids from outside are clamped, as they are in a plain table."""
    table, sizes = table_of(rows, columns, dtype), {"batch": 2, "seq": 9}
    graph, inputs = Graph((IDS,), looked_up(table), DIMS), {"ids": RNG.integers(-3, rows + 3, (2, 9))}
    beside = Beside(tmp_path, head(table))
    assert not plain_operands(list(beside.calls_of(graph).values()), table)

    found = run_all(beside, graph, inputs, sizes)

    for name, value in run_all(kernels, graph, inputs, sizes).items():
        assert same_bits(found[name], value), name
    assert_as_reference(graph.outputs["rows"], found["rows"], inputs, sizes)


@pytest.mark.parametrize("backend", [CPU, CudaBackend()], ids=["cpu", "cuda"])
def test_it_is_stored_once(backend: Backend) -> None:
    table = table_of(96, 64)
    module = Module.of(tied(table))
    calls = {name: lowered(backend, graph) for name, graph in module.functions.items()}
    before = make_plans(module, calls)["forward"].weights_bytes
    after = make_plans(module, store_once(calls))["forward"].weights_bytes
    assert before - after == 96 * 64 * 4


def lowered(backend: Backend, graph: Graph) -> tuple[Call, ...]:
    """Without nvcc."""
    table = backend.lowerings()
    return tuple(table[node.op](node) for node in graph.nodes if node.op in table)  # type: ignore[misc]


def test_the_look_up_may_be_in_another_function() -> None:
    """Weights are stored once for all functions of a module."""
    table = table_of(49, 20)
    one, two = Graph((IDS,), looked_up(table), DIMS), tied(table)
    calls = {"embed": CPU.lower(one), "score": CPU.lower(two)}
    assert plain_operands(calls["embed"], table)
    assert not plain_operands(store_once(calls)["embed"], table)


def test_a_table_that_someone_reads_as_it_is_stays() -> None:
    """Nothing would be won, and rows that lie side by side are read faster."""
    table = table_of(49, 20)
    graph = tied(table)
    sliced = make("slice", (table,), axis=0, start=0, stop=3)
    calls = CPU.lower(Graph(graph.inputs, {**graph.outputs, "sliced": sliced}, DIMS))
    assert store_once({"": calls})[""] == calls


def test_a_table_of_its_own_stays() -> None:
    calls = CPU.lower(Graph((IDS,), looked_up(table_of(49, 20)), DIMS))
    assert store_once({"": calls})[""] == calls
    assert not any(isinstance(o, Packed) for call in every_call(calls) for o in call.operands)


def test_a_head_with_rounded_weights_has_a_copy() -> None:
    """Rows of another precision are other numbers."""
    table = table_of(49, 20)
    rounded = constant(table.attributes["value"].array.astype(np.float16))
    product = head(rounded)
    calls = CPU.lower(Graph((IDS, product.inputs[0]), {**looked_up(table), "head": product}, DIMS))
    assert store_once({"": calls})[""] == calls
