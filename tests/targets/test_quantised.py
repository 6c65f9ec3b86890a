"""Integer kernels against the references: every bit, on every CPU variant, at tile edges and odd sizes."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from integer_products import M, given, product
from kernel_lab import CUTS, Lab, check, differing, run_all, same_bits

from llmc.compiler.graph import Graph
from llmc.compiler.interpret import run
from llmc.compiler.ops import OPS, constant, input_, make
from llmc.targets.cpu.products import dots, widened
from llmc.targets.cpu.products.qlinear import lower_qlinear
from llmc.targets.cpu.variants import AVX2, AVX2VNNI, AVX512, AVX512AMX, AVX512VNNI

Array = np.ndarray[Any, Any]
SPECIAL = np.array([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, np.inf, -np.inf, np.nan], np.float32)


SHAPES = [
    (48, 16),
    (48, 4),
    (1, 1),
    (17, 3),
    (33, 5),
    (64, 64),
    (65, 130),
    (96, 33),
    (50, 384),
    (16, 7),
    (32, 12),
]


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_products_have_the_bits_of_the_reference(kernels: Lab, n: int, k: int) -> None:
    graph, _ = product(n, k, 0, ("bias",))
    for m in (1, 2, 5, 8, 9, 47, 48, 49, 100):
        inputs = given(graph, k, m, 0)
        assert same_bits(run_all(kernels, graph, inputs)["y"], run(graph, inputs)["y"])


def test_a_hundred_random_inputs(kernels: Lab) -> None:
    """Interpreter, VNNI, AVX-512 and AVX2 agree in every bit."""
    graph, _ = product(72, 100, 1, ("bias", "residual"))
    for seed in range(100):
        inputs = given(graph, 100, 3 + seed % 11, seed)
        expected = run(graph, inputs)["y"]
        for cpu in differing(["qlinear"]):
            assert same_bits(kernels.run(graph, inputs, cpu=cpu)["y"], expected), (cpu.name, seed)


@pytest.mark.parametrize("m", [32, 33, 34, 65, 255, 256, 257, 300])
def test_halves_of_the_rows(kernels: Lab, m: int) -> None:
    """Around the numbers of rows at which there are two halves, and more than one block in each."""
    graph, _ = product(80, 68, 4, ("bias",))
    inputs = given(graph, 68, m, m)
    expected = run(graph, inputs)["y"]
    for cpu in differing(["qlinear"]):
        for cuts in ((1 << 40,), *CUTS):  # as one thread, as several
            assert same_bits(kernels.run(graph, inputs, cpu=cpu, cuts=cuts)["y"], expected), (cpu.name, cuts)


EPILOGUES = [(), ("residual",), ("residual", "bias"), ("bias", "relu", "residual"), ("relu",)]


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_exact_epilogues(kernels: Lab, epilogue: tuple[str, ...]) -> None:
    graph, _ = product(50, 20, 2, epilogue)
    for m in (1, 7, 50):
        inputs = given(graph, 20, m, 2)
        assert same_bits(run_all(kernels, graph, inputs)["y"], run(graph, inputs)["y"])


@pytest.mark.parametrize("step", ["gelu", "gelu_tanh", "gelu_poly", "tanh", "silu", "sigmoid"])
def test_activations(kernels: Lab, step: str) -> None:
    graph, node = product(50, 20, 3, ("bias", step, "residual"))
    check(kernels, {"y": node}, given(graph, 20, 11, 3))


@pytest.mark.parametrize("k", [1, 4, 15, 16, 17, 100])
def test_rows(kernels: Lab, k: int) -> None:
    x, scale = input_("x", "f32", (M, k)), input_("scale", "f32", ())
    nodes = {
        "scale": make("row_scale", (x,)),
        "own": make("quantize_rows", (x,)),
        "given": make("quantize_rows", (x, scale), has_scale=True),
    }
    nodes["back"] = make("dequantize_rows", (nodes["own"],), size=k)
    graph = Graph((x, scale), nodes, {"rows": (1, 100)})
    rng = np.random.default_rng(k)
    values = (rng.normal(size=(23, k)) * 10.0 ** rng.integers(-44, 38, (23, 1))).astype(np.float32)
    values[3:12, k // 2] = SPECIAL
    values[12] = 0
    values[13] = np.arange(k) + 0.5  # halves, at the scale of 1 given
    inputs = {"x": values, "scale": np.float32(1.0)}
    results = run_all(kernels, graph, inputs)
    for name, expected in run(graph, inputs).items():
        if expected.dtype == np.uint8:  # the scale's bytes of a NaN may differ
            expected, results[name] = expected[:, :k], results[name][:, :k]
        assert same_bits(results[name], expected), name


@pytest.mark.parametrize("shape", [(), (1,), (7, 1), (20,), (7, 20)])
def test_explicit_form(kernels: Lab, shape: tuple[int, ...]) -> None:
    x, q, scale = input_("x", "f32", (7, 20)), input_("q", "i8", (7, 20)), input_("scale", "f32", shape)
    rng = np.random.default_rng(5)
    values = rng.normal(size=(7, 20)).astype(np.float32)
    values[2, :9] = SPECIAL
    inputs = {
        "x": values,
        "q": rng.integers(-127, 128, (7, 20), np.int8),
        "scale": rng.uniform(1e-3, 0.1, shape).astype(np.float32),
    }
    check(kernels, {"q": make("quantize", (x, scale)), "x": make("dequantize", (q, scale))}, inputs)


ZEROS: list[Array] = [np.uint8([0, 3, 128, 255]), np.int8([-128, 0, 5, 127])]


@pytest.mark.parametrize("zeros", ZEROS, ids=["u8", "i8"])
@pytest.mark.parametrize("k", [5, 100])
def test_levels_around_a_zero_point(kernels: Lab, k: int, zeros: Array) -> None:
    """Rows, products of them and the explicit form: every bit, for every variant; -128 is a weight, too."""
    dtype = "u8" if zeros.dtype == np.uint8 else "i8"
    x, scale, zero = input_("x", "f32", (M, k)), input_("scale", "f32", ()), input_("zero", dtype, ())
    rng = np.random.default_rng(k)
    w = rng.integers(-128, 128, (50, k), np.int8)
    w[:9] = -128
    rows = make("quantize_rows", (x, scale, zero), has_scale=True, has_zero=True)
    bias = constant(rng.normal(size=50).astype(np.float32))
    y = make("qlinear", (rows, constant(w), constant(np.full(50, 0.01, np.float32)), zero, bias),
             has_zero=True, epilogue=("bias",))  # fmt: skip
    q = make("quantize", (x, scale, zero))
    outputs = {"rows": rows, "y": y, "q": q, "back": make("dequantize", (q, scale, zero))}
    graph = Graph((x, scale, zero), outputs, {"rows": (1, 100)})
    values = rng.normal(size=(23, k)).astype(np.float32) * 300
    values[:9, 0] = SPECIAL
    values[9:12], values[12] = -1e9, np.arange(k) + 0.5
    for number in zeros:
        inputs = {"x": values, "scale": np.float32(1.0), "zero": number}
        results = run_all(kernels, graph, inputs)
        for name, expected in run(graph, inputs).items():
            assert same_bits(results[name], expected), name


def test_nan_reaches_the_answer(kernels: Lab) -> None:
    """A row with a NaN or an infinity gives no number; the rows beside it are not touched."""
    rng = np.random.default_rng(6)
    x = input_("x", "f32", (M, 12))
    w = constant(rng.integers(-127, 128, (20, 12), np.int8))
    y = make("qlinear", (make("quantize_rows", (x,)), w, constant(np.ones(20, np.float32))))
    values = rng.normal(size=(3, 12)).astype(np.float32)
    values[1, 4] = np.nan
    result = run_all(kernels, Graph((x,), {"y": y}, {"rows": (1, 9)}), {"x": values})["y"]
    assert np.isnan(result[1]).all()
    assert np.isfinite(result[[0, 2]]).all()


@pytest.mark.parametrize(
    ("cpu", "used"),
    [
        (AVX512AMX, "tdpbusd"),
        (AVX512VNNI, "vpdpbusd"),
        (AVX2VNNI, "vpdpbusd"),
        (AVX512, "vpmaddwd"),
        (AVX2, "vpmaddwd"),
    ],
)
def test_instructions(cpu: Any, used: str) -> None:
    """Sums stay in registers, and the instruction that saturates is not used."""
    import tvm
    from tvm import tirx

    from llmc.targets.cpu.build import llvm_target

    _, node = product(96, 64, 0)
    function = lower_qlinear(node).kernel.emit("f", cpu)
    passes = [
        tirx.transform.BindTarget(llvm_target("x86_64-linux-gnu", cpu)),
        tirx.transform.LowerTVMBuiltin(),
    ]
    module = tvm.ir.transform.Sequential(passes)(tvm.IRModule({"f": function}))
    target = llvm_target("x86_64-linux-gnu", cpu)
    text = tvm.get_global_func("target.build.llvm")(module, target).inspect_source("asm")
    tile = (dots if cpu.dots else widened).tile_of(cpu, 32)
    needed = 2 * 2 + 2 if cpu.tiles else tile.rows * tile.vectors * (1 if cpu.dots else 2)
    assert len(re.findall(rf"\b{used}\b", text)) >= needed
    assert "vpmaddubsw" not in text


def test_every_quantised_op_is_declared_exact_or_close() -> None:
    exact = {"row_scale", "quantize", "dequantize", "quantize_rows", "dequantize_rows"}
    assert {name for name in exact if OPS[name].accuracy == "exact"} == exact
