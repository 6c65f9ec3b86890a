"""`quantize` and `qfuse`: golden graphs, what stays float, how far answers move, and their mistakes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from random_encoders import Encoder

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Source, Weight
from llmc.compiler.interpret import run
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES
from llmc.passes.quantise import ATTENTION, QUANTISATIONS, Qfuse, Quantize

RNG = np.random.default_rng(11)
B = symbol("batch")
FUSED = Pipeline.parse(LEVELS[3], PASSES)


def weights(*shape: int) -> Weight:
    return Weight((RNG.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32), f"w{shape[0]}")


def network(rows: int = 900) -> Graph:
    """Two products of the same tokens, a residual, a small head; the table is read by its first product too."""
    ids = input_("ids", "i64", (B, 4), low=0, high=rows - 1)
    table = constant(weights(rows, 20))
    x = make("embedding", (table, ids), Source("embed"))
    a = make(
        "linear",
        (x, constant(weights(32, 20)), constant(weights(32))),
        Source("a"),
        epilogue=("bias", "gelu"),
    )
    b = make("linear", (x, constant(weights(32, 20)), a), Source("b"), epilogue=("residual",))
    tied = make("linear", (make("slice", (b,), axis=2, start=0, stop=20), table), Source("tied"))
    head = make("linear", (b, constant(weights(2, 32))), Source("head"))
    return Graph((ids,), {"tied": tied, "head": head}, {"batch": (1, 8)})


IDS = {"ids": np.array([[3, 1, 4, 1], [5, 9, 2, 6]])}


def count(graph: Graph) -> Counter[str]:
    return Counter(n.op for n in graph.nodes if n.op not in ("input", "constant"))


def quantised(graph: Graph, text: str = QUANTISATIONS["int8"]) -> Graph:
    after, _ = Pipeline.parse(text, PASSES).run(graph)
    return after


TEXTS = {
    "written": "quantize",
    "int8": f"{QUANTISATIONS['int8']},{ATTENTION}",
    "fp16": QUANTISATIONS["fp16"],
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=list(TEXTS))
def test_graphs(golden: Any, text: str) -> None:
    """Written out, and fused; the weights' digests show that the same bytes come out each time."""
    graph = Encoder(5, linear="whole", norm="post", sum="ab", attention="explicit", activation="gelu",
                    positions="buffer", scale="div", bias="no", mask="fill").graph()  # fmt: skip
    golden(quantised(FUSED.run(graph)[0], text))


def test_what_is_quantised() -> None:
    graph = network()
    written = count(quantised(graph, "quantize"))
    assert (written["row_scale"], written["quantize"]) == (2, 2)  # one for the two products that share x
    fused = count(quantised(graph))
    assert (fused["qlinear"], fused["linear"]) == (3, 1)  # the head of two columns stays
    assert (fused["quantize_rows"], fused["dequantize_rows"]) == (2, 1)
    assert not fused.keys() & {"quantize", "dequantize", "row_scale"}


@pytest.mark.parametrize("reader", ["int8", "also float", "also an output"])
def test_gelu_that_is_rounded_next(reader: str) -> None:
    """It needs no more than int8's accuracy where nothing else reads it."""
    x = input_("x", "f32", (B, 24))
    first, second = constant(weights(32, 24)), constant(weights(20, 32))
    inner = make("linear", (x, first), Source("inner"), epilogue=("gelu",))
    extra = (inner,) if reader == "also float" else ()
    outer = make("linear", (inner, second if not extra else constant(weights(32, 32)), *extra), Source("outer"),
                 epilogue=("residual",) * len(extra))  # fmt: skip
    outputs = {"y": outer} | ({"inner": inner} if reader == "also an output" else {})
    graph = Graph((x,), outputs, {"batch": (1, 8)})
    step = "gelu_poly" if reader == "int8" else "gelu"
    for text in ("quantize", QUANTISATIONS["int8"], 'quantize{mode="int8-static",scales=[0.02,0.02]}'):
        steps = [n.attributes["epilogue"] for n in quantised(graph, text).nodes if n.source.path == "inner"
                 and "epilogue" in n.attributes]  # fmt: skip
        assert steps == [(step,)], text
    assert "gelu_poly" not in str(quantised(graph, QUANTISATIONS["fp16"]))


def heads(op: str = "mha", **attributes: Any) -> Graph:
    """One attention."""
    more = (input_("bias", "f32", (1, 1, 1, 5)),) if attributes.get("has_bias") else ()
    size = 2 * attributes.get("head_dim", 16)
    x = input_("x", "f32", (B, 5, size))
    given = {"heads": 2, "head_dim": 16, "scale": 0.25} | attributes
    return Graph((x, *more), {"y": make(op, (x, x, x, *more), Source("layer.0"), **given)}, {"batch": (1, 8)})


def test_attention_on_int8() -> None:
    after = quantised(heads(), ATTENTION)
    assert [n.attributes["int8"] for n in after.nodes if n.op == "mha"] == [True]
    assert quantised(after, ATTENTION) == after
    x = {"x": RNG.normal(size=(2, 5, 32)).astype(np.float32)}
    expected, found = run(heads(), x)["y"], run(after, x)["y"]
    assert 0 < np.abs(found - expected).max() <= 0.02 * np.abs(expected).max()


LEFT_IN_FLOAT: list[dict[str, Any]] = [
    {"causal": True},
    {"has_bias": True},
    {"head_dim": 8},
    {"head_dim": 144},
    {"scale": -0.5},
]


@pytest.mark.parametrize("attributes", LEFT_IN_FLOAT, ids=str)
def test_attention_that_stays_float(attributes: dict[str, Any]) -> None:
    graph = heads(**attributes)
    assert not any(n.attributes.get("int8") for n in quantised(graph, ATTENTION).nodes)
    plain = {k: v for k, v in graph.outputs["y"].attributes.items() if k != "int8"}
    with pytest.raises(LlmcError, match="int8 is for attention"):
        make("mha", graph.outputs["y"].inputs, **plain, int8=True)


def test_attention_may_be_skipped() -> None:
    graph = heads()
    assert quantised(graph, 'qattention{skip=["layer.*"]}') == graph
    assert quantised(graph, 'qattention{skip=["other"]}') != graph


def test_answers_stay_near() -> None:
    graph = network()
    expected = run(graph, IDS)
    for text, limit in ((QUANTISATIONS["int8"], 0.03), (QUANTISATIONS["fp16"], 2e-3)):
        written, fused = run(quantised(graph, text.split(",")[0]), IDS), run(quantised(graph, text), IDS)
        for name, value in expected.items():
            scale = np.abs(value).max()
            assert 0 < np.abs(written[name] - value).max() <= limit * scale
            assert np.abs(fused[name] - written[name]).max() <= 1e-5 * scale + (limit / 20) * scale


def test_fp16_halves_weights() -> None:
    fused = quantised(network(), QUANTISATIONS["fp16"])
    assert {n.inputs[1].dtype for n in fused.nodes if n.op == "linear"} == {"f16", "f32"}
    assert [n.inputs[0].dtype for n in fused.nodes if n.op == "embedding"] == ["f16"]


def test_large_weights_stay_float() -> None:
    """Half precision would make them infinite."""
    x = input_("x", "f32", (B, 20))
    w = weights(32, 20).array.copy()
    w[3, 4] = 7e4
    graph = Graph((x,), {"y": make("linear", (x, constant(w)))}, {"batch": (1, 8)})
    assert quantised(graph, 'quantize{mode="fp16"}') is graph


def test_untouched() -> None:
    x = input_("x", "f32", (B, 20))
    small = Graph((x,), {"y": make("linear", (x, constant(weights(8, 20))))}, {"batch": (1, 8)})
    assert quantised(small) is small
    assert quantised(small, "quantize{min_columns=8}") is not small


def test_skip() -> None:
    fused = count(quantised(network(), 'quantize{skip=["a","e*"]},qfuse'))
    assert (fused["qlinear"], fused["linear"], fused["dequantize_rows"]) == (2, 2, 0)


def test_folding_does_not_undo_it() -> None:
    graph = quantised(network(), "quantize")
    after, _ = Pipeline.parse("fold", PASSES).run(graph)
    assert after is graph


def test_a_scale_of_0_is_found_as_it_comes() -> None:
    graph = network()
    fused = quantised(graph, 'quantize{mode="int8-static",scales=[0.02,0]},qfuse,cse')
    rows = [n for n in fused.nodes if n.op == "quantize_rows"]
    assert sorted(n.attributes["has_scale"] for n in rows) == [False, True]


def test_static_scales_in_order() -> None:
    graph = network()
    assert len(Quantize(mode="int8-static").sites(graph)) == 2
    fused = quantised(graph, 'quantize{mode="int8-static",scales=[0.02,0.03]},qfuse,cse')
    rows = [n for n in fused.nodes if n.op == "quantize_rows"]
    assert [n.inputs[1].attributes["value"].array.item() for n in rows] == [
        np.float32(0.02),
        np.float32(0.03),
    ]
    for name, value in run(graph, IDS).items():
        assert np.abs(run(fused, IDS)[name] - value).max() <= 0.1 * np.abs(value).max()


def test_declines_say_why() -> None:
    x, s, t = input_("x", "f32", (B, 20)), input_("s", "f32", ()), input_("t", "f32", (B, 1))
    wd = make("dequantize", (constant(np.ones((16, 20), np.int8)), constant(np.ones((16, 1), np.float32))))
    other = make("dequantize", (make("quantize", (x, s)), t))
    rows = make("dequantize", (make("quantize", (x, t)), t))
    for activation, reason in (
        (other, "not quantised by the scale"),
        (rows, "neither its row's nor one number"),
    ):
        graph = Graph((x, s, t), {"y": make("linear", (activation, wd))}, {"batch": (1, 8)})
        after, report = Pipeline.of(Qfuse()).run(graph)
        assert after is graph
        assert any(reason in event.reason for event in report.runs[0].declined)


MISTAKES = {
    'quantize{mode="int4"}': "no mode 'int4'",
    "quantize{min_columns=0}": "must be positive",
    "quantize{scales=[0.1]}": "scales are for mode int8-static",
    'quantize{mode="int8-static",scales=[-1.0]}': "not a positive number",
    'quantize{mode="int8-static",scales=[0.1]}': "1 scales are given for 2 inputs",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes(text: str) -> None:
    with pytest.raises(LlmcError, match=MISTAKES[text]):
        quantised(network(), text)


def test_a_weight_that_is_not_finite_is_named() -> None:
    values = weights(32, 20).array.copy()
    values[3, 3] = np.nan
    w = Weight(values, "w32")
    x = input_("x", "f32", (B, 20))
    with pytest.raises(LlmcError, match="not finite") as caught:
        quantised(Graph((x,), {"y": make("linear", (x, constant(w)))}, {"batch": (1, 8)}))
    assert "w32" in str(caught.value)


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs(seed: int, random_graph: Any) -> None:
    """Every product quantised, down to the smallest: the fused graph is the written one but for rounding."""
    graph, inputs = random_graph(seed)
    written = quantised(graph, "quantize{min_columns=1}")
    fused = quantised(written, "qfuse,cse")
    assert not any(n.op == "linear" for n in fused.nodes)
    a, b = run(written, inputs), run(fused, inputs)
    for name, value in a.items():
        # a value between two levels may fall to either side
        assert np.mean(np.abs(b[name] - value)) <= 2e-3 * max(1.0, np.abs(value).max())
