"""What passes do is held together: wrong ones are named whatever runs beside them, by the interpreter alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stateful_graphs import causal

from llmc.compiler import sequences
from llmc.compiler.culprit import Breach
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Weight
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import LOSSY, Pass, Pipeline, close
from llmc.compiler.samples import play, samples
from llmc.compiler.sequences import sessions
from llmc.compiler.trail import Trail
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES

BATCH, SEQ = symbol("batch"), symbol("seq")


def network(high: int = 64) -> Graph:
    x = input_("x", "f32", (BATCH, SEQ, 8))
    w = constant(np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32), "w")
    return Graph((x,), {"y": make("linear", (x, w))}, {"batch": (1, 8), "seq": (1, high)})


def changed(graph: Graph, change: Any) -> Graph:
    return Graph(graph.inputs, {"y": change(graph.outputs["y"])}, graph.dims)


def late(graph: Graph, start: int) -> Graph:
    """0.3 is added from row `start` on."""
    rows = make("ge", (make("iota", (), length=SEQ), constant(np.int64(start))))
    wrong = make("mul", (make("cast", (rows,), dtype="f32"), constant(np.float32(0.3))))
    return changed(graph, lambda y: make("add", (y, make("reshape", (wrong,), shape=(1, SEQ, 1)))))


class Above16(Pass):
    def run(self, graph: Graph) -> Graph:
        return late(graph, 16)


class Above40(Pass):
    def run(self, graph: Graph) -> Graph:
        return late(graph, 40)


class Idle(Pass):
    """Another graph that computes the same."""

    keeps = LOSSY

    def run(self, graph: Graph) -> Graph:
        return changed(graph, lambda y: make("mul", (y, constant(np.float32(1)))))


class Coarse(Pass):
    keeps = LOSSY

    def run(self, graph: Graph) -> Graph:
        return changed(graph, lambda y: make("mul", (y, constant(np.float32(1.25)))))


class Overflow(Pass):
    keeps = LOSSY

    def run(self, graph: Graph) -> Graph:
        return changed(graph, lambda y: make("div", (y, constant(np.float32(0)))))


class Blown(Pass):
    keeps = LOSSY

    def run(self, graph: Graph) -> Graph:
        return changed(graph, lambda y: make("mul", (y, constant(np.float32(9)))))


class Near(Pass):
    keeps = close(1e-2)

    def run(self, graph: Graph) -> Graph:
        return changed(graph, lambda y: make("mul", (y, constant(np.float32(1.05)))))


def held(graph: Graph, *passes: Pass) -> Any:
    pipeline, trail = Pipeline.of(*passes), Trail(graph)
    noted = [play(graph, s) for s in samples(graph)]
    pipeline.run(graph, trail.noting(pipeline, Pipeline(())))
    return trail.hold(noted)


@pytest.mark.parametrize("wrong", [Above16(), Above40()], ids=str)
@pytest.mark.parametrize("before", [(), (Idle(),)], ids=["first", "after"])
@pytest.mark.parametrize("after", [(), (Coarse(),)], ids=["last", "before"])
def test_a_pass_wrong_from_some_size_on_is_named(wrong: Pass, before: Any, after: Any) -> None:
    with pytest.raises(Breach) as caught:
        held(network(), *before, wrong, PASSES["cse"](), *after)
    assert caught.value.problem == f"pass {wrong} promises exact and breaks it"
    assert f"the pass is from {__file__}" in caught.value.found
    assert "fault of llmc" not in caught.value.hint


def test_what_lossy_passes_do_is_measured() -> None:
    losses = held(network(), Idle(), PASSES["simplify"](), Coarse())
    assert [(loss.step, loss.output) for loss in losses] == [("idle", "y"), ("coarse", "y")]
    assert losses[0].difference == 0
    assert losses[1].difference == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [(Overflow(), "not finite"), (Blown(), "8 of its scale"), (Near(), "0.05 of its scale")],
    ids=str,
)
def test_a_lossy_pass_may_not_do_anything(wrong: Pass, found: str) -> None:
    with np.errstate(all="ignore"), pytest.raises(Breach, match=f"pass {wrong}") as caught:
        held(network(), Idle(), wrong)
    assert found in caught.value.found


def test_a_pass_that_writes_into_a_weight_fails_at_once() -> None:
    class Writes(Pass):
        def run(self, graph: Graph) -> Graph:
            for node in graph.nodes:
                if node.op == "constant":
                    node.attributes["value"].array[:] = 7
            return graph

    with pytest.raises(LlmcError, match="pass writes failed: ValueError") as caught:
        held(network(), Writes())
    assert "a pass makes a new array" in caught.value.hint


def test_a_graph_that_was_changed_in_place_is_told() -> None:
    """By a pass that goes around what is read-only, and reports no change."""

    class Underhand(Pass):
        def run(self, graph: Graph) -> Graph:
            (w,) = (n for n in graph.nodes if n.op == "constant")
            double = Weight(w.attributes["value"].array * 2)
            object.__setattr__(w, "attributes", {**w.attributes, "value": double})
            return graph

    with pytest.raises(Breach, match="a pass wrote into the graph that it was given") as caught:
        held(network(), Underhand(), Renamed(), Coarse())
    assert caught.value.at == "underhand, renamed, coarse"


class Renamed(Pass):
    """A new graph of the same nodes."""

    def run(self, graph: Graph) -> Graph:
        return changed(graph, lambda y: y)


def test_a_user_s_pass_by_a_file_s_name_needs_no_file_twice(tmp_path: Any) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\nfrom llmc.compiler.graph import Graph\nfrom llmc.compiler.ops import constant, make\n"
        "from llmc.compiler.pipeline import Pass\n\nclass Mine(Pass):\n    def run(self, graph):\n"
        "        y = make('neg', (graph.outputs['y'],))\n"
        "        return Graph(graph.inputs, {'y': y}, graph.dims)\n"
    )
    (step,) = Pipeline.parse(f"{file}:Mine", PASSES).steps
    graph = network()
    trail = Trail(graph)
    pipeline = Pipeline((step,))
    pipeline.run(graph, trail.noting(pipeline, Pipeline(())))
    breach = trail.blame()
    assert breach is not None
    assert breach.problem == f"pass {file}:Mine promises exact and breaks it"
    assert "the pass is from" not in breach.found


def test_sizes_are_unequal_and_within_bounds() -> None:
    x = input_("x", "f32", (BATCH, symbol("height"), symbol("width")))
    graph = Graph((x,), {"y": make("neg", (x,))}, {"batch": (1, 2), "height": (4, 90), "width": (1, 90)})
    found = [sizes for (sizes,) in sessions(graph)]
    assert {"batch": 2, "height": 65, "width": 66} in found
    assert {"batch": 2, "height": 4, "width": 2} in found
    assert all(sizes["height"] != sizes["width"] for sizes in found if sizes["height"] < 90)
    assert max(sizes["height"] for sizes in found) == 90


def test_a_fixed_size_is_tried_once() -> None:
    x = input_("x", "f32", (2, 3))
    assert sessions(Graph((x,), {"y": make("neg", (x,))}, {})) == [[{}]]
    assert len(samples(network(1))) == 2  # batches of 1 and 3


def test_levels_and_compression_keep_their_promises(random_encoder: Any) -> None:
    for seed, last in enumerate(("prune{sparsity=0.5}", "quantize,qfuse,cse", "share")):
        pipeline, graph = Pipeline.parse(f"{LEVELS[3]},{last}", PASSES), random_encoder(seed)[0]
        trail = Trail(graph)
        pipeline.run(graph, trail.noting(pipeline, Pipeline(())))
        trail.hold([])


def test_an_empty_row_is_nobody_s_answer(random_encoder: Any) -> None:
    """A mask that is added makes a mean over all padding of it, one of flags zeros."""
    graph, _ = random_encoder(0)
    (call,) = samples(graph)[2].calls
    empty = ~call["mask"].any(axis=1)
    assert empty.any()
    for value in play(graph, samples(graph)[2]).values():
        assert not value[empty].any()
        assert value[~empty].any()


def test_sizes_that_do_not_fit_each_other_are_left_out() -> None:
    """A slice of `narrow` places from `wide`: equal sizes fit, larger ones do not."""
    wide, narrow = symbol("wide"), symbol("narrow")
    x, y = input_("x", "f32", (wide,)), input_("y", "f32", (narrow,))
    part = make("slice", (x,), axis=0, start=0, stop=narrow)
    graph = Graph((x, y), {"z": make("add", (part, y))}, {"wide": (1, 64), "narrow": (1, 64)})
    found = [sizes for (sizes,) in sessions(graph)]
    assert {"wide": 17, "narrow": 17} in found
    assert all(sizes["narrow"] <= sizes["wide"] for sizes in found)
    assert len([play(graph, session) for session in samples(graph)]) == len(found)


def folded(names: str, dims: Any, *shape: Any) -> Graph:
    """A function of an input whose axes are `names`, reshaped to a shape that not all sizes have."""
    x = input_("x", "f32", tuple(map(symbol, names.split())))
    return Graph((x,), {"y": make("reshape", (x,), shape=shape)}, dims)


H, W = symbol("h"), symbol("w")


@pytest.mark.parametrize("of", [2, 3, 5, 7, 11, 32, 96, 480])
@pytest.mark.parametrize("room", ["any", "narrow", "odd"])
def test_sizes_tried_are_the_multiples_that_a_model_takes(of: int, room: str) -> None:
    """Within bounds that are none themselves, and that hold one alone."""
    bounds = {"any": (1, 1000), "narrow": (2 * of - 1, 2 * of + 1), "odd": (of + 1, 5 * of - 1)}[room]
    found = [sizes["h"] for (sizes,) in sessions(folded("h", {"h": bounds}, H / of, of))]
    assert found
    assert all(size % of == 0 and bounds[0] <= size <= bounds[1] for size in found)


def test_sizes_tried_where_several_dims_are_multiples() -> None:
    """Of numbers of their own, the batch, too; and of one number together."""
    dims = {"batch": (1, 64), "h": (10, 500), "w": (10, 500)}
    graph = folded("batch h w", dims, BATCH / 4, 4, H / 7, 7, W / 6, 6)
    found = [sizes for (sizes,) in sessions(graph)]
    assert found
    assert all((s["batch"] % 4, s["h"] % 7, s["w"] % 6) == (0, 0, 0) for s in found)
    assert any(s["h"] != s["w"] for s in found)
    pairs = [
        (s["h"], s["w"]) for (s,) in sessions(folded("h w", {"h": (5, 7), "w": (9, 13)}, H * W / 35, 35))
    ]
    assert set(pairs) == {(7, 10)}


def test_a_model_that_takes_no_sizes_is_not_taken_for_checked() -> None:
    graph = folded("h", {"h": (33, 63)}, H / 32, 32)
    with pytest.raises(LlmcError, match="no sizes within the bounds") as caught:
        samples(graph)
    assert "h in [33, 63]; reshape at x: the size of axis 0, not whole" in str(caught.value.found)
    assert "--dim" in str(caught.value.hint)


def test_a_large_model_with_states_is_tried_with_fewer_rows(monkeypatch: pytest.MonkeyPatch):
    graph = causal()
    usual = [sizes for session in sessions(graph) for sizes in session]
    monkeypatch.setattr(sequences, "_SLOW", 1)
    fewer = [sizes for session in sessions(graph) for sizes in session]
    assert len(fewer) < len(usual)
    assert max(s["seq"] for s in fewer) == max(s["seq"] for s in usual)
