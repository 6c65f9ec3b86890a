"""Products of stored weights on GPUs, emulated: at edges of tiles and segments, by the interpreter and bit by bit."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from llmc.compiler import interpret
from llmc.compiler.calls import Packed, every_call
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS, constant, input_, make
from llmc.compiler.ops.float_steps import fma32
from llmc.compiler.ops.storage import pack_indices, packed_bytes
from llmc.compiler.stored_once import store_once
from llmc.errors import LlmcError
from llmc.options import Order
from llmc.targets.cuda.lower import LOWERINGS
from llmc.targets.cuda.stored import SEGMENTS, SPAN, UNIT
from llmc.targets.lowering import lower

pytestmark = pytest.mark.xdist_group("cuda-kernels")
ROWS = (1, 2, 4, 5, 8, 9, 65)
B = symbol("batch")
Array = np.ndarray[Any, Any]
# n, k, bits, block (0: a whole row; 16 bits have none), dtype of the scales
CASES: dict[str, tuple[int, int, int, int, str]] = {
    "w4": (70, 96, 4, 32, "f16"),
    "w4 odd": (17, 75, 4, 32, "f16"),
    "w4 64": (64, 128, 4, 64, "f32"),
    "w4 128": (20, 300, 4, 128, "f16"),
    "w4 16": (65, 48, 4, 16, "f16"),
    "w4 row": (33, 70, 4, 0, "f32"),
    "w4 long": (16, 1057, 4, 32, "f16"),
    "w8": (70, 96, 8, 0, "f32"),
    "w8 odd": (9, 33, 8, 0, "f32"),
    "w8 64": (66, 200, 8, 64, "f32"),
    "w8 long": (16, 2100, 8, 64, "f32"),
    "bf16": (70, 75, 16, 0, ""),
    "bf16 long": (16, 1100, 16, 0, ""),
}
EPILOGUES = {"w4": ("bias", "gelu"), "w8 64": ("bias", "residual"), "bf16": ("relu",)}


def weight(n: int, k: int, bits: int, block: int, dtype: str, seed: int = 0) -> Node:
    """A stored weight, in a graph."""
    rng = np.random.default_rng(seed)
    if bits == 16:
        halves = (rng.normal(size=(n, k)).astype(np.float32).view(np.uint32) >> 16).astype("<u2")
        return make("bfloat16", (constant(halves.view(np.uint8)),), columns=k)
    block = block or k
    levels = constant(pack_indices(rng.integers(0, 1 << bits, (n, k)).astype(np.uint8), bits))
    made = rng.uniform(0.01, 0.3, (n, -(-k // block))) / np.sqrt(k)
    scales = constant(made.astype(np.float16 if dtype == "f16" else np.float32))
    return make("blockwise", (levels, scales), columns=k, bits=bits, block=block)


def values(w: Node) -> Array:
    return np.asarray(OPS[w.op].reference(*(i.attributes["value"].array for i in w.inputs), **w.attributes))


def product(name: str, x: Node) -> Node:
    """That of a case."""
    n, k, *_ = CASES[name]
    epilogue = EPILOGUES.get(name, ())
    extras = {
        "bias": constant(np.random.default_rng(3).normal(size=n).astype(np.float32)),
        "residual": make("linear", (x, constant(np.full((n, k), 0.01, np.float32)))),
    }
    inputs = (x, weight(*CASES[name]), *(extras[step] for step in epilogue if step in extras))
    return make("linear", inputs, epilogue=epilogue)


def graph_of(name: str) -> Graph:
    x = input_("x", "f32", (B, CASES[name][1]))
    return Graph((x,), {"y": product(name, x)}, {"batch": (0, 100)})


def together() -> Graph:
    """All cases, for bench/gpu.py."""
    inputs = {name: input_(name.replace(" ", "_"), "f32", (B, case[1])) for name, case in CASES.items()}
    outputs = {x.attributes["name"]: product(name, x) for name, x in inputs.items()}
    return Graph(tuple(inputs.values()), outputs, {"batch": (1, 100)})


def tied() -> Graph:
    """Tables that a product has as well, and one whose rows alone are read."""
    ids = input_("ids", "i64", (B,))
    outputs: dict[str, Node] = {}
    for name, how in {
        "w8": (11, 40, 8, 64, "f32"),
        "w4": (11, 35, 4, 32, "f16"),
        "bf16": (70, 33, 16, 0, ""),
    }.items():
        table = weight(*how)
        parts = tuple(make("embedding", (part, ids)) for part in table.inputs)
        outputs[name] = make(table.op, parts, **table.attributes)
        outputs[f"{name} head"] = make("linear", (outputs[name], table))
        alone = weight(*how, seed=1)
        parts = tuple(make("embedding", (part, ids)) for part in alone.inputs)
        outputs[f"{name} alone"] = make(alone.op, parts, **alone.attributes)
    return Graph((ids,), outputs, {"batch": (1, 100)})


def short() -> Graph:
    """Blocks that end inside of what shares a scale in a kernel."""
    x = input_("x", "f32", (B, 40))
    return Graph((x,), {"y": make("linear", (x, weight(20, 40, 4, 6, "f32")))}, {"batch": (1, 100)})


def around(bits: int) -> Graph:
    """Groups with zero points: of a product, and of rows that are looked up."""
    rng = np.random.default_rng(bits)
    n, k, block = 20, 75, 32
    levels, zeros = (
        constant(pack_indices(rng.integers(0, 1 << bits, (n, size)).astype(np.uint8), bits))
        for size in (k, -(-k // block))
    )
    scales = constant(rng.uniform(0.01, 0.3, (n, -(-k // block))).astype(np.float16))
    x, at = input_("x", "f32", (B, k)), input_("at", "i64", (B,))
    w = make("blockwise", (levels, scales, zeros), columns=k, bits=bits, block=block)
    parts = tuple(make("embedding", (part, at)) for part in (levels, scales, zeros))
    rows = make("blockwise", parts, columns=k, bits=bits, block=block)
    return Graph((x, at), {"y": make("linear", (x, w)), "rows": rows}, {"batch": (1, 100)})


@pytest.fixture(scope="module")
def lab(gpu_lab: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = {name: graph_of(name) for name in CASES} | {"tied": tied(), "short": short()}
    made |= {f"zeros {bits}": around(bits) for bits in (4, 8)}
    return made, gpu_lab.GpuLab(tmp_path_factory.mktemp("stored"), list(made.values()))


def given(k: int, rows: int, seed: int = 7) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, k)).astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_products(lab: Any, name: str) -> None:
    """Those of few rows and of tiles, and no output depends on the rows beside it."""
    made, kernels = lab
    x = given(CASES[name][1], ROWS[-1])
    found = {rows: kernels.run(made[name], {"x": x[:rows]}, {"batch": rows})["y"] for rows in (*ROWS, 0)}
    (expected,) = interpret.run(made[name], {"x": x}).values()
    assert found[0].shape == (0, expected.shape[1])
    assert np.abs(found[65] - expected).max() <= 1e-6 * max(1.0, np.abs(expected).max())
    for rows in ROWS:
        assert np.array_equal(found[rows], found[65][:rows]), rows


def in_order(x: Array, w: Node, name: str) -> Array:
    """The product as docs/numerics.md has it."""
    _, k, bits, block, _ = CASES[name]
    array = values(w) if bits == 16 else None
    if array is None:
        levels, scales = (i.attributes["value"].array for i in w.inputs)
        ones = np.ones((len(levels), 1), np.float32)
        array = OPS["blockwise"].reference(levels, ones, columns=k, bits=bits, block=k)
    units = -(-k // UNIT)
    length = -(-units // SEGMENTS) * UNIT
    total = np.zeros((len(x), len(array)), np.float32)
    for start in range(0, k, length):
        segment = np.zeros_like(total)
        for span in range(start, min(start + length, k), SPAN):
            part = segment if bits == 16 else np.zeros_like(total)
            for i in range(span, min(span + SPAN, start + length, k)):
                part = fma32(x[:, i : i + 1], array[:, i], part)
            scale = 1 if bits == 16 else scales[:, span // (block or k)].astype(np.float32)
            segment = part if bits == 16 else fma32(part, scale, segment)
        total = total + segment
    return total


@pytest.mark.parametrize("name", [name for name in CASES if name not in EPILOGUES])
def test_order_of_sums(lab: Any, name: str) -> None:
    made, kernels = lab
    x = given(CASES[name][1], 9, 8)
    found = kernels.run(made[name], {"x": x}, {"batch": 9})["y"]
    assert np.array_equal(found, in_order(x, weight(*CASES[name]), name))


def test_rows_that_are_not_finite(lab: Any) -> None:
    """What is read beyond the end of a row is not the next row."""
    made, kernels = lab
    for rows in (3, 12):
        x = given(CASES["w4 odd"][1], rows)
        x[1] = np.inf
        found = kernels.run(made["w4 odd"], {"x": x}, {"batch": rows})["y"]
        assert np.isfinite(np.delete(found, 1, 0)).all()
        assert not np.isfinite(found[1]).any()


def test_tables(lab: Any) -> None:
    """Rows of a table have its values, out of what a product has as well."""
    made, kernels = lab
    ids = np.random.default_rng(1).integers(0, 11, 13)
    found = kernels.run(made["tied"], {"ids": ids}, {"batch": 13})
    for name, expected in interpret.run(made["tied"], {"ids": ids}).items():
        if name.endswith("head"):
            assert np.abs(found[name] - expected).max() <= 1e-5 * np.abs(expected).max(), name
        else:
            assert np.array_equal(found[name], expected), name


def test_tied_tables_are_stored_once() -> None:
    graph = tied()
    stored = every_call(store_once({"": lower(graph, LOWERINGS)})[""])
    read: dict[str, set[str]] = {}
    for operand in (o for call in stored for o in call.operands[:-1]):
        if isinstance(operand, Packed):
            read.setdefault(operand.weight.digest, set()).add(operand.layout)
        elif operand.op == "constant":
            read.setdefault(operand.attributes["value"].digest, set()).add("as it is")
    assert {len(layouts) for layouts in read.values()} == {1}
    assert len(read) == 10  # levels and scales of four tables, halves of two


def test_short_blocks_become_plain(lab: Any) -> None:
    made, kernels = lab
    for rows in (1, 9):
        x = given(40, rows)
        found = kernels.run(made["short"], {"x": x}, {"batch": rows})["y"]
        expected = interpret.run(made["short"], {"x": x})["y"]
        assert np.abs(found - expected).max() <= 1e-6


def test_bytes_are_those_stored() -> None:
    """For `bench --profile` and the cost of a layer."""
    (call,) = every_call(lower(graph_of("w4 64"), LOWERINGS))
    n, k, bits, block, _ = CASES["w4 64"]
    weights = n * packed_bytes(k, bits) + 4 * n * k // block
    assert call.bytes == 4 * B * (n + k) + weights
    assert call.flops == 2 * B * n * k


def test_a_computed_weight_is_refused() -> None:
    x, levels = input_("x", "f32", (B, 32)), input_("levels", "u8", (16, 32))
    w = make("blockwise", (levels, constant(np.ones((16, 1), np.float32))), columns=32, block=32)
    graph = Graph((x, levels), {"y": make("linear", (x, w))}, {"batch": (1, 4)})
    with pytest.raises(LlmcError, match="have no kernel") as caught:
        lower(graph, LOWERINGS)
    assert "computed at run time" in str(caught.value)


@pytest.mark.parametrize("bits", [4, 8])
def test_groups_with_zero_points(lab: Any, bits: int) -> None:
    """Products have plain weights, rows are decoded: never without the zero points."""
    made, kernels = lab
    graph = made[f"zeros {bits}"]
    values = {"x": given(75, 9), "at": np.random.default_rng(1).integers(0, 20, 9)}
    wanted, found = interpret.run(graph, values), kernels.run(graph, values, {"batch": 9})
    assert np.array_equal(found["rows"], wanted["rows"])
    assert np.abs(found["y"] - wanted["y"]).max() <= 1e-5 * np.abs(wanted["y"]).max()


def test_zero_points_are_refused_where_kernels_have_none() -> None:
    with pytest.raises(LlmcError, match="the backend cuda has no kernels for groups with zero points"):
        Order("x", None, {"target": "cuda-sm_90", "quant": "w4", "zero_points": True})
    x = input_("x", "f32", (B, 32))
    row = make("int8_rows", (x,), block=32)
    levels, zeros = (constant(np.zeros((8, size), np.uint8)) for size in (16, 1))
    scales = constant(np.ones((8, 1), np.float16))
    y = make("int8_blockwise", (row, levels, scales, zeros), columns=32, bits=4, block=32, has_zeros=True)
    with pytest.raises(LlmcError, match="no kernel for groups with zero points"):
        lower(Graph((x,), {"y": y}, {"batch": (1, 100)}), LOWERINGS)


def test_activations_in_bfloat16_are_refused() -> None:
    """Never decoded weights and float rows in their place."""
    with pytest.raises(LlmcError, match="the backend cuda has no kernels for bf16a16"):
        Order("x", None, {"target": "cuda-sm_90", "quant": "bf16a16"})
    rows = make("bf16_rows", (input_("x", "f32", (B, 32)),))
    y = make("bf16_linear", (rows, constant(np.zeros((16, 64), np.uint8))), columns=32)
    with pytest.raises(LlmcError, match="bf16"):
        lower(Graph(rows.inputs, {"y": y}, {"batch": (1, 100)}), LOWERINGS)
