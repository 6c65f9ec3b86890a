"""The same graphs as artifacts for ARM and for x86, and a way to run the former."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import instruction_sets
import numpy as np
import pytest
from joined import join

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.ops.storage import pack_indices
from llmc.driver import compile_graph
from llmc.passes.compress.bfloat16 import upper_halves

Array = np.ndarray[Any, Any]
QEMU = "qemu-aarch64"
DIMS = {"batch": (1, 4), "seq": (1, 16)}
WORDS = 23  # ids that the samples hold
WIDTH = 70  # of the perceptron's rows: four blocks of sdot, a group of 4, 2 bytes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which(QEMU) is not None:
        return
    for item in items:
        if item.get_closest_marker("qemu"):
            item.add_marker(pytest.mark.skip(reason=f"{QEMU} is not installed"))


def perceptron() -> Graph:
    """x [batch, seq, 70] -> 45 with bias and GELU -> 70 -> plus x -> 3: every tail of the product kernels."""
    rng = np.random.default_rng(3)

    def product(x: Node, size: int) -> Node:
        k = int(x.shape[-1])
        w = constant((rng.normal(size=(size, k)) / np.sqrt(k)).astype(np.float32))
        bias = constant(rng.normal(size=size).astype(np.float32))
        return make("add", (make("linear", (x, w)), bias))

    x = input_("x", "f32", (symbol("batch"), symbol("seq"), WIDTH))
    hidden = make("gelu", (product(x, 45),))
    y = product(make("add", (product(hidden, WIDTH), x)), 3)
    return Graph((x,), {"y": y}, DIMS)


def _halves(array: np.ndarray[Any, Any]) -> Node:
    """A weight in bfloat16."""
    halves = upper_halves(array.astype(np.float32)).view(np.uint8)
    return make("bfloat16", (constant(halves),), columns=array.shape[1])


def decoder() -> Graph:
    """What a next token asks for: weights of 8 and 4 bits, and the last query of causal attention, within a window."""
    rng = np.random.default_rng(4)
    x = input_("x", "f32", (symbol("batch"), symbol("seq"), WIDTH))

    def product(bits: int, block: int) -> Node:
        levels = rng.integers(0, 1 << bits, (48, WIDTH)).astype(np.uint8)
        scales = rng.normal(size=(48, -(-WIDTH // block))).astype(np.float16 if bits == 4 else np.float32)
        parts = (constant(pack_indices(levels, bits)), constant(scales))
        weight = make("blockwise", parts, columns=WIDTH, bits=bits, block=block)
        return make("linear", (x, weight))

    def skipping(height: int) -> Node:
        keep = rng.random((48 // height, WIDTH)) < 0.3
        values = rng.normal(size=int(keep.sum()) * height).astype(np.float32)
        parts = (constant(np.packbits(keep, -1, bitorder="little")), constant(values))
        return make("linear", (x, make("bitmask", parts, columns=WIDTH, height=height)))

    def n_of_m(kept: int, group: int) -> Node:
        keep = rng.random((40, 64 // group, group)).argsort(-1) < kept
        values = rng.normal(size=int(keep.sum())).astype(np.float32)
        parts = (np.packbits(keep.reshape(40, 64), -1, bitorder="little"), values)
        some = make("slice", (x,), axis=2, start=0, stop=64)
        return make("linear", (some, make("bitmask", tuple(map(constant, parts)), columns=64, height=1)))

    last = make("slice", (x,), axis=1, start=symbol("seq") - 1, stop=symbol("seq"))
    heads = {"heads": 2, "kv_heads": 1, "head_dim": 20, "scale": 0.3, "offsets": (0, 40, 50), "causal": True}
    outputs = {
        "eight": product(8, WIDTH),
        "four": product(4, 32),
        "blocks of 4": skipping(4),
        "blocks of 16": skipping(16),
        "2 of 4": n_of_m(2, 4),
        "3 of 8": n_of_m(3, 8),
        "bfloat16": make("linear", (x, _halves(rng.normal(size=(45, WIDTH))))),
        "last": make("mha", (last, x, x), **heads),
        "window": make("mha", (x, x, x), window=5, **heads),
    }
    return Graph((x,), outputs, DIMS)


def images() -> Graph:
    """Rows of 70 as pixels of 10 channels: a window of all channels, one of each, pools, one pixel."""
    rng = np.random.default_rng(6)
    batch, seq = symbol("batch"), symbol("seq")
    x = input_("x", "f32", (batch, seq, WIDTH))
    image = make("transpose", (make("reshape", (x,), shape=(batch, seq, 7, 10)),), perm=(0, 3, 1, 2))

    def conv(image: Node, size: int, kernel: int, groups: int = 1, **more: Any) -> Node:
        w = rng.normal(size=(size, int(image.shape[1]) // groups, kernel, kernel)).astype(np.float32)
        padding = (kernel // 2,) * 4
        return make("conv2d", (image, constant(w)), padding=padding, groups=groups, **more)

    wide = conv(image, 20, 3, epilogue=("relu6",))
    each = conv(wide, 20, 3, groups=20, stride=(1, 2))
    window = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1, 1, 1)}
    pools = make("add", (make("max_pool2d", (each,), **window), make("avg_pool2d", (each,), **window)))
    outputs = {"y": conv(pools, 5, 1)}
    # on int8 these pixels are rounded as they are made
    outputs["narrow"] = conv(conv(wide, 20, 3, groups=20, epilogue=("relu6",)), 24, 1)
    return Graph((x,), outputs, DIMS)


def sixteen() -> Graph:
    """Activations of 16 bits, and the lowest levels that weights of 8 may have."""
    rng = np.random.default_rng(5)
    x = input_("x", "f32", (symbol("batch"), symbol("seq"), WIDTH))
    levels, scale = rng.integers(-128, 128, (45, WIDTH)).astype(np.int8), rng.random(45).astype(np.float32)
    levels[:9] = -128
    outputs = {"y": make("int16_linear", (make("int16_rows", (x,)), constant(levels), constant(scale)))}
    kept = np.repeat(np.repeat(rng.random((3, 18)) < 0.3, 16, 0), 4, 1)[:45, :WIDTH]
    lines = np.where(kept, np.maximum(levels, -127), np.int8(0))
    outputs["lines"] = make("qlinear", (make("quantize_rows", (x,)), constant(lines), constant(scale)))
    for bits in (4, 8):
        stored = pack_indices(rng.integers(0, 1 << bits, (45, WIDTH)).astype(np.uint8), bits)
        scales = rng.normal(size=(45, 3)).astype(np.float16)
        for of in ("int16", "int8"):
            inputs = (make(f"{of}_rows", (x,), block=32), constant(stored), constant(scales))
            made = make(f"{of}_blockwise", inputs, columns=WIDTH, bits=bits, block=32)
            outputs[f"{of}-blocks{bits}"] = made
            zeros = constant(pack_indices(rng.integers(0, 1 << bits, (45, 3)).astype(np.uint8), bits))
            made = make(f"{of}_blockwise", (*inputs, zeros), **made.attributes | {"has_zeros": True})
            outputs[f"{of}-zeros{bits}"] = made
    halves = _halves(rng.normal(size=(45, WIDTH))).inputs[0]
    outputs["bf16"] = make("bf16_linear", (make("bf16_rows", (x,)), halves), columns=WIDTH)
    return Graph((x,), outputs, DIMS)


def tied(ids: Node) -> Graph:
    """A table that is looked up and multiplied with: stored once, by panels."""
    table = constant(np.random.default_rng(4).normal(size=(WORDS, 37)).astype(np.float32))
    rows = make("embedding", (table, ids))
    return Graph((ids,), {"rows": rows, "head": make("linear", (rows, table))}, DIMS)


@pytest.fixture(scope="session")
def parts(random_encoder: Callable[..., Any]) -> dict[str, Graph]:
    """Two encoders, a perceptron, a decoder's parts, a tied table and images; inputs ids, mask and x."""
    a, b = (random_encoder(seed)[0] for seed in (1, 2))
    ids = next(node for node in a.inputs if node.attributes["name"] == "ids")
    return {"a": a, "b": b, "mlp": perceptron(), "late": decoder(), "tied": tied(ids), "images": images()}


@pytest.fixture(scope="session")
def networks(parts: dict[str, Graph]) -> Graph:
    """All of them as one."""
    return join(parts, shared=True)


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`build(graph, target, ...)`: an artifact, for ARM with the program `run`."""

    def compile_one(graph: Graph, target: str, **options: Any) -> Path:
        path = tmp_path_factory.mktemp("artifacts") / f"{target}.llmc"
        form = "shared" if target.startswith("x86") else "executable"
        with instruction_sets.code_of_this_processor():
            compile_graph(graph, path, target=target, emit=form, **options)
        return path

    return compile_one


@pytest.fixture(scope="session")
def float_pair(networks: Graph, build: Callable[..., Path]) -> tuple[Path, Path]:
    """`networks` for x86, where all variants have the same bits (tests/endtoend), and for ARM."""
    return build(networks, "x86-avx2"), build(networks, "arm")


@pytest.fixture(scope="session")
def int8_pair(parts: dict[str, Graph], build: Callable[..., Path]) -> tuple[Path, Path]:
    """The same quantised, and activations of 16 bits."""
    networks = join({**parts, "sixteen": sixteen()}, shared=True)
    return build(networks, "x86-avx2", quant="int8"), build(networks, "arm", quant="int8")


@pytest.fixture
def emulate(tmp_path: Path) -> Callable[..., dict[str, Array]]:
    """`emulate(artifact, inputs, "--variant", "neon")`: the outputs of `run` under qemu."""

    def run(artifact: Path, inputs: dict[str, Array], *options: str) -> dict[str, Array]:
        arguments = []
        for name, value in inputs.items():
            np.save(tmp_path / f"in_{name}.npy", value)
            arguments.append(f"{name}={tmp_path}/in_{name}.npy")
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        command = [QEMU, str(artifact / "run"), *options, "-o", str(out), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr
        return {path.stem: np.load(path) for path in out.iterdir()}

    return run
