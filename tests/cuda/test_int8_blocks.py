"""Rows and weights with a scale for each block on GPUs, emulated: the interpreter's bits."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from llmc.compiler import interpret
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.ops.storage import pack_indices
from llmc.targets.cuda.int8_blocks import Blocks

pytestmark = pytest.mark.xdist_group("cuda-kernels")
ROWS = (1, 2, 5, 8, 9, 65)
B = symbol("batch")
Array = np.ndarray[Any, Any]
CASES = {  # n, k, bits, block
    "usual": (70, 96, 4, 32),
    "odd": (17, 75, 4, 32),
    "whole row": (33, 75, 4, 75),
    "of 128": (20, 300, 4, 128),
    "of 16": (65, 48, 4, 16),
    "of 48": (9, 112, 4, 48),
    "long": (16, 1057, 4, 32),
    "bytes": (66, 200, 8, 64),
    "bytes of 16": (16, 40, 8, 16),
    "bytes, whole row": (16, 75, 8, 75),
}


def product(name: str, x: Node) -> tuple[Node, Node]:
    """Rows, and a product of them."""
    n, k, bits, block = CASES[name]
    rng = np.random.default_rng(len(name))
    levels = pack_indices(rng.integers(0, 1 << bits, (n, k)).astype(np.uint8), bits)
    scales = rng.uniform(0.001, 0.1, (n, -(-k // block))).astype(np.float16 if bits == 4 else np.float32)
    rows = make("int8_rows", (x,), block=block)
    bias = (constant(rng.normal(size=n).astype(np.float32)),) if name == "usual" else ()
    how = {"columns": k, "bits": bits, "block": block, "epilogue": ("bias",) if bias else ()}
    return rows, make("int8_blockwise", (rows, constant(levels), constant(scales), *bias), **how)


def given(k: int, rows: int, seed: int = 7) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, k)).astype(np.float32)


def together() -> Graph:
    inputs = {name: input_(f"x{i}", "f32", (B, CASES[name][1])) for i, name in enumerate(CASES)}
    outputs: dict[str, Node] = {}
    for name, x in inputs.items():
        outputs[f"{name}: rows"], outputs[name] = product(name, x)
    return Graph(tuple(inputs.values()), outputs, {"batch": (1, 100)})


@pytest.fixture(scope="module")
def lab(gpu_lab: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    graph = together()
    return graph, gpu_lab.GpuLab(tmp_path_factory.mktemp("blocks"), [graph])


@pytest.mark.parametrize("rows", ROWS)
def test_the_interpreters_bits(lab: Any, rows: int) -> None:
    """A row of zeros among them, and one that is not finite."""
    graph, kernels = lab
    inputs = {}
    for i, x in enumerate(graph.inputs):
        value = given(int(x.shape[1]), rows, i)
        value[rows // 2] = 0
        value[rows // 3, :7] = 1e4
        value[-1, 3] = np.nan if rows == 9 else 1
        inputs[x.attributes["name"]] = value
    found = kernels.run(graph, inputs, {"batch": rows})
    for name, expected in interpret.run(graph, inputs).items():
        assert np.array_equal(found[name], expected, equal_nan=found[name].dtype != np.uint8), name


def test_room_for_sums_of_few_rows() -> None:
    """Long rows take fewer at once, and the longest none: 48 KiB hold the tile's as well."""
    heights = [Blocks(64, k, 4, 32).height for k in (4096, 8192, 14336, 28672, 65536)]
    assert heights == [4, 2, 1, 1, 0]
