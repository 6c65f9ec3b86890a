"""Products with compressed weights have the bits of the dense product of the decoded weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_lab import Lab, check, run_all, same_bits

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS, constant, input_, make
from llmc.compiler.ops.storage import pack_indices, packed_bytes
from llmc.targets.cpu.backend import BACKEND

RNG = np.random.default_rng(3)


def codebook(n: int, k: int, bits: int) -> Node:
    size = (1 << bits) - 3
    indices = RNG.integers(0, size, (n, k)).astype(np.uint8)
    values = RNG.normal(size=size).astype(np.float32)
    parts = (constant(pack_indices(indices, bits), "i"), constant(values, "v"))
    return make("codebook", parts, columns=k, bits=bits)


def bitmask(n: int, k: int, share: float) -> Node:
    keep = RNG.random((n, k)) >= share
    values = RNG.normal(size=int(keep.sum())).astype(np.float32)
    mask = np.packbits(keep, -1, bitorder="little")
    return make("bitmask", (constant(mask, "m"), constant(values, "v")), columns=k)


def blockwise(n: int, k: int, bits: int, block: int, dtype: str, zeros: bool = False) -> Node:
    levels = RNG.integers(0, 1 << bits, (n, k)).astype(np.uint8)
    scales = RNG.normal(size=(n, -(-k // min(block, k)))).astype(dtype)
    parts = (constant(pack_indices(levels, bits), "l"), constant(scales, "s"))
    if zeros:
        around = RNG.integers(0, 1 << bits, scales.shape).astype(np.uint8)
        parts = (*parts, constant(pack_indices(around, bits), "z"))
    return make("blockwise", parts, columns=k, bits=bits, block=min(block, k))


def bfloat16(n: int, k: int) -> Node:
    return make("bfloat16", (constant(RNG.integers(0, 256, (n, 2 * k)).astype(np.uint8), "h"),), columns=k)


def decoded(weight: Node) -> Node:
    arrays = [i.attributes["value"].array for i in weight.inputs]
    return constant(OPS[weight.op].reference(*arrays, **weight.attributes))


def finite(weight: Node) -> Node:
    """Without exponents of all ones."""
    (halves,) = (i.attributes["value"].array.copy() for i in weight.inputs)
    halves[:, 1::2] &= 0xBF
    return make("bfloat16", (constant(halves, "h"),), **weight.attributes)


SHAPES = ((5, 7), (48, 33), (100, 64), (130, 31))
WEIGHTS = {
    "codebook8": lambda n, k: codebook(n, k, 8),
    "codebook4": lambda n, k: codebook(n, k, 4),
    "bitmask 30 %": lambda n, k: bitmask(n, k, 0.3),
    "bitmask 95 %": lambda n, k: bitmask(n, k, 0.95),
    "blockwise8": lambda n, k: blockwise(n, k, 8, 999, "float32"),
    "blockwise4 of 32": lambda n, k: blockwise(n, k, 4, 32, "float16"),
    "blockwise4 of 6": lambda n, k: blockwise(n, k, 4, 6, "float32"),
    "blockwise8 with zeros": lambda n, k: blockwise(n, k, 8, 16, "float16", True),
    "blockwise4 with zeros": lambda n, k: blockwise(n, k, 4, 6, "float32", True),
    "bfloat16": lambda n, k: finite(bfloat16(n, k)),
    "bitmask of zeros": lambda n, k: bitmask(n, k, 1.0),
}


ONCE = ("blockwise4 of 6", "blockwise8 with zeros", "blockwise4 with zeros")
CASES = [(k, *shape) for k in WEIGHTS for shape in SHAPES if k not in ONCE or shape == (130, 31)]


@pytest.mark.parametrize(("kind", "n", "k"), CASES)
def test_the_bits_of_the_dense_product(kernels: Lab, kind: str, n: int, k: int) -> None:
    weight = WEIGHTS[kind](n, k)
    x, r = input_("x", "f32", (symbol("m"), k)), input_("r", "f32", (symbol("m"), n))
    bias = constant(RNG.normal(size=n).astype(np.float32))
    outputs = {}
    for name, w in (("stored", weight), ("dense", decoded(weight))):
        outputs[name] = make("linear", (x, w, bias, r), epilogue=("bias", "gelu", "residual"))
    graph = Graph((x, r), outputs, {"m": (1, 999)})
    for rows in (1, 4, 8, 13, 197):
        given: dict[str, Any] = {
            "x": RNG.normal(size=(rows, k)).astype(np.float32),
            "r": RNG.normal(size=(rows, n)).astype(np.float32),
        }
        results = run_all(kernels, graph, given)
        assert same_bits(results["stored"], results["dense"])
    assert len(BACKEND.lower(graph)) == 2, "the weight is decoded by the product, not beside it"


@pytest.mark.parametrize("kind", WEIGHTS)
def test_rows_by_themselves(kernels: Lab, kind: str) -> None:
    weight = WEIGHTS[kind](9, 21)
    results = run_all(kernels, Graph((), {"w": weight}), {})
    assert np.array_equal(results["w"], decoded(weight).attributes["value"].array)
    assert len(BACKEND.lower(Graph((), {"w": weight}))) == 1


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_that_are_looked_up(kernels: Lab, bits: int) -> None:
    """Any byte may be an index: none reads beyond the values."""
    rows = input_("rows", "u8", (symbol("b"), symbol("s"), packed_bytes(19, bits)))
    values = constant(RNG.normal(size=11).astype(np.float32))
    given = {"rows": RNG.integers(0, 256, (2, 3, packed_bytes(19, bits))).astype(np.uint8)}
    check(kernels, {"y": make("codebook", (rows, values), columns=19, bits=bits)}, given)
