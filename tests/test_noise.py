"""Which values of two graphs are one (`align.counterparts`), and the noise between them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from random_graphs import random_graph, random_inputs
from stateful_graphs import accumulator, causal, encoder_decoder, normal, weights

from llmc.compiler.align import counterparts, weak_shape
from llmc.compiler.dims import Dim, symbol
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.noise import Noise, Ratio
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.passes import LEVEL_PARTS, PASSES

BATCH, SEQ = symbol("batch"), symbol("seq")
X = np.ones((1, 3, 32), np.float32)


def ratio(*pairs: tuple[list[float], list[float]]) -> Ratio:
    found = Ratio()
    for a, b in pairs:
        found.add(np.float32(a), np.float32(b))
    return found


def test_signal_to_noise_is_of_all_samples() -> None:
    assert ratio(([3, 4], [3, 5])).db == pytest.approx(10 * math.log10(25))
    both = ratio(([3, 4], [3, 5]), ([10, 0], [8, 0]))
    assert both.db == pytest.approx(10 * math.log10(125 / 5)), "not the mean of two ratios"
    assert both.largest == 2


def test_without_noise_or_signal() -> None:
    assert ratio(([1, 2], [1, 2])).db == math.inf
    assert ratio(([0, 0], [0, 0])).db == math.inf
    assert ratio(([0, 0], [0, 1])).db == -math.inf


def test_sums_are_float64() -> None:
    """The square of 1e30 is no float32, and many small ones would not add up in one."""
    assert ratio(([1e30], [1.1e30])).db == pytest.approx(20, abs=1e-5)
    found = Ratio()
    for _ in range(100):
        found.add(np.full(10**5, 1, np.float32), np.full(10**5, 1.01, np.float32))
    assert found.signal == 10**7
    assert found.db == pytest.approx(40, abs=1e-4)


def test_what_is_not_finite_is_named() -> None:
    inf, nan = math.inf, math.nan
    alike = ratio(([1, -inf, nan, 2], [1, -inf, nan, 2]))
    assert (alike.db, dict(alike.odd)) == (inf, {"NaN in A and B": 1, "infinity in A and B": 1})
    for a, b, what in (
        (1, nan, "NaN in B"),
        (nan, 1, "NaN in A"),
        (inf, 1, "infinity in A"),
        (1, -inf, "infinity in B"),
    ):
        found = ratio(([a, 2], [b, 2]))
        assert (found.db, found.largest, dict(found.odd)) == (-inf, inf, {what: 1})
    assert ratio(([inf], [-inf])).db == -inf
    assert ratio(([inf], [nan])).db == -inf


# --- pairs


def test_packed_rows_look_as_others() -> None:
    shapes: list[tuple[Dim, ...]] = [(BATCH, SEQ, 8), (symbol("tokens"), 8), (1, SEQ, 8), (BATCH, 1, 8)]
    assert {weak_shape(shape) for shape in shapes} == {("?", "8")}
    assert weak_shape((BATCH, 2, SEQ, 8)) == ("?", "2", "?", "8")
    assert weak_shape(()) == ()


def block(scale: float = 1.0) -> Graph:
    """A product, gelu, a product with a residual, a norm; each of a module of its own."""
    x = input_("x", "f32", (BATCH, SEQ, 32))
    up = make(
        "linear",
        (x, constant(weights(1, 32, 32).attributes["value"].array * np.float32(scale), "up")),
        Source("up", "m.py:1"),
    )
    act = make("gelu", (up,), Source("act", "m.py:2"))
    down = make("linear", (act, weights(2, 32, 32)), Source("down", "m.py:3"))
    total = make("add", (down, x), Source("block", "m.py:4"))
    ones = constant(np.ones(32, np.float32), "ones")
    y = make("layer_norm", (total, ones, ones), Source("norm", "m.py:5"), eps=1e-5)
    return Graph((x,), {"y": y}, {"batch": (1, 4), "seq": (1, 8)})


def ops_of(pairs: dict[Node, Node]) -> dict[str, str]:
    return {f"{a.op} of {a.source.path}": f"{b.op} of {b.source.path}" for a, b in pairs.items()}


def through(graph: Graph, passes: str) -> Graph:
    return Pipeline.parse(passes, PASSES).run(graph)[0]


def test_what_a_product_has_fused_in_is_part_of_its_value() -> None:
    fused = through(block(), "fuse")
    assert [n.op for n in fused.nodes if n.op not in ("input", "constant")] == [
        "linear",
        "linear",
        "layer_norm",
    ]
    assert ops_of(counterparts(block(), fused)) == {
        "gelu of act": "linear of up",
        "add of block": "linear of down",
        "layer_norm of norm": "layer_norm of norm",
    }
    assert ops_of(counterparts(fused, block()))["linear of up"] == "gelu of act", "and the other way round"


def test_quantised_products_are_those_of_their_module() -> None:
    plain = through(block(), "fuse")
    quantised = through(plain, "quantize,qfuse")
    pairs = ops_of(counterparts(plain, quantised))
    assert pairs["linear of up"] == "qlinear of up"
    assert pairs["linear of down"] == "qlinear of down"
    far = ops_of(counterparts(block(), quantised))
    assert far["gelu of act"] == "qlinear of up", "gelu_poly is gelu"


def test_pairs_hold_the_same_values() -> None:
    """Whatever passes did that are exact or close: no wrong pair has a ratio such as these."""
    for graph, inputs in ((block(), {"x": normal(0, 2, 5, 32)}), (causal(), {"x": normal(1, 1, 5, 32)})):
        for passes in ("fuse", "tie,simplify,fuse,fold,qkv,fold,narrow,cse", "append,simplify,fuse"):
            noise = Noise({"f": graph}, {"f": through(graph, passes)})
            noise.add([("f", inputs)])
            compared = [pair for pair in noise.pairs["f"] if pair.compared]
            assert len(compared) >= 3
            assert min(pair.ratio.db for pair in compared) > 120, passes


def test_no_pair_of_random_graphs_is_wrong() -> None:
    text = ",".join(filter(None, LEVEL_PARTS[3].values()))
    compared = 0
    for seed in range(0, 300, 6):  # 126 has reshapes that change places
        graph = random_graph(seed)[0]
        noise = Noise({"f": graph}, {"f": through(graph, text)})
        noise.add([("f", random_inputs(graph, seed, {"batch": 2, "seq": 5}))])
        for pair in (pair for pair in noise.pairs["f"] if pair.compared):
            compared += 1
            assert pair.ratio.db > 80, (seed, pair.a, pair.b)
    assert compared > 200


def test_the_first_below_and_the_worst_of_a_module() -> None:
    noise = Noise({"f": block()}, {"f": block(1.5)})
    noise.add([("f", {"x": X})])
    first = noise.first_below("f", 40)
    assert first is not None
    assert first.a.source.path == "up"
    assert first.ratio.db == pytest.approx(10 * math.log10(1 / 0.25), abs=1e-4)
    assert [layer.path for layer in noise.layers("f")] == ["up", "act", "down", "block", "norm"]
    assert noise.first_below("f", -100) is None


def test_other_shapes_are_not_compared() -> None:
    def narrow(width: int) -> Graph:
        x = input_("x", "f32", (BATCH, SEQ, 32))
        up = make("linear", (x, weights(1, width, 32)), Source("up"))
        down = make("linear", (up, weights(2, 32, width)), Source("down"))
        return Graph((x,), {"y": down}, {"batch": (1, 4), "seq": (1, 8)})

    noise = Noise({"f": narrow(32)}, {"f": narrow(16)})
    noise.add([("f", {"x": X})])
    assert [layer.path for layer in noise.layers("f")] == ["down"]
    assert noise.left_out("f") == {"up": "shapes differ: f32[batch, seq, 32] in A, f32[batch, seq, 16] in B"}


def test_an_output_of_one_model_alone() -> None:
    x = input_("x", "f32", (2,))
    a = Graph((x,), {"y": make("exp", (x,)), "z": make("neg", (x,))}, {})
    noise = Noise({"f": a}, {"f": Graph((x,), {"y": make("exp", (x,))}, {})})
    noise.add([("f", {"x": np.zeros(2, np.float32)})])
    assert noise.odd_roots["f"] == {"z": "only in A"}


def test_sessions_of_several_functions() -> None:
    """What `encode` leaves is what `step` reads, on either side."""
    module = encoder_decoder()
    changed = {name: through(graph, "append,quantize,qfuse") for name, graph in module.functions.items()}
    noise = Noise(module.functions, changed)
    noise.add([("encode", {"text": normal(2, 1, 4, 32)}), ("step", {"x": X})])
    assert noise.samples == {"encode": 1, "step": 1}
    assert noise.roots["encode"]["pooled"].db == math.inf
    roots = noise.roots["step"]
    assert {"y", "state keys", "state values", "state cross_keys", "state cross_values"} == set(roots)
    assert all(20 < root.db < 80 for root in roots.values())


def test_states_go_on_from_call_to_call() -> None:
    noise = Noise({"f": accumulator()}, {"f": accumulator()})
    x = np.ones((1, 8), np.float32)
    noise.add([("f", {"x": x}), ("f", {"x": x})])
    assert noise.samples == {"f": 1}
    assert noise.roots["f"]["twice"].signal == 8 * 2**2 + 8 * 4**2
    assert noise.roots["f"]["state total"].signal == 8 * 2**2
