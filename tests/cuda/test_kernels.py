"""Every GPU kernel, run on the CPU by the emulating header, against the interpreter."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from kernel_lab import infer_sizes
from random_encoders import random_encoder
from random_graphs import random_graph

from llmc.compiler import interpret
from llmc.compiler.dims import symbol
from llmc.compiler.graph import DTYPES, Graph, Node
from llmc.compiler.ops import OPS, constant, input_, make
from llmc.compiler.ops.storage import stored_ops
from llmc.compiler.pipeline import Pipeline
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES
from llmc.targets.cuda.backend import BACKEND
from llmc.targets.cuda.lower import LOWERINGS, MISSING
from llmc.targets.lowering import REGIONS, free_ops

pytestmark = pytest.mark.xdist_group("cuda-kernels")  # all are compiled for the emulating header at once

B, S = symbol("batch"), symbol("seq")
RNG = np.random.default_rng(5)


def test_every_op_has_a_kernel_or_is_known_to_miss_one() -> None:
    assert set(LOWERINGS) | free_ops() | REGIONS | MISSING | stored_ops() == set(
        OPS
    )  # `unpack` leaves none of the last
    assert not set(LOWERINGS) & (free_ops() | REGIONS | MISSING)


def test_missing_kernels_are_listed_together() -> None:
    a, b = input_("a", "f16", (4, 4)), input_("b", "f16", (4, 4))
    graph = Graph((a, b), {"p": make("matmul", (a, b)), "q": make("matmul", (b, a))})
    with pytest.raises(LlmcError, match="have no kernel"):
        BACKEND.lower(graph)


def f32(*shape: int) -> Node:
    return constant((RNG.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32))


def products() -> Graph:
    """linear, matmul and attention at sizes on both sides of the tiles' edges."""
    x = input_("x", "f32", (B, S, 70))
    heads = make("transpose", (make("reshape", (x,), shape=(B, S, 2, 35)),), perm=(0, 2, 1, 3))
    turned = make("transpose", (heads,), perm=(0, 1, 3, 2))
    wide = make("linear", (x, f32(130, 70), f32(130)), epilogue=("bias", "gelu"))
    back = make("linear", (wide, f32(70, 130), f32(70), x), epilogue=("bias", "residual", "tanh"))
    even = make("linear", (make("slice", (x,), axis=2, start=3, stop=67), f32(64, 64)))
    scores = make("matmul", (heads, turned))
    causal = make("attention", (heads, heads, heads), scale=0.2, causal=True)
    low = make("where", (make("lt", (scores, constant(np.float32(0)))), constant(np.float32(-3e38)), scores))
    biased = make("attention", (heads, heads, heads, low), scale=0.1, has_mask=True)
    outputs = {"back": back, "even": even, "scores": scores, "causal": causal, "biased": biased}
    return Graph((x,), outputs, {"batch": (1, 4), "seq": (1, 80)})


def attentions() -> Graph:
    """Grouped heads side by side in a row, and masks that lack axes."""
    x = input_("x", "f32", (B, S, 90))
    grouped = {"heads": 4, "kv_heads": 2, "head_dim": 10, "scale": 0.3, "offsets": (0, 40, 65)}
    heads = make("transpose", (make("reshape", (x,), shape=(B, S, 3, 30)),), perm=(0, 2, 1, 3))
    first = make("slice", (x,), axis=2, start=0, stop=1)
    rows = make("gt", (make("reshape", (first,), shape=(B, 1, S, 1)), constant(np.float32(0))))
    keys = make("gt", (make("reshape", (first,), shape=(B, 1, 1, S)), constant(np.float32(0))))
    outputs = {
        "grouped": make("mha", (x, x, x), **grouped),
        "causal": make("mha", (x, x, x), causal=True, **grouped),
        "window": make("mha", (x, x, x), causal=True, window=5, **grouped),
        "late": make("mha", (make("slice", (x,), axis=1, start=S - 1, stop=S), x, x), causal=True, **grouped),
    }
    part = make("slice", (x,), axis=2, start=0, stop=32)
    split = make("reshape", (part,), shape=(B, S, 2, 16))
    packed = make("reshape", (make("quantize_rows", (split,), table=True),), shape=(B, S, 64))
    for name, kept in (("halves", make("cast", (part,), dtype="f16")), ("levels", packed)):
        how = {**grouped, "head_dim": 16, "offsets": (0, 0, 0), "causal": True}
        outputs[name] = make("mha", (x, kept, kept), **how)
    for name, mask in (("rows", rows), ("keys", keys)):
        outputs[name] = make("attention", (heads, heads, heads, mask), scale=0.2, has_mask=True)
    return Graph((x,), outputs, {"batch": (1, 4), "seq": (1, 80)})


def reductions() -> Graph:
    x = input_("x", "f32", (B, S, 37))
    outputs = {}
    for op in ("sum", "mean", "max", "min"):
        for axes in ((0,), (1,), (2,), (0, 2), (0, 1, 2)):
            outputs[f"{op}{axes}"] = make(op, (x,), axes=axes, keepdims=False)
    for axis in (0, 1, 2):
        outputs[f"softmax{axis}"] = make("softmax", (x,), axis=axis)
        outputs[f"log_softmax{axis}"] = make("log_softmax", (x,), axis=axis)
        outputs[f"cumsum{axis}"] = make("cumsum", (x,), axis=axis)
        outputs[f"argmax{axis}"] = make("argmax", (x,), axis=axis, keepdims=False)
    some = make("lt", (x, constant(np.float32(1.5))))
    outputs |= {op: make(op, (some,), axes=(2,), keepdims=True) for op in ("any", "all")}
    outputs["rms"] = make("rms_norm", (x, f32(37)), eps=1e-5)
    outputs["plain"] = make("layer_norm", (x,), eps=1e-5, has_weight=False, has_bias=False)
    by_token = make("slice", (x,), axis=2, start=3, stop=33)
    outputs["rotary"] = make("rotary", (x, by_token, f32(30)))
    outputs["pairs"] = make("rotary", (x, by_token, f32(30)), interleaved=True)
    return Graph((x,), outputs, {"batch": (1, 4), "seq": (1, 80)})


def movement() -> Graph:
    x, index = input_("x", "f32", (B, S, 6)), input_("index", "i64", (B, S, 6), low=0, high=0)
    outputs = {
        "padded": make("pad", (x,), before=(0, 1, 2), after=(1, 0, 3), value=0.5),
        "joined": make("concat", (x, x, make("neg", (x,))), axis=1),
        "picked": make("gather", (x, index), axis=1),
        "rows": make("embedding", (f32(3, 4), index)),
        "wide": make("expand", (make("reshape", (x,), shape=(B, 1, S, 6)),), shape=(B, 3, S, 6)),
        "steps": make("slice", (x,), axis=2, start=1, stop=6, step=2),
        "iota": make("iota", (), length=S, start=2, step=3),
        "full": make("full", (), shape=(S, 2), value=7, dtype="i32"),
        "size": make("dim", (), value=B * S),
    }
    return Graph((x, index), outputs, {"batch": (1, 4), "seq": (1, 80)})


def windows() -> Graph:
    """Convolutions and pools of an image whose width is dynamic; more channels than a thread has."""
    x = input_("x", "f32", (B, S, 6))
    image = make("reshape", (make("transpose", (x,), perm=(0, 2, 1)),), shape=(B, 6, 1, S))
    outputs = {}
    for name, (o, groups, kernel, epilogue), window in (
        ("pixels", (9, 1, (1, 1), ("bias", "relu6")), {}),
        ("plain", (13, 1, (3, 3), ()), {"padding": (1, 1, 1, 1), "stride": (1, 2)}),
        ("grouped", (4, 2, (1, 5), ("bias",)), {"padding": (0, 4, 0, 4), "dilation": (1, 2), "groups": 2}),
        ("channels", (6, 6, (1, 4), ("bias", "gelu")), {"padding": (0, 3, 0, 0), "groups": 6}),
    ):
        extras = [f32(o)] if epilogue else []
        weight = f32(o, 6 // groups, *kernel)
        outputs[name] = make("conv2d", (image, weight, *extras), epilogue=epilogue, **window)
    options = {"kernel": (3, 3), "stride": (2, 1), "padding": (1, 2, 1, 0)}
    for op in ("max_pool2d", "avg_pool2d"):
        outputs[op] = make(op, (image,), **options)
    return Graph((x,), outputs, {"batch": (1, 4), "seq": (1, 80)})


def selections() -> Graph:
    """Orders with ties, places written to several times, and groups of rows with some behind them."""
    x = input_("x", "f32", (B, S, 37))
    steps = make("floor", (x,))
    places = make("cast", (make("mul", (x, constant(np.float32(40)))),), dtype="i64")
    rows = make("argsort", (make("slice", (x,), axis=2, start=0, stop=9),), count=4, descending=True)
    rows = make("slice", (make("reshape", (rows,), shape=(4 * B * S,)),), axis=0, start=0, stop=S)
    flat = make("reshape", (x,), shape=(B * S, 37))
    ends = make(
        "concat", (constant(np.array([0, 1], np.int32)), *(size(n) for n in (B, B * S - B + 1))), axis=0
    )
    outputs = {
        "order": make("argsort", (steps,), count=37),
        "first": make("argsort", (steps,), count=5, descending=True),
        "grouped": make("grouped_matmul", (flat, f32(4, 37, 70), ends)),
        "product": make("prod", (steps,), axes=(2,)),
    }
    for reduce in ("none", "add", "max"):
        outputs[f"lines {reduce}"] = make("scatter", (x, places, steps), axis=2, reduce=reduce)
        outputs[f"rows {reduce}"] = make("scatter", (x, rows, steps), axis=1, reduce=reduce)
    bits = [make("bitand", (places, make("argsort", (x,), count=37)))]
    bits += [make(op, (places, bits[0])) for op in ("bitor", "bitxor")]
    outputs |= {node.op: node for node in bits}
    return Graph((x,), outputs, {"batch": (1, 4), "seq": (1, 80)})


def size(value: Any) -> Node:
    """A size as i32[1]."""
    return make("reshape", (make("cast", (make("dim", (), value=value),), dtype="i32"),), shape=(1,))


def optimised(graph: Graph, more: str = "") -> Graph:
    return Pipeline.parse(LEVELS[3] + more, PASSES).run(graph)[0]


def tied() -> Graph:
    """Tables that products have as well."""
    ids = input_("ids", "i64", (B, S, 1))
    index = make("reshape", (ids,), shape=(B, S))
    outputs: dict[str, Node] = {}
    for dtype, columns in (("f32", 20), ("f16", 33)):
        table = constant(RNG.normal(size=(11, columns)).astype(DTYPES[dtype]))
        rows = make("embedding", (table, index))
        outputs[dtype] = make("cast", (rows,), dtype="f32") if dtype == "f16" else rows
        outputs[f"{dtype} head"] = make("linear", (outputs[dtype], table))
    ones = constant(np.ones(20, np.float32))
    table = outputs["f32"].inputs[0]
    outputs["norm"] = make("embed_norm", (table, index, ones, ones), eps=1e-5, tables=1)
    return Graph((ids,), outputs, {"batch": (1, 4), "seq": (1, 80)})


def graphs() -> dict[str, tuple[Graph, dict[str, Any]]]:
    """name -> graph, inputs"""
    found = {}
    for build in (products, attentions, reductions, movement, windows, selections, tied):
        graph = build()
        for batch, seq in ((1, 1), (2, 5), (3, 66)):
            inputs = {}
            for node in graph.inputs:
                shape = (batch, seq, int(node.shape[2]))
                whole = node.dtype != "f32"
                inputs[node.attributes["name"]] = (
                    np.zeros(shape, np.int64) if whole else RNG.normal(size=shape).astype(np.float32)
                )
            found[f"{build.__name__}-{batch}x{seq}"] = (graph, inputs)
    for seed in range(6):
        for make_one in (random_encoder, random_graph):
            graph, inputs = make_one(seed)
            found[f"{make_one.__name__}-{seed}"] = (graph, inputs)
            found[f"{make_one.__name__}-{seed}-optimised"] = (optimised(graph), inputs)
        graph, inputs = random_encoder(seed)
        for mode in ("int8", "fp16"):
            text = f',quantize{{mode="{mode}",min_columns=1}},qfuse,cse'
            found[f"encoder-{seed}-{mode}"] = (optimised(graph, text), inputs)
    return found


GRAPHS = graphs()


@pytest.fixture(scope="module")
def lab(gpu_lab: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return gpu_lab.GpuLab(tmp_path_factory.mktemp("gpu"), [graph for graph, _ in GRAPHS.values()])


# int8: one activation that falls to the other side moves what follows; fp16: activations are rounded to half
TOLERANCES = {"int8": 2e-2, "fp16": 5e-3}


@pytest.mark.parametrize("name", GRAPHS)
def test_answers(lab: Any, name: str) -> None:
    graph, inputs = GRAPHS[name]
    results = lab.run(graph, inputs, infer_sizes(graph, inputs))
    limit = TOLERANCES.get(name.rpartition("-")[2], 2e-5)
    for output, expected in interpret.run(graph, inputs).items():
        value = results[output]
        assert value.shape == expected.shape
        if expected.dtype.kind != "f":
            assert np.array_equal(value, expected), output
            continue
        scale = max(1.0, float(np.abs(expected).max(initial=0)))
        assert np.abs(value - expected).max(initial=0) <= limit * scale, output


def integer_graph() -> Graph:
    """Rows, their scales and products with one fused step: what has the interpreter's bits."""
    x = input_("x", "f32", (B, 133))
    w = constant(RNG.integers(-127, 128, (70, 133)).astype(np.int8))
    scale = constant(RNG.uniform(0.001, 0.1, 70).astype(np.float32))
    rows, own = make("quantize_rows", (x,)), make("row_scale", (x,))
    static = make("quantize_rows", (x, constant(np.float32(0.03))), has_scale=True)
    outputs = {
        "rows": rows,
        "static": static,
        "scale": own,
        "levels": make("quantize", (x, own)),
        "values": make("dequantize", (make("quantize", (x, own)), own)),
        "floats": make("dequantize_rows", (rows,), size=133),
        "plain": make("qlinear", (rows, w, scale)),
        "bias": make("qlinear", (static, w, scale, f32(70)), epilogue=("bias",)),
    }
    return Graph((x,), outputs, {"batch": (1, 100)})


def integer_rows(batch: int) -> np.ndarray[Any, Any]:
    """An input of `integer_graph`, one row of it zeros."""
    value = RNG.normal(size=(batch, 133)).astype(np.float32)
    value[batch // 2] = 0
    return value


def test_integer_products_are_exact(gpu_lab: ModuleType, tmp_path: Path) -> None:
    graph = integer_graph()
    made = gpu_lab.GpuLab(tmp_path, [graph])
    for batch in (1, 7, 64, 65):
        inputs = {"x": integer_rows(batch)}
        results = made.run(graph, inputs, {"batch": batch})
        for name, expected in interpret.run(graph, inputs).items():
            assert np.array_equal(results[name], expected), (name, batch)
