"""What options did: counted, with reasons; one that changes nothing is refused, and never claimed."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stateful_graphs import windowed

from llmc.cli.compile import print_effects
from llmc.compiler.dims import symbol
from llmc.compiler.effects import Effect, Verdict, joined
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.given import Given, giving
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import Pass, Pipeline
from llmc.errors import LlmcError, many
from llmc.optimise import Optimised, optimise
from llmc.options import Options, Order
from llmc.passes import PASSES
from llmc.passes.only import Only
from llmc.report import Stages

RNG = np.random.default_rng(3)
QUANTS = ("int8", "int8-static", "fp16")
COMPRESSION: tuple[dict[str, Any], ...] = (
    {"prune": "0.3"},
    {"prune": "2:4"},
    {"prune": "heads:0.25"},
    {"prune": "neurons:0.25"},
    {"share": "16"},
    {"factorize": "4"},
)
IDLE: tuple[dict[str, Any], ...] = (
    {"state_dtype": "int8"},
    *({"quant": q, **({"calib": "IMAGES"} if q == "int8-static" else {})} for q in QUANTS),
    *COMPRESSION,
)


def weight(*shape: int, name: str = "w") -> Node:
    return constant(RNG.normal(size=shape).astype(np.float32), name)


def cnn() -> Graph:
    """Two convolutions and a small classifier: nothing that compression or quantisation works on."""
    x = input_("pixel_values", "f32", (symbol("batch"), 3, 6, 6))
    y: Node = x
    for name, (out, into) in {"a": (32, 3), "b": (64, 32)}.items():
        sizes = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
        y = make("conv2d", (y, weight(out, into, 2, 2, name=name)), Source(name), **sizes)
    pooled = make("mean", (y,), axes=(2, 3), keepdims=False)
    return Graph((x,), {"logits": make("linear", (pooled, weight(3, 64)), Source("head"))}, {"batch": (1, 8)})


def dense(*sizes: int) -> Graph:
    """Products one after the other."""
    x = input_("x", "f32", (symbol("batch"), sizes[0]))
    y: Node = x
    for number, (k, n) in enumerate(pairwise(sizes)):
        y = make("linear", (y, weight(n, k, name=f"w{number}")), Source(f"layer.{number}"))
    return Graph((x,), {"y": y}, {"batch": (1, 8)})


def run(graph: Graph, **options: Any) -> Optimised:
    imported = Imported(graph, "m", "graph", "", "", (), None, None)
    order = Order("m.llmc", None, Options(**{"target": "x86-avx512", "level": 0, **options}))
    return optimise(imported, order, Stages(None), lambda *a, **b: pytest.fail("no native code is needed"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    np.savez(tmp_path / "images.npz", pixel_values=np.zeros((2, 3, 6, 6), np.float32))
    return tmp_path / "images.npz"


def given(options: dict[str, Any], images: Path) -> dict[str, Any]:
    return {k: images if v == "IMAGES" else v for k, v in options.items()}


@pytest.mark.parametrize("options", [*IDLE, {"matmul": "int8x3"}], ids=str)
def test_an_option_that_changes_nothing_is_refused(options: dict[str, Any], images: Path) -> None:
    with pytest.raises(
        LlmcError, match=r"^--(quant|matmul|state-dtype|prune|share|factorize).* changes nothing"
    ) as caught:
        run(cnn(), **given(options, images))
    assert "--allow-noop" in str(caught.value.hint)
    assert "read by conv2d" in str(caught.value.found) or "no " in str(caught.value.found)


@pytest.mark.parametrize("options", IDLE, ids=str)
def test_with_leave_it_is_not_claimed(options: dict[str, Any], images: Path) -> None:
    graph = cnn()
    found = run(graph, allow_noop=True, **given(options, images))
    assert (found.pipeline, found.quantisation) == ("", "none")
    assert found.cases is found.source, "the self-test answers for the model itself"
    assert found.effects
    assert not any(effect["changed"] for effect in found.effects)
    assert list(found.module.functions.values()) == [graph]


def test_zeros_that_int8_skips() -> None:
    """Blocks of 16x4 stay zero when they are rounded, and both passes tell of the same weights."""
    found = run(dense(64, 64, 64), prune="16x4:0.75", quant="int8")
    levels = [
        n.inputs[1].attributes["value"].array
        for n in next(iter(found.module.functions.values())).nodes
        if n.op == "qlinear"
    ]
    assert [np.count_nonzero(w.reshape(4, 16, 16, 4).any((1, 3))) for w in levels] == [16, 16]
    told = {effect["of"]: (effect["changed"], dict(effect["left"])) for effect in found.effects}
    assert told["products skipping zeros"] == (2, {})


def test_zeros_that_a_target_multiplies() -> None:
    """CUDA has no product that skips zeros."""
    found = run(dense(64, 64, 64), prune="2:4", target="cuda")
    told = {effect["of"]: (effect["changed"], dict(effect["left"])) for effect in found.effects}
    assert told["products skipping zeros"] == (0, {"where products for cuda multiply zeros too": 2})


def test_zeros_of_shared_values_are_not_skipped() -> None:
    found = run(dense(64, 64, 64), prune="16x4:0.8", share="16", quant="int8", allow_noop=True)
    told = {effect["of"]: (effect["changed"], dict(effect["left"])) for effect in found.effects}
    assert told["products skipping zeros"] == (0, {"whose values are shared: all are multiplied": 2})


def test_bias_correction_beside_gptq_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a text\n")
    asked: Any = {"quant": "w4", "calib": tmp_path / "t.txt", "add_passes": "correct-bias@quantise"}
    with pytest.raises(LlmcError, match="rounds by GPTQ"):
        Order("x", None, asked)


@pytest.mark.parametrize(
    ("passes", "quant", "found"),
    [
        ("correct-bias@quantise", "int8", ""),
        ("correct-bias{bits=4}@quantise", "int8", "bits=8,block=0,rounding=largest"),
        ("correct-bias@quantise", "fp16", "halves"),
        ("correct-bias@quantise", "bf16", "halves"),
        ("correct-bias,blockwise{bits=4,block=32}@quantise", "none", "bits=4,block=32,rounding=largest"),
        ('correct-bias{block=32},blockwise{block=32,scales="search"}@quantise', "none", "rounding=search"),
        ("correct-bias{bits=4,block=32},blockwise{bits=4,block=32}@quantise", "none", ""),
        ("correct-bias@quantise", "none", ""),  # what rounds may come in another run
    ],
)
def test_bias_correction_is_of_the_rounding_after_it(
    passes: str, quant: str, found: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "s.npz", x=np.zeros((2, 64), np.float32))
    options = Options(quant=quant, add_passes=passes, calib=tmp_path / "s.npz", target="x86-avx512")
    if not found:
        Order("m.llmc", None, options)
        return
    with pytest.raises(LlmcError, match="other errors than those that it makes up for") as caught:
        Order("m.llmc", None, options)
    assert found in caught.value.problem


def test_states_in_fewer_bits_are_told() -> None:
    """As a lossy pass: what it does to the answers is measured, and the self-test answers for what is left."""
    found = run(windowed(9), level=3, state_dtype="int8")
    (effect,) = found.effects
    assert (effect["option"], effect["of"], effect["changed"]) == ("--state-dtype int8", "states", 2)
    assert [loss.step.partition("{")[0] for loss in found.losses] == ["states"]
    assert 0 < found.losses[0].difference < 0.02
    assert found.cases is not found.source
    assert found.quantisation == "none"


def test_counts_and_reasons() -> None:
    graph = dense(64, 96, 96, 8)
    (pruned,) = run(graph, prune='sparsity=0.3,skip=["layer.0"]').effects
    assert pruned == {
        "option": "--prune",
        "pass": 'prune{sparsity=0.3,skip=["layer.0"]}',
        "of": "weights",
        "changed": 1,
        "share": pytest.approx(96 / (64 + 96 + 8), abs=1e-4),
        "left": {"named by skip": 1, "below 4096 values": 1},
    }
    (quantised, attention) = run(graph, quant="int8").effects
    assert (quantised["pass"], quantised["changed"]) == ("quantize", 2)
    assert quantised["left"] == {"with fewer than 16 output columns": 1}
    assert (attention["of"], attention["changed"], attention["left"]) == ("attentions", 0, {})
    (split,) = run(graph, matmul="int8x3").effects
    assert (split["changed"], split["left"]) == (2, {"with fewer than 32 rows or columns": 1})


def test_a_weight_that_gains_nothing_is_left_and_told() -> None:
    graph = dense(64, 96, 80)
    (thin,) = run(graph, factorize="40").effects
    assert (thin["changed"], thin["left"]) == (1, {"whose two factors would be no smaller": 1})
    (shared,) = run(dense(64, 96, 40), share="16").effects
    assert (shared["changed"], shared["left"]) == (1, {"below 4096 values": 1})


def test_a_weight_of_few_values_shares_these() -> None:
    graph = dense(64, 96, 80)
    few = constant(np.sign(RNG.normal(size=(80, 96))).astype(np.float32), "signs")
    (shared,) = run(graph.replace(lambda n: few if n.shape == (80, 96) else n), share="16").effects
    assert (shared["changed"], shared["left"]) == (2, {})


def test_weights_stored_compressed_stay_so_under_quantisation() -> None:
    found = run(dense(64, 96, 96), prune="sparsity=0.3,least=9000", quant="fp16").effects
    assert [(e["pass"].partition("{")[0], e["changed"], e["left"]) for e in found] == [
        ("prune", 1, {"below 9000 values": 1}),
        ("quantize", 1, {"stored as bitmask": 1}),
    ]


def test_an_added_pass_says_whether_it_did_anything() -> None:
    (found,) = run(dense(64, 96), add_passes="tie").effects
    assert (found["option"], found["changed"], found["left"]) == (
        "--add-pass",
        0,
        {"where it had nothing to do": 1},
    )


def test_what_functions_share_counts_once() -> None:
    thing = object()
    (found,) = joined(
        [Effect("weights", (Verdict(thing, 4, "cold"),)), Effect("weights", (Verdict(thing, 4),))]
    )
    assert (found.changed, found.left, found.share) == (1, {}, 1.0)


@pytest.mark.parametrize("name", [n for n, p in PASSES.items() if p.keeps.kind == "lossy" and n != "blank"])
def test_every_lossy_pass_tells(name: str) -> None:
    change: Pass = Only(("w0",), "prune") if name == "only" else PASSES[name]()
    graph = dense(64, 96)
    (x,) = graph.inputs
    rows = RNG.normal(size=(40, int(x.shape[-1]))).astype(np.float32)
    with giving(Given(lambda graph: iter([{x.attributes["name"]: rows[i : i + 1]} for i in range(40)]))):
        _, report = Pipeline.of(change).run(graph)
    assert report.runs[0].effects, "what an option did is told, not supposed"


def test_text_for_an_image_model_is_refused() -> None:
    with pytest.raises(LlmcError, match="the model has no tokenizer for texts"):
        run(cnn(), quant="int8-static", calib="auto", allow_noop=True)


def test_the_report_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_effects(run(dense(64, 96, 8), quant="fp16").effects)
    shown = " ".join(capsys.readouterr().out.split())
    assert 'quantize{mode="fp16"} 1 2 weights 88.9% 1 with fewer than 16 output columns' in shown


def test_one_thing_is_told_in_the_singular(capsys: pytest.CaptureFixture[str]) -> None:
    print_effects(run(dense(64, 64), quant="fp16").effects)
    assert "1 1 weight 100.0%" in " ".join(capsys.readouterr().out.split())
    assert [many(n, "products of levels") for n in (0, 1, 2)] == [
        "0 products of levels",
        "1 product of levels",
        "2 products of levels",
    ]
