"""Sizes that do not fit each other: refused by a sentence before anything runs, by artifact and interpreter alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ctypes import byref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stateful_graphs import played

import llmc
from llmc.compiler import interpret
from llmc.compiler.constraints import HINT
from llmc.compiler.dims import evaluate, symbol
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.module import Module
from llmc.compiler.ops import input_, make, state_
from llmc.driver import compile_graph
from llmc.errors import LlmcError
from llmc.runtime import native
from llmc.runtime.arrays import tensor_of

SEQ, WIDTH, PAST = (symbol(name) for name in ("seq", "width", "past"))
DIMS = {"seq": (1, 64), "width": (1, 64)}
HERE = Source("encoder.cut", "model.py:7")


def sized(*axes: Any, name: str = "x") -> Node:
    return input_(name, "f32", axes)


def reads(change: Callable[[Node], Node]) -> Graph:
    """A function of `x` [width, 4] and `y` [seq]."""
    x, y = sized(WIDTH, 4), sized(SEQ, name="y")
    return Graph((x, y), {"out": change(x), "same": y}, DIMS)


def cut(x: Node, start: Any, stop: Any) -> Node:
    return make("slice", (x,), HERE, axis=0, start=start, stop=stop)


def ensured(x: Node) -> Node:
    return make("ensure_shape", (x,), HERE, shape=(2 * SEQ - 1, 4))


def looped() -> Graph:
    """`seq - width` times: x + its first row, by a slice that begins at `2*width - seq`."""
    x, y = sized(WIDTH, 4), sized(SEQ, name="y")
    now, table = sized(4, name="now"), sized(WIDTH, 4, name="table")
    row = make("slice", (table,), HERE, axis=0, start=2 * WIDTH - SEQ - 1, stop=2 * WIDTH - SEQ)
    after = make("add", (now, make("reshape", (row,), shape=(4,))))
    body = Graph((now, table), {"after": after})
    first = make("reshape", (make("slice", (x,), axis=0, start=0, stop=1),), shape=(4,))
    loop = make("loop", (first, x), body=body, count=SEQ - WIDTH, carried=1)
    return Graph((x, y), {"out": make("result", (loop,), index=0), "same": y}, DIMS)


def filled() -> tuple[Graph, Graph]:
    """The state `seen` is set, and read by index."""
    seen = state_("seen", "f32", (PAST, 4), grows=0)
    rows, index = sized(SEQ, 4), input_("index", "i64", (SEQ,))
    dims = {"seq": (1, 64), "past": (0, 64)}
    fill = Graph((rows,), {"same": rows}, dims, (seen,), {"seen": rows})
    return fill, Graph((index,), {"out": make("embedding", (seen, index), HERE)}, dims, (seen,))


MODULE = Module(
    {
        "stop": reads(lambda x: cut(x, 0, SEQ)),
        "start": reads(lambda x: cut(x, WIDTH - SEQ, WIDTH)),
        "empty": reads(lambda x: make("iota", (), HERE, length=WIDTH - SEQ)),
        "looped": looped(),
        "ensured": reads(lambda x: make("neg", (ensured(x),))),
        **dict(zip(("fill", "look"), filled(), strict=True)),
    }
)
GOOD = {"seq": 5, "width": 9}
AT = "at encoder.cut: "
BAD = {  # function: sizes, the sentence
    "stop": ({"seq": 9, "width": 5}, f"slice {AT}its stop, seq = 9, is above the size of axis 0, width = 5"),
    "start": ({"seq": 9, "width": 5}, f"slice {AT}its start, -seq + width = -4, is below 0"),
    "empty": ({"seq": 64, "width": 1}, f"iota {AT}the size of axis 0, -seq + width = -63, is below 0"),
    "ensured": (
        {"seq": 9, "width": 5},
        f"ensure_shape {AT}what the size of axis 0 has to be, 2*seq - 1 = 17, is above what it is, width = 5",
    ),
    "looped": (
        {"seq": 60, "width": 5},
        f"slice {AT}its start, -seq + 2*width - 1 = -51, is below 0",
    ),
}


def given(graph: Graph, sizes: Mapping[str, int]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {n.attributes["name"]: [evaluate(d, sizes) for d in n.shape] for n in graph.inputs}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("constraints") / "m.llmc"
    compile_graph(MODULE, path, target="x86-avx2")
    return path


def refused(call: Callable[[], Any]) -> LlmcError:
    with pytest.raises(LlmcError) as caught:
        call()
    assert caught.value.hint == HINT
    return caught.value


@pytest.mark.parametrize("function", BAD)
def test_the_same_sentence(function: str, artifact: Path) -> None:
    sizes, sentence = BAD[function]
    graph = MODULE.functions[function]
    assert refused(lambda: interpret.run(graph, given(graph, sizes))).problem == sentence
    with llmc.load(artifact, threads=1) as model, model.session() as session:
        for call in (
            lambda: session.run(given(graph, sizes), function=function),
            lambda: model.memory_needed(function, **sizes),
        ):
            assert refused(call).problem == sentence
        found = session.run(given(graph, GOOD), function=function)  # and it goes on
    expected = interpret.run(graph, given(graph, GOOD))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_no_run_begins_where_the_caller_asked_for_no_shapes(artifact: Path) -> None:
    """The runtime looks by itself, so a C program that knows all shapes reads nothing beside its inputs either."""
    sizes, sentence = BAD["stop"]
    inputs = given(MODULE.functions["stop"], sizes)
    outputs = [np.zeros((9, 4), np.float32), np.zeros(9, np.float32)]
    with llmc.load(artifact, threads=1) as model, model.session() as session:
        handle, error = session._open_handle(), native.Error()
        tensors = ((native.Tensor * 2)(*(tensor_of(a, "f32") for a in v)) for v in (inputs.values(), outputs))
        options = native.RunOptions()
        number = model.functions["stop"].number
        assert handle.library.session_run(handle.pointer, number, *tensors, byref(options), byref(error))
        assert error.message.decode() == sentence
    assert not outputs[0].any()


def test_an_index_into_a_state_that_holds_nothing(artifact: Path) -> None:
    sentence = f"embedding {AT}the number of rows of its table, past = 0, is below 1"
    index, rows = np.array([0, 7, -3]), given(MODULE.functions["fill"], {"seq": 2})
    look = MODULE.functions["look"]
    assert refused(lambda: interpret.run(look, {"index": index})).problem == sentence
    with llmc.load(artifact, threads=1) as model, model.session() as session:
        call = lambda: session.call("look", index=index)  # noqa: E731
        assert refused(call).problem == sentence
        session.run(rows, function="fill")
        found = call()["out"]
    np.testing.assert_array_equal(
        found, played(MODULE, [("fill", rows), ("look", {"index": index})])[1]["out"]
    )
