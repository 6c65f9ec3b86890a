"""Cells of recurrent networks: gates at the edges of panels and tiles, the same bits everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_lab import Lab, run_all, same_bits

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.interpret import run
from llmc.compiler.ops import constant, input_, make, results
from llmc.errors import LlmcError
from llmc.targets.cpu.backend import BACKEND
from llmc.targets.cpu.products.cell import ROWS

M = symbol("m")
GATES = {"lstm_cell": 4, "gru_cell": 3}


def cell(op: str, n: int, k: int, dtype: type = np.float32) -> Graph:
    rng = np.random.default_rng([n, k])
    gates = GATES[op]
    w = constant((rng.normal(size=(gates * n, k)) / np.sqrt(k)).astype(dtype))
    x, h = input_("x", "f32", (M, gates * n)), input_("h", "f32", (M, k))
    if op == "gru_cell":
        node = make(op, (x, h, w, constant(rng.normal(size=n).astype(np.float32))))
        return Graph((x, h), {"h": node}, {"m": (1, 99)})
    c = input_("c", "f32", (M, n))
    after = results(make(op, (x, h, c, w)))
    return Graph((x, h, c), dict(zip("hc", after, strict=True)), {"m": (1, 99)})


def values(graph: Graph, rows: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    shapes = {n.attributes["name"]: (rows, int(n.shape[1])) for n in graph.inputs}
    return {name: (scale * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("n", [1, 16, 17, 48])
def test_a_cell_is_its_reference(kernels: Lab, op: str, n: int) -> None:
    graph = cell(op, n, n)
    for rows in (1, 2, 3, 5, ROWS, ROWS + 1):
        given = values(graph, rows)
        found = run_all(kernels, graph, given)
        for name, expected in run(graph, given).items():
            np.testing.assert_allclose(
                found[name], expected, rtol=2e-6, atol=1e-6, err_msg=f"{name}, {rows} rows"
            )


def test_a_projected_state_is_narrower_than_the_cell(kernels: Lab) -> None:
    graph = cell("lstm_cell", 20, 7)
    given = values(graph, 5)
    for name, expected in run(graph, given).items():
        np.testing.assert_allclose(run_all(kernels, graph, given)[name], expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("op", GATES)
def test_weights_in_half_precision(kernels: Lab, op: str) -> None:
    graph = cell(op, 24, 24, np.float16)
    given = values(graph, 3)
    for name, expected in run(graph, given).items():
        np.testing.assert_allclose(run_all(kernels, graph, given)[name], expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("op", GATES)
def test_gates_that_are_saturated(kernels: Lab, op: str) -> None:
    graph = cell(op, 17, 17)
    given = values(graph, 3, 1e4)
    found, expected = run_all(kernels, graph, given), run(graph, given)
    assert all(np.isfinite(value).all() for value in found.values())
    for name, value in expected.items():
        # a gate that happens not to be saturated has the rounding of a sum of large numbers
        np.testing.assert_allclose(found[name], value, rtol=2e-3, atol=1e-3 * float(np.abs(value).max()))


@pytest.mark.parametrize("op", GATES)
def test_a_row_does_not_see_the_others(kernels: Lab, op: str) -> None:
    graph = cell(op, 33, 33)
    given = values(graph, 9)
    whole = kernels.run(graph, given)
    for row in range(9):
        alone = kernels.run(graph, {name: value[row : row + 1] for name, value in given.items()})
        for name, value in alone.items():
            assert same_bits(value[0], whole[name][row]), (name, row)


def test_computed_weights_are_refused() -> None:
    w = input_("w", "f32", (4 * 8, 8))
    x, h, c = (input_(name, "f32", (M, n)) for name, n in (("x", 32), ("h", 8), ("c", 8)))
    node: Node = make("lstm_cell", (x, h, c, w))
    graph = Graph((x, h, c, w), {"h": results(node)[0]}, {"m": (1, 9)})
    with pytest.raises(LlmcError) as caught:
        BACKEND.lower(graph)
    assert "the weight is computed at run time" in str(caught.value)
