"""Convolutions on int8 by `quantize` and `qfuse`: which, how far answers move, and what stays as it is."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Source
from llmc.compiler.interpret import run
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.errors import LlmcError
from llmc.passes import PASSES
from llmc.passes.quantise import QUANTISATIONS, Quantize

RNG = np.random.default_rng(2)  # of each test anew
B, H = symbol("batch"), symbol("height")
SAME = {"padding": (1, 1, 1, 1), "channels_last": True}


@pytest.fixture(autouse=True)
def drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """How near int8 comes is a matter of the numbers: they are the same whatever ran before."""
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(2))


def weights(*shape: int) -> Any:
    return constant((RNG.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32), f"w{shape[0]}")


def network(height: Any = 6) -> Graph:
    """A stem of three channels, a convolution of groups with a residual, one by channel."""
    x = input_("x", "f32", (B, height, 5, 3))
    stem = make("conv2d", (x, weights(32, 3, 3, 3)), Source("stem"), **SAME)
    inner = make(
        "conv2d",
        (stem, weights(32, 16, 3, 3), constant(np.ones(32, np.float32)), stem),
        Source("inner"),
        **SAME,
        groups=2,
        epilogue=("bias", "residual", "relu"),
    )
    y = make("conv2d", (inner, weights(32, 1, 3, 3)), Source("depthwise"), **SAME, groups=32)
    return Graph((x,), {"y": y}, {"batch": (1, 8)} | ({} if height == 6 else {"height": (3, 99)}))


def after(graph: Graph, text: str = QUANTISATIONS["int8"]) -> tuple[Graph, Counter[str], str]:
    changed, report = Pipeline.parse(text, PASSES).run(graph)
    told = "; ".join(str(e) for r in report.runs for e in r.effects)
    return changed, Counter(n.op for n in changed.nodes), told


def test_what_is_quantised() -> None:
    """A stem's sums are too short, and one by channel gains nothing."""
    _, ops, told = after(network())
    assert (ops["qconv2d"], ops["conv2d"], ops["row_scale"]) == (1, 2, 1)
    assert told.startswith("1 of 3 weights; left: ")
    assert "1 of convolutions by channel" in told
    assert "1 of convolutions with fewer than 64 products to a sum" in told


@pytest.mark.parametrize(
    "text", [QUANTISATIONS["int8"], 'quantize{mode="int8-static",scales=[0.03]},qfuse,cse']
)
def test_answers_stay_near(text: str) -> None:
    """Each image has its own scale, or all have the one that calibration found."""
    graph = network()
    x = {"x": RNG.normal(size=(2, 6, 5, 3)).astype(np.float32) * np.float32([[[[1]]], [[[0.5]]]])}
    written, fused = (run(after(graph, part)[0], x)["y"] for part in (text.rsplit(",qfuse")[0], text))
    expected = run(graph, x)["y"]
    assert 0 < np.abs(fused - expected).max() <= 0.03 * np.abs(expected).max()
    assert np.abs(fused - written).max() <= 1e-5 * np.abs(expected).max()
    if "static" not in text:
        alone = run(after(graph, text)[0], {"x": x["x"][1:]})["y"]
        np.testing.assert_array_equal(alone, fused[1:])


@pytest.mark.parametrize(
    "text", [QUANTISATIONS["fp16"], 'quantize{skip=["inner"]}', "quantize{min_columns=17}"]
)
def test_untouched(text: str) -> None:
    graph = network()
    assert after(graph, text)[0] is graph


def test_images_of_dynamic_size_need_a_scale_that_is_known() -> None:
    graph = network(H)
    assert after(graph)[0] is graph
    assert len(Quantize(mode="int8-static").sites(graph)) == 1
    assert after(graph, 'quantize{mode="int8-static",scales=[0.03]},qfuse')[1]["qconv2d"] == 1


def test_a_convolution_has_one_scale_for_all() -> None:
    with pytest.raises(LlmcError, match="a scale of 0 is for products alone"):
        after(network(), 'quantize{mode="int8-static",scales=[0]}')


def narrowing(also: bool = False) -> Graph:
    """A convolution by channel and a product by pixel; it may be read elsewhere too."""
    x = input_("x", "f32", (B, 6, 5, 32))
    y = make("conv2d", (x, weights(32, 1, 3, 3)), Source("depthwise"), **SAME, groups=32, epilogue=("relu6",))
    outputs = {"y": make("linear", (y, weights(48, 32)), Source("project"))} | ({"also": y} if also else {})
    return Graph((x,), outputs, {"batch": (1, 8)})


def test_pixels_of_a_convolution_by_channel_are_rounded_as_they_are_made() -> None:
    graph = narrowing()
    changed, ops, _ = after(graph)
    assert (ops["channel_rows"], ops["conv2d"], ops["quantize_rows"], ops["qlinear"]) == (1, 0, 0, 1)
    x = {"x": RNG.normal(size=(2, 6, 5, 32)).astype(np.float32)}
    apart = run(after(graph, QUANTISATIONS["int8"].replace("qfuse", "cse"))[0], x)["y"]
    np.testing.assert_allclose(run(changed, x)["y"], apart, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("graph", "text"),
    [
        (narrowing(also=True), QUANTISATIONS["int8"]),
        (narrowing(), 'quantize{mode="int8-static",scales=[0.05]},qfuse,cse'),
    ],
    ids=["read elsewhere", "a scale that is known"],
)
def test_a_convolution_by_channel_stays_apart(graph: Graph, text: str) -> None:
    ops = after(graph, text)[1]
    assert (ops["channel_rows"], ops["conv2d"], ops["quantize_rows"]) == (0, 1, 1)
