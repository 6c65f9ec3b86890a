"""Whole graphs go out as ONNX and come in again; `python bench/onnx_output.py` tries many more, in ONNX Runtime too."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from random_encoders import random_encoder
from random_graphs import random_graph
from random_loops import random_loop, random_values
from stateful_graphs import BATCH, causal, encoder_decoder, random_stateful
from written_onnx import again, referenced, want_round_trip, want_same, written

from llmc.compiler import interpret
from llmc.compiler.dims import dim, symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS, constant, input_, make
from llmc.compiler.ops.rows import row_stride
from llmc.compiler.ops.storage import pack_indices
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.samples import play
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES
from llmc.passes.rows.ragged import ragged_steps

Array = np.ndarray


@pytest.mark.parametrize("seed", range(12))
def test_a_random_graph_comes_in_again(seed: int, tmp_path: Path) -> None:
    graph, inputs = random_graph(seed)
    back = want_round_trip(graph, inputs, tmp_path / "m.onnx")
    assert back.dims == graph.dims


@pytest.mark.parametrize("seed", range(8))
def test_loops_and_branches(seed: int, tmp_path: Path) -> None:
    graph = random_loop(seed)
    want_round_trip(graph, random_values(graph, 2, 5), tmp_path / "m.onnx", rtol=0, atol=0)


@cache
def optimised(seed: int) -> tuple[Graph, dict[str, Array]]:
    """An encoder after -O3, on rows of tokens where it can be."""
    graph, inputs = random_encoder(seed)
    graph, _ = Pipeline.parse(LEVELS[3], PASSES).run(graph)
    return ragged_steps(graph, blank=True).run(graph)[0], inputs


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_rows_of_tokens_become_all_rows(seed: int, tmp_path: Path) -> None:
    graph, inputs = optimised(seed)
    back = want_round_trip(graph, inputs, tmp_path / "m.onnx")
    assert "tokens" not in back.dims


@pytest.mark.parametrize(
    "passes",
    [
        "quantize,qfuse,cse",
        "quantize,qfuse,cse,qattention",
        'quantize{mode="fp16"},qfuse,cse',
        "split,cse",
        "blockwise{table_block=8},cse",
        "blockwise{bits=4,block=4},cse",
        "blockwise{table_block=16},int16,cse",
        "blockwise{bits=4,block=16},int16,cse",
        "blockwise{bits=4,block=16,zeros=true},int16,cse",
        "blockwise{block=16,zeros=true},cse",
    ],
)
def test_quantised(passes: str, tmp_path: Path) -> None:
    """The arithmetic is the same; where a sum lies between two whole numbers the order of its terms decides."""
    graph, inputs = optimised(3)
    graph, _ = Pipeline.parse(passes, PASSES).run(graph)
    close = 2e-2 if passes.startswith("quantize,") else 2e-5
    want_round_trip(graph, inputs, tmp_path / "m.onnx", rtol=close, atol=close)


@pytest.mark.parametrize("columns", [5, 8])
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_of_a_table_of_few_values(bits: int, columns: int, tmp_path: Path) -> None:
    """What is looked up is found among the values: the table itself is not written out."""
    rng = np.random.default_rng(bits)
    indices = constant(pack_indices(rng.integers(0, 16, (7, columns)).astype(np.uint8), bits), "table")
    ids, values = input_("ids", "i64", (BATCH, 3), low=0, high=6), constant(floats(rng, 16))
    rows = make("codebook", (make("embedding", (indices, ids)), values), columns=columns, bits=bits)
    graph = Graph((ids,), {"y": rows}, {"batch": (1, 8)})
    want_round_trip(graph, {"ids": rng.integers(0, 7, (2, 3))}, tmp_path / "m.onnx", rtol=0, atol=0)


def kept(dtype: str, size: int) -> Graph:
    """Attention over keys and values that a session keeps in fewer bits."""
    q = input_("q", "f32", (1, symbol("seq"), 16))
    k, v = (input_(name, dtype, (1, symbol("past"), size)) for name in "kv")
    y = make("mha", (q, k, v), heads=2, head_dim=8, scale=0.3, offsets=(0, 0, 0), causal=False)
    return Graph((q, k, v), {"y": y}, {"seq": (1, 8), "past": (1, 8)})


def test_keys_and_values_that_are_kept_as_halves(tmp_path: Path) -> None:
    graph, rng = kept("f16", 16), np.random.default_rng(1)
    given = {"q": floats(rng, 1, 3, 16)} | {n: floats(rng, 1, 5, 16).astype(np.float16) for n in "kv"}
    written(graph, tmp_path / "m.onnx")
    want_same(referenced(tmp_path / "m.onnx", given), interpret.run(graph, given))


def test_keys_and_values_that_are_kept_on_int8(tmp_path: Path) -> None:
    graph = kept("u8", 2 * row_stride(8))
    with pytest.raises(LlmcError, match="cannot be said in ONNX") as caught:
        written(graph, tmp_path / "m.onnx")
    assert "states{dtype=fp16}" in str(caught.value.found)


def floats(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def test_levels_are_those_of_the_kernels(tmp_path: Path) -> None:
    """A file of a model on int8 has the kernels' float steps: not one level is another's, so the bits are the same."""
    rng = np.random.default_rng(0)

    def floats(*shape: int) -> Node:
        return constant((rng.standard_normal(shape) + 0.1).astype(np.float32))

    def product(x: Node, n: int, extras: list[Node], *steps: str) -> Node:
        weight = constant(rng.integers(-127, 128, (n, int(x.shape[-1]))).astype(np.int8))
        scale = constant(rng.uniform(1e-3, 2e-3, n).astype(np.float32))
        return make("qlinear", (make("quantize_rows", (x,)), weight, scale, *extras), epilogue=steps)

    n = 40  # not a multiple of the lanes
    ids = input_("ids", "i64", (3, symbol("seq")), low=0, high=6)
    rows = OPS["quantize_rows"].reference(rng.standard_normal((7, n)).astype(np.float32), **_TABLE)
    pairs = (floats(7, n), ids, constant(rows), ids)
    x = make("embed_norm", (*pairs, floats(n), floats(n)), eps=1e-12, tables=2)
    inside = product(x, 33, [floats(33)], "bias", "gelu_poly")
    y = make(
        "layer_norm", (product(inside, n, [floats(n), x], "bias", "residual"), floats(n), floats(n)), eps=1e-5
    )
    z = make("rms_norm", (product(y, n, []), floats(n)), eps=1e-6)
    graph = Graph(
        (ids,), {"y": y, "z": make("add_norm", (z, y, floats(n), floats(n)), eps=1e-5)}, {"seq": (1, 99)}
    )
    inputs = {"ids": rng.integers(0, 7, (3, 70))}
    written(graph, tmp_path / "m.onnx")
    want_same(referenced(tmp_path / "m.onnx", inputs), interpret.run(graph, inputs), rtol=0, atol=0)


_TABLE = {"has_scale": False, "has_zero": False, "table": True}


@pytest.mark.parametrize("length", [64, 65, 150])
def test_int8_attention_has_the_kernels_bits(length: int, tmp_path: Path) -> None:
    """Of one block of keys and of several, of which the last is not full, some keys are left out."""
    rng = np.random.default_rng(length)
    x, keys = input_("x", "f32", (2, length, 48)), input_("keys", "bool", (2, length))
    options = {"heads": 1, "head_dim": 16, "scale": 0.25, "offsets": (0, 16, 32), "int8": True}
    node = make("mha", (x, x, x, keys), has_keys=True, **options)
    inputs = {
        "x": (3 * rng.standard_normal((2, length, 48))).astype(np.float32),
        "keys": rng.random((2, length)) < 0.8,
    }
    graph = Graph((x, keys), {"y": node})
    written(graph, tmp_path / "m.onnx")
    found = referenced(tmp_path / "m.onnx", inputs)["y"]
    np.testing.assert_array_equal(found, interpret.run(graph, inputs)["y"])


@pytest.mark.parametrize("seed", range(3))
def test_states_are_states_again(seed: int, tmp_path: Path) -> None:
    graph, session = random_stateful(seed)
    written(graph, tmp_path / "m.onnx")
    back = again(tmp_path / "m.onnx")
    want_same(play(back, session), play(graph, session))


def test_names_of_states_and_of_their_sizes(tmp_path: Path) -> None:
    graph = causal(BATCH)
    model = written(graph, tmp_path / "m.onnx").graph
    assert [i.name for i in model.input] == ["x", "past.keys", "past.values"]
    assert [o.name for o in model.output] == ["y", "present.keys", "present.values"]
    texts = [[d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim] for o in model.output]
    assert texts[1] == ["batch", 2, "past + seq", 16]
    back = again(tmp_path / "m.onnx")
    assert [str(n.type) for n in back.states] == [str(n.type) for n in graph.states]
    assert back.dims == graph.dims
    step = encoder_decoder().functions["step"]
    assert [i.name for i in written(step, tmp_path / "m.onnx").graph.input][-1] == "past.cross_values"


def test_sizes_are_computed(tmp_path: Path) -> None:
    """Sums, quotients toward minus infinity, limits: as axes and as numbers."""
    n, m = symbol("n"), symbol("m")
    x, y = input_("x", "f32", (n, m)), input_("y", "f32", (dim(2 * n + m),))
    half = dim((n + m) // 2)
    lower = dim((3 * m - 9) // 4)  # below 0 where m is 1
    outputs = {
        "half": make("iota", (), length=half),
        "lower": make("dim", (), value=lower),
        "flat": make("reshape", (x,), shape=(dim(n * m),)),
        "wide": make("expand", (constant(np.float32(2)),), shape=(half, m)),
        "part": make("slice", (y,), axis=0, start=n, stop=dim(2 * n)),
    }
    graph = Graph((x, y), outputs, {"n": (1, 9), "m": (1, 9)})
    written(graph, tmp_path / "m.onnx")
    back = again(tmp_path / "m.onnx")
    for rows, columns in ((1, 1), (3, 2), (2, 7)):
        inputs = {
            "x": np.ones((rows, columns), np.float32),
            "y": np.arange(2 * rows + columns, dtype=np.float32),
        }
        want_same(interpret.run(back, inputs), interpret.run(graph, inputs))


def test_groups_of_heads_a_window_and_queries_without_keys(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"q": (2, 4, 3, 8), "k": (2, 2, 5, 8), "v": (2, 2, 5, 6)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    keep = rng.random((2, 1, 3, 5)) < 0.5
    keep[0, 0, 1] = False
    inputs = (*(input_(n, "f32", a.shape) for n, a in arrays.items()), input_("keep", "bool", keep.shape))
    y = make("attention", inputs, scale=0.3, causal=True, window=2, has_mask=True)
    graph = Graph(inputs, {"y": y})
    assert not interpret.run(graph, {**arrays, "keep": keep})["y"][0, :, 1].any()
    want_round_trip(graph, {**arrays, "keep": keep}, tmp_path / "m.onnx")


def test_images_with_channels_last(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x = input_("x", "f32", (symbol("batch"), 8, 9, 4))
    w, bias = (constant(rng.normal(size=s).astype(np.float32)) for s in ((6, 4, 3, 3), (6,)))
    y = make("conv2d", (x, w, bias), padding=(1, 1, 1, 1), epilogue=("bias", "relu6"), channels_last=True)
    z = make(
        "conv2d", (x, w, y, bias), padding=(1, 1, 1, 1), epilogue=("residual", "bias"), channels_last=True
    )
    pooled = [
        make(op, (z,), kernel=(2, 2), stride=(2, 1), channels_last=True)
        for op in ("max_pool2d", "avg_pool2d")
    ]
    graph = Graph((x,), {"max": pooled[0], "avg": pooled[1]}, {"batch": (1, 4)})
    inputs = {"x": rng.normal(size=(2, 8, 9, 4)).astype(np.float32)}
    want_round_trip(graph, inputs, tmp_path / "m.onnx")


def test_int8_attention_rounds_as_by_blocks(tmp_path: Path) -> None:
    """Of more keys than a block has, the largest scores not in the first."""
    rng = np.random.default_rng(2)
    length = 150
    x = input_("x", "f32", (1, symbol("seq"), 32))
    keys = input_("keys", "bool", (1, symbol("seq")))
    y = make("mha", (x, x, x, keys), heads=2, head_dim=16, scale=0.25, has_keys=True, int8=True)
    graph = Graph((x, keys), {"y": y}, {"seq": (1, 512)})
    values = rng.normal(size=(1, length, 32)).astype(np.float32) * np.linspace(0.5, 2, length)[:, None]
    inputs = {"x": values.astype(np.float32), "keys": rng.random((1, length)) < 0.9}
    want_round_trip(graph, inputs, tmp_path / "m.onnx", rtol=1e-4, atol=1e-4)


def test_experts(tmp_path: Path) -> None:
    """Ends that fall count as none."""
    rng = np.random.default_rng(3)
    x, ends = input_("x", "f32", (symbol("rows"), 4)), input_("ends", "i64", (3,))
    w = constant(rng.normal(size=(3, 4, 5)).astype(np.float32))
    graph = Graph((x, ends), {"y": make("grouped_matmul", (x, w, ends))}, {"rows": (1, 9)})
    for stops in ([2, 1, 5], [0, 6, 6], [9, 9, 9]):
        inputs = {"x": rng.normal(size=(7, 4)).astype(np.float32), "ends": np.array(stops)}
        want_round_trip(graph, inputs, tmp_path / "m.onnx")
