"""What the self-test of an artifact accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stateful_graphs

from llmc.compiler import interpret
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Source, Weight
from llmc.compiler.module import Module
from llmc.compiler.ops import constant, input_, make, state_
from llmc.driver import compile_graph
from llmc.errors import LlmcError
from llmc.runtime.selftest import Case
from llmc.selfcheck import TOLERANCE, answers, played_alone, record, replayed


@pytest.mark.parametrize(("factor", "share"), [(0.1, None), (1000.0, 1e-4)])
def test_answers_are_held_to_the_largest(factor: float, share: float | None, tmp_path: Path) -> None:
    """A logit near 0 beside others of 30 is off by what these are rounded by."""
    x = input_("x", "f32", (symbol("batch"), 8))
    scaled = make("mul", (x, constant(np.float32(factor))))
    module = Module.of(Graph((x,), {"logits": scaled}, {"batch": (1, 4)}))
    cases = answers(module)
    most = max(float(np.abs(v).max()) for case in cases for call in case for v in call.outputs.values())

    accepted = record(tmp_path, module, cases, cases, "0" * 64)

    assert accepted["rtol"] == TOLERANCE["rtol"]
    assert accepted["atol"] == pytest.approx(TOLERANCE["atol"] if share is None else share * most)


def test_a_large_output_does_not_excuse_a_small_one(tmp_path: Path) -> None:
    x = input_("x", "f32", (symbol("batch"), 8))
    outputs = {
        name: make("mul", (x, constant(np.float32(f)))) for name, f in (("small", 0.1), ("large", 1e7))
    }
    module = Module.of(Graph((x,), outputs, {"batch": (1, 4)}))
    cases = answers(module)

    assert record(tmp_path, module, cases, cases, "0" * 64) == TOLERANCE


def test_what_a_trail_tries_serves_the_artifact_too() -> None:
    """Of a function alone whose states begin empty, the interpreter plays one set of sessions, not two."""
    module = Module.of(stateful_graphs.causal(), "step")
    alone = played_alone(module)
    cases = answers(module, alone)
    assert [len(case) for case in cases] == [3, 3, 1]
    for same in (replayed(module, cases), replayed(module, cases, alone)):
        for case, other in zip(cases, same, strict=True):
            for call, again in zip(case, other, strict=True):
                assert call.function == again.function == "step"
                np.testing.assert_array_equal(call.outputs["y"], again.outputs["y"])


def test_other_modules_have_sessions_of_their_own() -> None:
    x = input_("x", "f32", (symbol("batch"), 8))
    assert played_alone(Module.of(Graph((x,), {"y": make("neg", (x,))}, {"batch": (1, 4)}))) == []
    assert played_alone(stateful_graphs.encoder_decoder()) == []
    assert played_alone(Module.of(stateful_graphs.accumulator())) == []


def test_a_source_of_one_size_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whisper's encoder takes the interpreter seconds, and sessions begin with the same 30 s of sound."""
    seq, length = symbol("seq"), symbol("past")
    x, y = input_("x", "f32", (4,)), input_("y", "f32", (seq, 4))
    source, text = state_("source", "f32", (4,)), state_("text", "f32", (length, 4), grows=0)
    encode = Graph((x,), {}, {}, (source,), {"source": make("neg", (x,))})
    held = make("concat", (text, make("add", (y, source))), axis=0)
    dims = {"seq": (1, 99), "past": (0, 99)}
    step = Graph(
        (y,), {"sum": make("sum", (held,), axes=(0,), keepdims=False)}, dims, (source, text), {"text": held}
    )
    module, played, real = Module({"encode": encode, "step": step}), list[Graph](), interpret.step

    def counted(graph: Graph, *given: Any) -> Any:
        played.append(graph)
        return real(graph, *given)

    monkeypatch.setattr(interpret, "step", counted)
    cases = answers(module)
    assert [call.function for case in cases for call in case[:2]] == ["encode", "step"] * 3
    assert played.count(encode) == 1
    for case, other in zip(cases, [played_again(module, case) for case in cases], strict=True):
        for call, again in zip(case, other, strict=True):
            assert call.outputs.keys() == again.keys()
            assert all(np.array_equal(value, again[name]) for name, value in call.outputs.items())


def played_again(module: Module, case: Case) -> list[dict[str, Any]]:
    """The outputs of a session's calls, one after the other."""
    states: dict[str, Any] = {}
    found = []
    for call in case:
        outputs, states = interpret.step(module.functions[call.function], call.inputs, states)
        found.append(outputs)
    return found


def test_a_function_that_no_session_calls_is_told() -> None:
    """One of several that takes no sizes within its bounds would be in no self-test."""
    size, count = symbol("size"), symbol("count")
    x, y = input_("x", "f32", (size, 4)), input_("y", "f32", (count,))
    total = state_("total", "f32", (4,))
    kept = make("sum", (x,), axes=(0,), keepdims=False)
    after = make("add", (total, kept))
    fine = Graph((x,), {"sum": after}, {"size": (1, 8)}, (total,), {"total": after})
    row = make(
        "add",
        (make("slice", (make("reshape", (y,), shape=(count / 32, 32)),), axis=1, start=0, stop=4), total),
    )
    never = Graph((y,), {"row": row}, {"count": (33, 63)}, (total,), {})
    with pytest.raises(LlmcError, match="takes a call of 'never', so that it cannot be checked"):
        answers(Module({"fine": fine, "never": never}))


def stack(*factors: float) -> Graph:
    """Products of 64 columns, one after the other, of weights times `factors`."""
    rng = np.random.default_rng(7)
    x = y = input_("x", "f32", (symbol("batch"), 64))
    for number, factor in enumerate(factors):
        w = (rng.standard_normal((64, 64)) * factor).astype(np.float32)
        y = make("linear", (y, constant(Weight(w, f"w{number}"))), Source(f"layer.{number}"))
    return Graph((x,), {"y": y}, {"batch": (1, 8)})


@pytest.mark.parametrize("options", [{}, {"quant": "int8"}, {"quant": "w8", "calib": True}], ids=str)
def test_values_that_overflow_are_the_models_own(options: dict[str, Any], tmp_path: Path) -> None:
    """The layer is named, and no pass or kernel of llmc: whichever comes first to see that answers differ."""
    scales = (0.1, 1e12, 1e13, 1e13) if not options else (1e30, 1e30, 1e30)
    if options.get("calib"):
        np.savez(tmp_path / "s.npz", x=np.random.default_rng(1).standard_normal((32, 64), np.float32))
        options = {**options, "calib": tmp_path / "s.npz"}
    with pytest.raises(LlmcError, match="the model's own values are beyond what float32 holds") as caught:
        compile_graph(stack(*scales), tmp_path / "m.llmc", **options)
    assert str(caught.value.at).startswith("layer.")
    assert "values up to" in str(caught.value.found)
    assert "fault of llmc" not in str(caught.value)
