"""What every product of rows that are rounded as they come is held to, whatever they are rounded to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from integer_products import M, extremes
from kernel_lab import Lab, run_all, same_bits

from llmc.compiler.graph import Graph
from llmc.compiler.interpret import run
from llmc.compiler.ops import input_, make
from llmc.compiler.ops.split import part_size

Array = np.ndarray[Any, Any]
SPECIAL = np.array([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, np.inf, -np.inf, np.nan], np.float32)


def want_bits(kernels: Lab, graph: Graph, rows: Iterable[int], seed: int) -> None:
    """The bits of the reference on every variant, for so many rows each."""
    for m in rows:
        inputs = extremes(graph, m, seed)
        assert same_bits(run_all(kernels, graph, inputs)["y"], run(graph, inputs)["y"]), m


def want_near(kernels: Lab, graph: Graph) -> None:
    """Where an activation is not computed to the last bit."""
    inputs = extremes(graph, 11, 3)
    found, wanted = run_all(kernels, graph, inputs)["y"], run(graph, inputs)["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def want_rows(kernels: Lab, op: str, k: int, parts: int) -> None:
    """Rows of all sizes, with special values among them, in `parts` bytes a value."""
    x = input_("x", "f32", (M, k))
    graph = Graph((x,), {"rows": make(op, (x,))}, {"rows": (1, 100)})
    inputs = {"x": special_rows(k)}
    result, expected = run_all(kernels, graph, inputs)["rows"], run(graph, inputs)["rows"]
    for part in range(parts):  # what is beyond a NaN's row meets weights of zero
        at = part * part_size(k)
        assert same_bits(result[:, at : at + k], expected[:, at : at + k])
    finite = np.isfinite(inputs["x"]).all(1)  # the scale's bytes of a NaN may differ
    assert same_bits(result[finite], expected[finite])


def special_rows(k: int) -> Array:
    """f32 `[23, k]`: of sizes far apart, nine with a special value, then one of zeros."""
    rng = np.random.default_rng(k)
    values = (rng.normal(size=(23, k)) * 10.0 ** rng.integers(-44, 38, (23, 1))).astype(np.float32)
    values[3:12, k // 2] = SPECIAL
    values[12] = 0
    return values


def want_nan(kernels: Lab, graph: Graph) -> None:
    """A row of 70 with a NaN or an infinity gives no number; the rows beside it are not touched."""
    values = np.random.default_rng(6).normal(size=(4, 70)).astype(np.float32)
    values[1, 4], values[2, 9] = np.nan, np.inf
    result = run_all(kernels, graph, {"x": values})["y"]
    assert np.isnan(result[1]).all()
    assert not np.isfinite(result[2]).any()
    assert np.isfinite(result[[0, 3]]).all()
