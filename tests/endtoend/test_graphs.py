"""Random graphs and unusual outputs, through every stage to machine code, against the interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joined import join
from random_graphs import random_inputs

import llmc
from llmc.compiler import interpret
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import constant, input_, make
from llmc.driver import compile_graph

SIZES = [{"batch": 1, "seq": 1}, {"batch": 3, "seq": 17}, {"batch": 2, "seq": 64}]
B, S = symbol("batch"), symbol("seq")


def check(path: Path, graph: Graph, sizes: list[dict[str, int]], bits_agree: Any) -> None:
    """As the interpreter says, within 1e-5 of an output's scale, and the same bits at every thread count."""
    for size in sizes:
        inputs = random_inputs(graph, 0, size)
        if "mask" in inputs:
            inputs["mask"][:, 0] = 1  # a row without any token means nothing
        expected, runs = interpret.run(graph, inputs), []
        for threads in (1, 2, 3):
            with llmc.load(path, threads=threads) as model:
                runs.append(model(**inputs))
        for name, value in expected.items():
            scale = float(np.abs(value).max(initial=0)) if value.dtype.kind == "f" else 0.0
            found = runs[0][name]
            assert (found.dtype, found.shape) == (value.dtype, value.shape), name
            np.testing.assert_allclose(found, value, rtol=0, atol=1e-5 * scale, err_msg=f"{name} at {size}")
        floats = [{k: v for k, v in run.items() if v.dtype == np.float32} for run in runs]
        assert bits_agree(floats)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "level"), [(0, 3), (8, 0)])
def test_random_graphs(first: int, level: int, tmp_path: Path, random_graph: Any, bits_agree: Any) -> None:
    graphs = {f"g{seed}": random_graph(seed)[0] for seed in range(first, first + 8)}
    graph = join(graphs, shared=False)
    compile_graph(graph, tmp_path / "m.llmc", level=level)
    check(tmp_path / "m.llmc", graph, SIZES, bits_agree)


@pytest.mark.slow
def test_random_encoders(tmp_path: Path, random_encoder: Any, bits_agree: Any) -> None:
    graph = join({f"g{seed}": random_encoder(seed)[0] for seed in range(8)}, shared=True)
    compile_graph(graph, tmp_path / "m.llmc", level=3)
    check(tmp_path / "m.llmc", graph, [{"batch": 1, "seq": 1}, {"batch": 4, "seq": 16}], bits_agree)


def unusual() -> Graph:
    """Outputs that are inputs, constants, duplicates, views of each of these, scalars, and of every kind of number."""
    ids = input_("ids", "i64", (B, S), low=0, high=9)
    x = input_("x", "f32", (B, S))
    scale = input_("scale", "f32", (), default=3)
    table = constant(np.arange(6, dtype=np.float32).reshape(2, 3), "table")
    y = make("add", (x, scale))
    flat = make("reshape", (y,), shape=(B * S,))
    total = make("sum", (make("tanh", (y,)),), axes=(0, 1), keepdims=False)
    return Graph(
        (ids, x, scale),
        {
            "ids": ids,
            "x flat": make("reshape", (x,), shape=(B * S,)),
            "table": table,
            "table row": make("reshape", (table,), shape=(6,)),
            "y": y,
            'again "y"': y,
            "flat": flat,
            "later": make("tanh", (flat,)),
            "total": total,
            "scale": scale,
            "length": make("dim", (), value=S),
            "counts": make("iota", (), length=S * 2),
            "large": make("gt", (x, scale)),
        },
        {"batch": (1, 8), "seq": (1, 64)},
    )


@pytest.mark.parametrize("level", [0, 3])
def test_unusual_outputs(level: int, tmp_path: Path, bits_agree: Any) -> None:
    graph = unusual()
    compile_graph(graph, tmp_path / "m.llmc", level=level, name='a "name" \\ 模型')
    check(tmp_path / "m.llmc", graph, SIZES, bits_agree)
    with llmc.load(tmp_path / "m.llmc") as model:
        assert model.name == 'a "name" \\ 模型'
        outputs = model(ids=np.zeros((2, 3), np.int64), x=np.zeros((2, 3), np.float32))
    np.testing.assert_array_equal(outputs["y"], np.full((2, 3), 3, np.float32))


def test_a_graph_without_calls_or_weights(tmp_path: Path) -> None:
    x = input_("x", "f32", (B, 2))
    compile_graph(Graph((x,), {"y": x}, {"batch": (1, 4)}), tmp_path / "m.llmc")
    with llmc.load(tmp_path / "m.llmc") as model:
        np.testing.assert_array_equal(model(x=np.ones((3, 2), np.float32))["y"], np.ones((3, 2)))


def test_fixed_shapes(tmp_path: Path) -> None:
    x = input_("x", "f32", (2, 3))
    compile_graph(Graph((x,), {"y": make("exp", (x,))}), tmp_path / "m.llmc")
    value = np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3)
    with llmc.load(tmp_path / "m.llmc") as model:
        np.testing.assert_allclose(model(x=value)["y"], np.exp(value), rtol=1e-6)


def test_names_of_dims_that_mean_something_in_c(tmp_path: Path) -> None:
    dims = {name: symbol(name) for name in ("d", "int", "f", "at")}
    inputs = tuple(input_(f"x_{name}", "f32", (size,)) for name, size in dims.items())
    outputs = {f"y_{name}": make("tanh", (x,)) for name, x in zip(dims, inputs, strict=True)}
    compile_graph(Graph(inputs, outputs, dict.fromkeys(dims, (1, 9))), tmp_path / "m.llmc", level=0)
    with llmc.load(tmp_path / "m.llmc") as model:
        found = model(**{f"x_{name}": np.ones(3 + i, np.float32) for i, name in enumerate(dims)})
    for i, name in enumerate(dims):
        np.testing.assert_allclose(found[f"y_{name}"], np.tanh(np.ones(3 + i)), rtol=1e-6)
