"""Modules with states through every stage to machine code, call after call against the interpreter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from company import in_company
from stateful_graphs import (
    BATCH,
    PAST,
    SEQ,
    WIDTH,
    Calls,
    accumulator,
    causal,
    encoder_decoder,
    normal,
    played,
)

import llmc
from llmc.compiler.dims import dim
from llmc.compiler.graph import Graph
from llmc.compiler.module import Module
from llmc.compiler.ops import constant, input_, make, state_
from llmc.driver import compile_graph
from llmc.errors import LlmcError
from llmc.runtime.selftest import read_selftest
from llmc.selfcheck import answers, record

FORWARD = "forward"


def check(path: Path, module: Graph | Module, calls: Calls, threads: int = 1) -> None:
    """Every call of a session as the interpreter says, within 1e-5 of an output's scale."""
    with llmc.load(path, threads=threads) as model, model.session() as session:
        for number, ((name, inputs), expected) in enumerate(zip(calls, played(module, calls), strict=True)):
            found = session.run(inputs, function=name)
            for output, value in expected.items():
                assert found[output].shape == value.shape
                scale = float(np.abs(value).max(initial=0)) or 1.0
                what = f"{output} of call {number}"
                np.testing.assert_allclose(found[output], value, rtol=0, atol=1e-5 * scale, err_msg=what)


def xs(*rows: int, batch: int = 1) -> list[tuple[str, dict[str, Any]]]:
    return [(FORWARD, {"x": normal(i, batch, n, WIDTH)}) for i, n in enumerate(rows)]


@pytest.mark.parametrize("level", [0, 3])
def test_an_accumulator(level: int, tmp_path: Path) -> None:
    compile_graph(accumulator(), tmp_path / "m.llmc", level=level)
    check(tmp_path / "m.llmc", accumulator(), [(FORWARD, {"x": normal(i, 3, 8)}) for i in range(4)])


@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize("batch", [1, BATCH], ids=["one", "batches"])
def test_a_causal_layer(level: int, batch: Any, tmp_path: Path) -> None:
    layer, size = causal(batch), 1 if batch == 1 else 2
    compile_graph(layer, tmp_path / "m.llmc", level=level)
    check(tmp_path / "m.llmc", layer, xs(5, 1, 3, 1, batch=size))
    check(tmp_path / "m.llmc", layer, xs(17, 1, 22, batch=size), threads=2)
    whole = normal(7, size, 9, WIDTH)
    with llmc.load(tmp_path / "m.llmc") as model, model.session() as session:
        at_once = np.array(session.run({"x": whole})["y"])
        session.reset()
        parts = [np.array(session.run({"x": part})["y"]) for part in np.split(whole, [5, 6], axis=1)]
    np.testing.assert_allclose(np.concatenate(parts, 1), at_once, rtol=0, atol=2e-6)
    if batch == 1:
        in_company(tmp_path / "m.llmc", lambda s, call, rows: {"x": normal(100 * s + call, 1, rows, WIDTH)})
    else:
        with llmc.load(tmp_path / "m.llmc") as model:
            single = model.functions[FORWARD].single
        assert single == "input x has no rows side by side, its shape is f32[batch, seq, 32]"


def test_two_functions(tmp_path: Path) -> None:
    module = encoder_decoder()
    compile_graph(module, tmp_path / "m.llmc")
    text = ("encode", {"text": normal(9, 1, 7, WIDTH)})
    steps = [("step", inputs) for _, inputs in xs(5, 1, 3)]
    check(tmp_path / "m.llmc", module, [text, *steps])
    with llmc.load(tmp_path / "m.llmc") as model:
        assert list(model.functions) == ["encode", "step"]
        assert {name: info.grows for name, info in model.states.items()} == {
            "cross_keys": None,
            "cross_values": None,
            "keys": 0,
            "values": 0,
        }
        assert model.functions["step"].states == {
            "cross_keys": "read",
            "cross_values": "read",
            "keys": "appended",
            "values": "appended",
        }
        assert model.functions["encode"].states == {"cross_keys": "replaced", "cross_values": "replaced"}


def test_weights_of_two_functions_are_stored_once(tmp_path: Path) -> None:
    """`step` has all of the layer's, and w21, which `encode` has too."""
    parts = {
        "both": encoder_decoder(),
        "encode": encoder_decoder().functions["encode"],
        "layer": causal(seed=30),
    }
    sizes = {
        n: compile_graph(g, tmp_path / n, only_passes="").sizes["weights.bin"] - 4096
        for n, g in parts.items()
    }
    assert sizes["both"] == sizes["encode"] + sizes["layer"]


def test_inputs_may_have_axes_that_are_sums(tmp_path: Path) -> None:
    layer = causal()
    mask = input_("mask", "i64", (1, dim(PAST + SEQ)), default=1, low=0, high=1)
    seen = make("cast", (make("sum", (mask,), axes=(0, 1)),), dtype="f32")
    masked = replace(layer, inputs=(*layer.inputs, mask), outputs={"y": layer.outputs["y"], "seen": seen})
    compile_graph(masked, tmp_path / "m.llmc")
    (first, second) = xs(5, 2)
    given = {**second[1], "mask": np.array([[1, 0, 1, 0, 1, 1, 1]])}
    check(tmp_path / "m.llmc", masked, [first, (FORWARD, given), second])


def empty_readers() -> Graph:
    """All sorts of reads of a state that holds nothing at first."""
    x, state = input_("x", "f32", (SEQ, 8)), state_("s", "f32", (PAST, 8), grows=0)
    heads = make("reshape", (state,), shape=(1, PAST, 1, 8))
    keys = make("transpose", (heads,), perm=(0, 2, 1, 3))
    queries = make("reshape", (x,), shape=(1, 1, SEQ, 8))
    weight = constant(normal(3, 4, 8), "w")
    outputs = {
        "sum": make("sum", (state,), axes=(0,), keepdims=False),
        "max": make("max", (make("concat", (state, x), axis=0),), axes=(0,), keepdims=False),
        "attention": make("attention", (queries, keys, keys), scale=0.3),
        "concat": make("concat", (x, make("neg", (state,)), x), axis=0),
        "linear": make("linear", (state, weight)),
        "softmax": make("softmax", (state,), axis=1),
        "norm": make("layer_norm", (state,), eps=1e-5, has_weight=False, has_bias=False),
        "state": state,
        "transposed": make("transpose", (state,), perm=(1, 0)),
        "matmul": make("matmul", (x, make("transpose", (state,), perm=(1, 0)))),
        "products": make("matmul", (make("transpose", (state,), perm=(1, 0)), state)),
        "slice": make("slice", (state,), axis=0, start=0, stop=PAST),
        "expand": make("expand", (make("reshape", (state,), shape=(PAST, 1, 8)),), shape=(PAST, 3, 8)),
        "cumsum": make("cumsum", (state,), axis=0),
        "any": make("any", (make("gt", (state, constant(np.float32(0)))),), axes=(0,), keepdims=False),
    }
    return Graph((x,), outputs, {"seq": (1, 9), "past": (0, 40)}, (state,), {"s": make("append", (state, x))})


@pytest.mark.parametrize("level", [0, 3])
def test_what_reads_nothing(level: int, tmp_path: Path) -> None:
    graph = empty_readers()
    compile_graph(graph, tmp_path / "m.llmc", level=level)
    calls = [(FORWARD, {"x": normal(i, n, 8)}) for i, n in enumerate((3, 1, 2))]
    assert played(graph, calls[:1])[0]["attention"].any() == 0
    check(tmp_path / "m.llmc", graph, calls)
    check(tmp_path / "m.llmc", graph, calls, threads=2)


def test_the_selftest_is_of_sessions(tmp_path: Path) -> None:
    compile_graph(encoder_decoder(), tmp_path / "m.llmc")
    _, cases = read_selftest(tmp_path / "m.llmc" / "selftest.bin")
    assert [[call.function for call in case] for case in cases[:2]] == [
        ["encode", "step", "step", "step"]
    ] * 2
    assert [call.inputs["x"].shape[:2] for call in cases[0][1:]] == [(1, 5), (1, 1), (1, 3)]
    assert [call.inputs["x"].shape[1] for call in cases[1][1:]] == [17, 1, 2]
    with llmc.load(tmp_path / "m.llmc") as model:
        assert model.selftest().passed


def test_a_state_that_is_not_kept_fails_the_selftest(tmp_path: Path) -> None:
    """The second call of a session shows it: the artifact is not written."""
    graph = accumulator()
    forgetful = replace(graph, updates={"total": graph.inputs[0]})
    compile_graph(forgetful, tmp_path / "m.llmc")
    folder = tmp_path / "m.llmc"
    with llmc.load(folder) as model:
        build_id = model.manifest.build_id
        module = Module.of(graph)
        record(folder, module, answers(module), answers(module), build_id)
        result = model.selftest()
    assert not result.passed
    assert all("call 0" not in failure for failure in result.failures)


def test_functions_without_states(tmp_path: Path) -> None:
    x = input_("x", "f32", (BATCH, 4))
    module = Module(
        {
            "double": Graph((x,), {"y": make("add", (x, x))}, {"batch": (1, 9)}),
            "square": Graph((x,), {"y": make("mul", (x, x))}, {"batch": (1, 9)}),
        }
    )
    compile_graph(module, tmp_path / "m.llmc")
    values = normal(1, 3, 4)
    with llmc.load(tmp_path / "m.llmc") as model:
        np.testing.assert_array_equal(model(x=values)["y"], values + values)
        with model.session() as session:
            np.testing.assert_array_equal(session.call("square", x=values)["y"], values * values)


def test_kept_files_have_every_function(tmp_path: Path) -> None:
    compile_graph(encoder_decoder(), tmp_path / "m.llmc", keep=tmp_path / "kept")
    text = (tmp_path / "kept" / "optimised.txt").read_text()
    assert text.count("\nfunction ") + text.startswith("function ") == 2
    assert "append(" in text
    program = (tmp_path / "kept" / "module.c").read_text()
    assert "run_encode" in program
    step = program[program.index("static void run_step") :]
    assert step.count("memcpy") == step.count("if (f->n_parts > 1)") == 2  # keys and values, in company


def test_refused_modules(tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match="it has no function"):
        compile_graph(Module({}), tmp_path / "m.llmc")
    graph = accumulator()
    with pytest.raises(LlmcError, match="is used and not listed"):
        compile_graph(replace(graph, states=()), tmp_path / "m.llmc")
    with pytest.raises(
        LlmcError, match="no input of any function gives the size 'src' of state 'cross_keys'"
    ):
        compile_graph(encoder_decoder().functions["step"], tmp_path / "m.llmc")
    with pytest.raises(LlmcError, match="does not calibrate functions that have states"):
        compile_graph(causal(), tmp_path / "m.llmc", quant="int8-static", calib="auto")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("quant", ["int8", "fp16"])
def test_quantised(quant: str, tmp_path: Path) -> None:
    """The self-test, which is of sessions, has passed."""
    report = compile_graph(causal(), tmp_path / "m.llmc", quant=quant)
    assert report.pipeline.startswith("append,")


def test_verify_each(tmp_path: Path) -> None:
    said: list[str] = []
    compile_graph(encoder_decoder(), tmp_path / "m.llmc", verify_each=True, say=said.append)
    assert any(line.startswith("fuse: ") and "promised close(1e-05)" in line for line in said)
