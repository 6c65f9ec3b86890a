"""What layers gain by what was asked for: figures before and after, and products that int8 would slow down."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from llmc import costs
from llmc.cli import llmc
from llmc.cli.compile import print_gains
from llmc.compiler.dims import symbol
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.graph_file import write_graph
from llmc.compiler.module import Module
from llmc.compiler.ops import constant, input_, make, state_
from llmc.driver import compile_graph
from llmc.errors import LlmcError
from llmc.explain import explain
from llmc.gains import Gains, gains, of_compile, runs_of, timed
from llmc.kernels import Kernels
from llmc.optimise import Optimised, optimise, passed
from llmc.options import Order
from llmc.report import Stages

TARGET = "x86"
SHAPES = ((5, 7, 3), (16, 48), (33, 17, 65), (64, 64), (96, 40, 300), (130, 130))
LOSSY: tuple[dict[str, Any], ...] = (
    *({"quant": quant} for quant in ("int8", "fp16", "bf16", "bf16a16", "w8", "w4", "w4a8")),
    *({"prune": spec} for spec in ("0.05", "0.5", "2:4", "4x1:0.8", "16x1:0.3")),
    *({"share": spec} for spec in ("16", "256")),
    *({"factorize": spec} for spec in ("4", "energy=0.99")),
)


def network(*sizes: int) -> Graph:
    """Products one after the other."""
    rng = np.random.default_rng(len(sizes))
    x = y = input_("x", "f32", (symbol("n"), sizes[0]))
    for number, (k, n) in enumerate(pairwise(sizes)):
        w = constant(rng.normal(size=(n, k)).astype(np.float32), f"w{number}")
        y = make("linear", (y, w), Source(f"layer.{number}"))
    return Graph((x,), {"y": y}, {"n": (1, 512)})


def imported(graph: Graph) -> Imported:
    return Imported(graph, "net", "graph", "", "", (), None, None)


def order(**options: Any) -> Order:
    return Order("x", None, {"target": TARGET, **options})


def gained(graph: Graph, **options: Any) -> tuple[Optimised, Gains | None]:
    wanted = order(**options)
    made = optimise(imported(graph), wanted, Stages(None), compile_graph)
    kernels = Kernels.of(made.module, wanted.target)
    return made, of_compile(imported(graph), wanted, kernels, made.left, compile_graph)


def slow_bytes(monkeypatch: pytest.MonkeyPatch, seconds: float = 1e-4) -> None:
    """Figures by which products on int8 take longer than in float; one of more than 4096 weights is not asked for."""
    known = {v: {**t, "qlinear": [0.0, 0.0, 0.0, seconds]} for v, t in costs.figures().items()}
    monkeypatch.setattr("llmc.gains.figures", lambda: known)
    monkeypatch.setattr("llmc.gains._LARGE", 4096)


def test_both_figures_of_each_layer() -> None:
    _, found = gained(network(256, 256, 32), quant="int8")
    assert found is not None
    assert (found.variant, found.runs, found.left) == ("avx512amx", ("n=1", "n=128"), ())
    first, second = found.layers
    assert (first.place, first.kinds) == ("layer.0", ("linear", "qlinear"))
    assert first.bytes == (4 * 256 * 256, 256 * 256 + 4 * 256)
    assert second.bytes == (4 * 256 * 32, 256 * 32 + 4 * 32)
    assert not first.slower
    assert all(after < before for before, after in first.seconds)


@pytest.mark.parametrize("quant", ["int8", "w8", "w4a8"])
def test_sums_are_those_of_the_model_of_costs(quant: str) -> None:
    """Each call counts once: what rounds the input of several products is shared among them."""
    graph = network(256, 96, 64)
    x, y = graph.inputs[0], graph.outputs["y"]
    more = make("linear", (x, constant(np.ones((32, 256), np.float32), "v")), Source("layer.v"))
    graph = Graph(graph.inputs, {"y": y, "v": more}, dict(graph.dims))
    made, found = gained(graph, quant=quant)
    assert found is not None
    for run, (_, after) in zip((1, 128), found.whole.seconds, strict=True):
        asked = costs.Costs(order().target, {"n": run}, found.variant).of(
            next(iter(made.module.functions.values()))
        )
        assert after == pytest.approx(asked.seconds, rel=1e-9)


def test_nothing_asked_for_gains_nothing() -> None:
    assert gained(network(64, 64))[1] is None


def test_int8_leaves_what_it_would_slow_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow_bytes(monkeypatch)
    graph = network(64, 64, 96, 96)
    made, found = gained(graph, quant="int8")
    assert found is not None
    assert [gain.place for gain in found.left] == ["layer.0"]
    assert found.left[0].bytes == (4 * 64 * 64, 64 * 64 + 4 * 64)
    assert found.left[0].slower
    assert [gain.place for gain in found.layers] == ["layer.1", "layer.2"]
    assert 'slower=["layer.0"]' in made.pipeline
    assert "slower on int8 than in float" in made.effects[0]["left"]
    again = optimise(imported(graph), order(only_passes=made.pipeline), Stages(None), compile_graph)
    assert str(again.module) == str(made.module)


def test_static_ranges_of_the_others_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow_bytes(monkeypatch)
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "samples.npz", x=rng.normal(size=(4, 64)).astype(np.float32))
    made, found = gained(network(64, 64, 96, 96), quant="int8-static", calib=str(tmp_path / "samples.npz"))
    assert found is not None
    assert [gain.place for gain in found.left] == ["layer.0"]
    assert made.pipeline.count("slower=") == 1


def test_all_slower_is_said_and_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_bytes(monkeypatch, 1.0)
    with pytest.raises(LlmcError, match="--quant int8 changes nothing") as caught:
        gained(network(64, 64), quant="int8")
    assert "slower on int8 than in float" in str(caught.value)


def test_modes_for_bytes_keep_what_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = gained(network(256, 256), prune="0.3")
    assert found is not None
    assert [(gain.place, gain.slower) for gain in found.layers] == [("layer.0", True)]
    assert found.layers[0].bytes[1] < found.layers[0].bytes[0]


def test_slower_on_others(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An artifact for several instruction sets is chosen for by the best; what the others make of it is told."""
    known = dict(costs.figures())
    known["avx2"] = {**known["avx2"], "qlinear": [0.0, 0.0, 0.0, 1.0]}
    monkeypatch.setattr("llmc.gains.figures", lambda: known)
    _, found = gained(network(256, 256), quant="int8")
    assert found is not None
    assert list(found.slower_on) == ["avx2"]
    print_gains(found.to_dict(), TARGET)
    assert "slower on avx2: n=1 " in capsys.readouterr().out


def test_a_weight_that_two_read_counts_once() -> None:
    x = input_("x", "f32", (symbol("n"), 64))
    w = constant(np.ones((64, 64), np.float32), "w")
    y = make("linear", (make("linear", (x, w), Source("a")), w), Source("b"))
    _, found = gained(Graph((x,), {"y": y}, {"n": (1, 512)}), quant="bf16")
    assert found is not None
    assert found.whole.bytes == (4 * 64 * 64, 2 * 64 * 64)


def test_targets_without_figures() -> None:
    """Bytes are told all the same, and nothing is left for its time."""
    wanted = order(quant="int8", target="rpi5")
    graph = imported(network(64, 64))
    made = optimise(graph, wanted, Stages(None), compile_graph)
    found = of_compile(graph, wanted, Kernels.of(made.module, wanted.target), made.left, compile_graph)
    assert found is not None
    assert (found.variant, found.left, found.whole.seconds) == ("", (), ())
    assert found.layers[0].bytes == (4 * 64 * 64, 64 * 64 + 4 * 64)


@pytest.mark.parametrize("options", LOSSY, ids=str)
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_no_layer_takes_more_bytes(options: dict[str, Any], sizes: tuple[int, ...]) -> None:
    """Whatever the size: what would gain nothing stays as it was."""
    graph, wanted = imported(network(*sizes)), order(allow_noop=True, **options)
    plain = wanted.plain()
    assert plain is not None
    try:
        after = passed(graph, wanted, compile_graph)
    except LlmcError as error:
        if "the pattern" in error.problem:  # does not divide
            return
        raise
    before = passed(graph, plain, compile_graph)
    found = gains(*(Kernels.of(Module(dict(m)), wanted.target) for m in (before, after)), wanted.target)
    for gain in found.layers:
        assert gain.bytes[1] < gain.bytes[0], gain
    assert found.whole.bytes[1] <= found.whole.bytes[0]


def test_runs() -> None:
    dims = {"seq": (1, 64), "past": (0, 8192), "kept": (1, 64), "tokens": (1, 64), "batch": (1, 4)}
    x = input_("x", "f32", (symbol("seq"), 4))
    graph = Graph((x,), {"y": make("relu", (x,))}, dims)
    runs = runs_of(Module({"step": graph}))
    assert list(runs) == ["seq=1, past=512", "seq=64, past=512"]
    assert runs["seq=64, past=512"]["step"] == {"seq": 64, "past": 512, "kept": 1, "tokens": 64, "batch": 1}
    fixed = Graph((input_("x", "f32", (2, 4)),), {"y": x}, {})
    assert list(runs_of(Module({"f": fixed}))) == ["batch=1"]


def test_measured_on_this_machine() -> None:
    graph = imported(network(64, 48))
    wanted = order(quant="int8", target="native")
    plain = wanted.plain()
    assert plain is not None
    before, after = (
        Kernels.of(Module(dict(passed(graph, o, compile_graph))), wanted.target) for o in (plain, wanted)
    )
    own = timed(before, after, compile_graph)
    found = gains(before, after, wanted.target, own)
    assert found.variant == "this machine"
    assert all(seconds > 0 for run in found.layers[0].seconds for seconds in run)


def test_bytes_of_int8_that_skips_zeros() -> None:
    """The lines that are left and where they are, not the levels with their zeros."""
    _, dense = gained(network(64, 256), quant="int8")
    _, found = gained(network(64, 256), quant="int8", prune="16x4:0.8")
    assert dense is not None
    assert found is not None
    assert found.layers[0].kinds == ("linear", "sparse_qlinear")
    assert 0.2 < found.whole.bytes[1] / dense.whole.bytes[1] < 0.5


def test_kernels_of_what_has_become_small() -> None:
    _, found = gained(network(64, 64), quant="w4")
    assert found is not None
    assert found.whole.bytes[1] < 4096
    assert found.layers[0].kinds == ("linear", "int16_blockwise 4")


def test_equal_weights_of_two_functions_count_once() -> None:
    """As they are stored, and as a model is told that was imported before."""
    graphs = {"a": network(64, 256), "b": network(64, 256)}
    wanted = order(quant="int8")
    both = Imported(graphs["a"], "net", "graph", "", "", (), None, None, functions=graphs)
    made = optimise(both, wanted, Stages(None), compile_graph)
    found = of_compile(both, wanted, Kernels.of(made.module, wanted.target), made.left, compile_graph)
    assert found is not None
    assert found.whole.bytes[0] == 4 * 64 * 256
    (told,) = [effect for effect in made.effects if effect["of"] == "weights"]
    assert told["changed"] == 1


def test_samples_of_passes_beside(tmp_path: Path) -> None:
    """A pass that wants samples runs without --quant too, on the same samples."""
    graph = network(64, 96, 64)
    samples = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=samples)
    _, found = gained(graph, quant="w4", calib=tmp_path / "x.npz", add_passes="awq@quantise")
    assert found is not None
    assert found.whole.bytes[1] < found.whole.bytes[0]


def test_figures_are_fitted_to_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to the last alone, which says nothing of a run of one row."""
    graph = imported(network(64, 48))
    wanted = order(quant="int8")
    after = Kernels.of(Module(dict(passed(graph, wanted, compile_graph))), wanted.target)
    seen: list[Any] = []
    monkeypatch.setattr("llmc.gains.measured", lambda graphs, *rest: seen.extend(graphs) or {})
    timed(after, after, compile_graph)
    assert [sizes for _, sizes in seen] == 2 * [[{"n": 1}, {"n": 128}]]


def test_functions_that_cannot_be_timed_alone() -> None:
    kept = state_("kept", "f32", (1, 8))
    x = input_("x", "f32", (1, 8))
    graph = Graph((x,), {"y": make("add", (x, kept))}, {}, states=(kept,), updates={})
    kernels = SimpleNamespace(module=SimpleNamespace(functions={"step": graph}), target=None)
    with pytest.raises(LlmcError, match="the function step begins with what another has made"):
        timed(kernels, kernels, compile_graph)  # type: ignore[arg-type]


def test_large_convolutions_are_asked_for_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float ones go by tiles, which may be faster however large they are."""
    known = {v: {**t, "qconv2d": [0.0, 0.0, 0.0, 1.0]} for v, t in costs.figures().items()}
    monkeypatch.setattr("llmc.gains.figures", lambda: known)
    monkeypatch.setattr("llmc.gains._LARGE", 4096)
    rng = np.random.default_rng(0)
    x = input_("x", "f32", (symbol("batch"), 16, 8, 8))
    sizes = {"stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
    w, v = (constant(rng.normal(size=s).astype(np.float32), str(s[0])) for s in ((32, 16, 3, 3), (32, 2048)))
    y = make("conv2d", (x, w), Source("conv"), **sizes)
    flat = make("reshape", (y,), shape=(symbol("batch"), 2048))
    graph = Graph((x,), {"y": make("linear", (flat, v), Source("head"))}, {"batch": (1, 8)})
    _, found = gained(graph, quant="int8")
    assert found is not None
    assert [gain.place for gain in found.left] == ["conv"]


def test_measure_wants_something_to_measure() -> None:
    with pytest.raises(LlmcError, match="nothing to measure the gain of"):
        order(measure=True)
    with pytest.raises(LlmcError, match="do not run here"):
        order(measure=True, quant="int8", target="rpi5")


def test_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    slow_bytes(monkeypatch)
    _, found = gained(network(64, 64, 96, 96), quant="int8")
    assert found is not None
    print_gains(found.to_dict(), TARGET)
    told = capsys.readouterr().out
    assert "by the cost model of avx512amx, one thread: weights 77.8 kB -> 32.5 kB, n=1" in told
    assert "left float, as they would be slower" in told
    assert "linear -> qlinear" in told
    _, found = gained(network(256, 256), prune="0.3")
    assert found is not None
    print_gains(found.to_dict(), TARGET)
    assert "1 layer slower for 262.1 kB -> " in capsys.readouterr().out


def test_explained(tmp_path: Path) -> None:
    told = explain(imported(network(256, 256)), order(quant="int8"))
    (node,) = told.find("layer.0")
    gain = told.story(node).gain
    assert gain is not None
    assert gain.bytes == (4 * 256 * 256, 256 * 256 + 4 * 256)
    write_graph(tmp_path / "net.ir", network(256, 256))
    ran = CliRunner().invoke(
        llmc, ["explain", str(tmp_path / "net.ir"), "--quant", "int8", "--target", TARGET]
    )
    assert ran.exit_code == 0, ran.output
    assert "layers, before -> after" in ran.output
    ran = CliRunner().invoke(
        llmc, ["explain", str(tmp_path / "net.ir"), "layer.0", "--quant", "int8", "--target", TARGET]
    )
    assert "its layer   weights 262.1 kB -> 66.6 kB, n=1 " in ran.output


def test_a_node_without_gain() -> None:
    told = explain(imported(network(256, 256)), order())
    node: Node = told.find("layer.0")[0]
    assert told.story(node).gain is None
