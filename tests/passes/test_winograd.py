"""`winograd`: which convolutions are computed by tiles, which are not and why, and who leaves them out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmc.compiler.dims import symbol
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.interpret import run
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.rewrite import recording
from llmc.errors import LlmcError
from llmc.optimise import optimise
from llmc.options import Options, Order
from llmc.passes import PASSES
from llmc.passes.layout.winograd import Winograd, winograd_steps
from llmc.report import Stages

B, H, W = symbol("batch"), symbol("height"), symbol("width")
RNG = np.random.default_rng(0)
SAME = {"padding": (1, 1, 1, 1), "channels_last": True}


def weight(*shape: int) -> Node:
    return constant((RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32))


def conv(x: Node, o: int = 8, kernel: int = 3, path: str = "", **more: Any) -> Node:
    c = int(x.shape[3]) // more.get("groups", 1)
    return make("conv2d", (x, weight(o, c, kernel, kernel)), Source(path), **{**SAME, **more})


def image(height: Any = 6, width: Any = 6, channels: int = 8) -> Node:
    return input_("x", "f32", (B, height, width, channels))


def network() -> Graph:
    """A stem that steps, a block with bias and residual, a classifier."""
    x = input_("x", "f32", (B, 17, 13, 3))
    stem = conv(x, 16, path="stem", stride=(2, 2))
    a = make(
        "conv2d", (stem, weight(16, 16, 3, 3), weight(16)), Source("a"), **SAME, epilogue=("bias", "relu")
    )
    inputs = (a, weight(16, 16, 3, 3), weight(16), stem)
    b = make("conv2d", inputs, Source("b"), **SAME, epilogue=("bias", "residual", "relu"))
    return Graph((x,), {"y": make("mean", (b,), axes=(1, 2))}, {"batch": (1, 4)})


def by_tiles(graph: Graph) -> list[str]:
    return [n.source.path for n in graph.nodes if n.op == "conv2d" and n.attributes["winograd"]]


def test_a_network(golden: Any, same_output: Any) -> None:
    inputs = {"x": RNG.standard_normal((2, 17, 13, 3)).astype(np.float32)}
    after = same_output(Winograd(), network(), inputs)
    golden(after)
    assert by_tiles(after) == ["a", "b"]
    assert Winograd().run(after) is after


STAY = {
    "fewer than 8 channels": lambda: conv(image(channels=7)),
    "fewer than 8 channels, of the result": lambda: conv(image(), 7),
    "more than 1024 channels": lambda: conv(image(channels=1025)),
    "fewer than 36 pixels": lambda: conv(image(5, 7)),
    "tiles reach too far beyond the image": lambda: conv(image(1, 100)),
    "tiles reach too far beyond the image, whatever its width": lambda: conv(image(1, W)),
    "the weight is no constant of float32": lambda: make(
        "conv2d", (image(), make("neg", (weight(8, 8, 3, 3),))), **SAME
    ),
    "the weight has values that are too large": lambda: make(
        "conv2d", (image(), constant(np.full((8, 8, 3, 3), np.inf, np.float32))), **SAME
    ),
}


@pytest.mark.parametrize("why", STAY)
def test_what_stays_says_why(why: str) -> None:
    node = STAY[why]()
    graph = Graph((node.inputs[0],), {"y": node}, {"batch": (1, 4)})
    with recording() as journal:
        assert Winograd().run(graph) is graph
    assert [e.reason for e in journal.declined] == [why.partition(", ")[0]]


OTHERS = {
    "steps": {"stride": (1, 2)},
    "dilated": {"dilation": (2, 1)},
    "groups": {"groups": 2},
    "one tap": {"kernel": 1},
    "five taps": {"kernel": 5},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_convolutions_stay(name: str) -> None:
    graph = Graph((image(9, 9, 16),), {"y": conv(image(9, 9, 16), 16, **OTHERS[name])}, {"batch": (1, 4)})
    assert Winograd().run(graph) is graph
    assert not winograd_steps(graph).steps


def test_channels_first_stay() -> None:
    x = input_("x", "f32", (B, 8, 9, 9))
    graph = Graph((x,), {"y": make("conv2d", (x, weight(8, 8, 3, 3)))}, {"batch": (1, 4)})
    assert Winograd().run(graph) is graph


@pytest.mark.parametrize("size", [(6, 6), (H, 6), (4, W), (H, W), (7, 7)])
def test_images_of_these_sizes_change(size: Any) -> None:
    x = image(*size)
    graph = Graph((x,), {"y": conv(x, path="y")}, {"batch": (1, 4), "height": (1, 99), "width": (1, 99)})
    assert by_tiles(Winograd().run(graph)) == ["y"]


def test_options() -> None:
    graph = network()
    assert by_tiles(Pipeline.parse('winograd{skip=["a"]}', PASSES).run(graph)[0]) == ["b"]
    assert Pipeline.parse('winograd{skip=["*"]}', PASSES).run(graph)[0] is graph
    assert Winograd(min_channels=17).run(graph) is Winograd(min_pixels=64).run(graph) is graph
    for wrong in ("min_channels=0", "min_pixels=-1"):
        with pytest.raises(LlmcError, match=f"winograd: {wrong.partition('=')[0]} must be positive"):
            Pipeline.parse(f"winograd{{{wrong}}}", PASSES)


def first(x: Node, path: str) -> Node:
    """A convolution as models have it."""
    return make("conv2d", (x, weight(16, int(x.shape[1]), 3, 3)), Source(path), padding=(1, 1, 1, 1))


def optimised(**options: Any) -> tuple[Graph, str]:
    """What a compile makes of a model with channels first."""
    x = input_("x", "f32", (B, 16, 8, 8))
    graph = Graph((x,), {"y": first(make("relu", (first(x, "a"),)), "b")}, {"batch": (1, 4)})
    imported = Imported(graph, "m", "graph", "", "", (), None, None)
    order = Order("m.llmc", None, Options(**{"target": "x86-avx2", **options}))
    made = optimise(imported, order, Stages(None), lambda *a, **b: pytest.fail("no native code is needed"))
    (graph,) = made.module.functions.values()
    return graph, made.pipeline


def test_a_compile_for_processors_has_it() -> None:
    for options in ({}, {"level": 2}, {"target": "arm"}, {"quant": "fp16", "allow_noop": True}):
        graph, pipeline = optimised(**options)
        assert by_tiles(graph) == ["a", "b"], options
        assert pipeline.endswith(",winograd"), options


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"add_passes": 'winograd{skip=["a"]}@layout'}, ["b"]),
        ({"add_passes": 'winograd{skip=["*"]}@layout'}, []),
        ({"level": 1}, []),
        ({"only_passes": "simplify"}, []),
        ({"target": "cuda"}, []),
        ({"quant": "int8"}, []),
    ],
)
def test_who_leaves_it_out(options: Any, left: list[str]) -> None:
    graph, pipeline = optimised(**options)
    assert by_tiles(graph) == left
    assert not pipeline.endswith(",winograd")
    if options.get("quant"):
        assert [n.op for n in graph.nodes if "conv2d" in n.op] == ["qconv2d", "qconv2d"]


def test_levels_after_it_are_integers_all_the_same() -> None:
    """Passes that users put behind it find a plain convolution in it."""
    graph = Winograd().run(network())
    after, _ = Pipeline.parse("quantize,qfuse", PASSES).run(graph)
    assert sum(n.op == "qconv2d" for n in after.nodes) == 2
    inputs = {"x": RNG.standard_normal((2, 17, 13, 3)).astype(np.float32)}
    np.testing.assert_allclose(run(after, inputs)["y"], run(graph, inputs)["y"], atol=0.05)
