"""Functions and states: what the verifier refuses, the text form, and sessions of the interpreter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sympy
from stateful_graphs import (
    BATCH,
    EVERY,
    PAST,
    SEQ,
    WIDTH,
    accumulator,
    causal,
    encoder_decoder,
    normal,
    played,
)

from llmc.compiler import interpret
from llmc.compiler.dims import dim, symbol
from llmc.compiler.equality import equal
from llmc.compiler.graph import Graph, Node
from llmc.compiler.module import Module, State
from llmc.compiler.module_text import parse_module, print_module
from llmc.compiler.ops import input_, make, state_
from llmc.compiler.parse import parse_graph
from llmc.compiler.text import print_graph, weights_of
from llmc.compiler.verify import verify, verify_module
from llmc.errors import LlmcError


def rows(name: str = "rows", length: Any = PAST, **more: Any) -> Node:
    return state_(name, "f32", (length, 4), grows=0, **more)


X = input_("x", "f32", (SEQ, 4))


def graph(*states: Node, **updates: Node) -> Graph:
    return Graph((X,), {"x": X}, {"seq": (1, 9), "past": (0, 20)}, states, updates)


def appended(state: Node, new: Node = X) -> Node:
    return make("append", (state, new))


# --- the verifier


@pytest.mark.parametrize("name", EVERY)
def test_what_is_right_is_accepted(name: str):
    verify_module(Module.of(EVERY[name]()))


def test_a_function_may_begin_anew_or_only_write():
    verify(graph(rows(), rows=X))
    verify(
        replace(
            graph(rows(), rows=appended(rows())),
            outputs={},
            states=(s := rows(),),
            updates={"rows": appended(s)},
        )
    )


def shared(first: Callable[[Node], Node | None], second: Callable[[Node], Node | None]) -> Graph:
    """Two states of one length, updated as said."""
    a, b = rows("a"), rows("b")
    made = {"a": first(a), "b": second(b)}
    return graph(a, b, **{name: node for name, node in made.items() if node is not None})


def other_dims(**dims: tuple[int, int]) -> Graph:
    found = graph(rows(), rows=X)
    return replace(found, dims={**found.dims, **dims})


def appends_to_another() -> Graph:
    a, b = rows("a"), rows("b")
    return graph(a, b, a=appended(b), b=appended(a))


def appends_twice() -> Graph:
    a = rows("a")
    return replace(graph(a, a=appended(a)), outputs={"y": appended(a)})


BREACHES: dict[str, tuple[Callable[[], Graph], str]] = {
    "not listed": (
        lambda: replace(graph(), outputs={"y": rows()}),
        "'rows' is used and not listed in Graph.states",
    ),
    "twice": (lambda: graph(rows(), rows()), "two states are called 'rows'"),
    "another op": (lambda: graph(X), "a graph state is not a `state` node"),
    "no state": (lambda: graph(rows(), other=X), "the next value of 'other' is of no state"),
    "no node": (lambda: graph(rows(), rows=3), "update 'rows' is a int"),  # type: ignore[arg-type]
    "rank": (lambda: graph(rows(), rows=make("reshape", (X,), shape=(SEQ, 2, 2))), "not f32[past, 4]"),
    "dtype": (lambda: graph(rows(), rows=make("cast", (X,), dtype="f16")), "is f16[seq, 4], not f32[seq, 4]"),
    "width": (
        lambda: graph(rows(), rows=make("concat", (X, X), axis=1)),
        "the next value of state 'rows' is f32[seq, 8], not f32[seq, 4]",
    ),
    "fixed": (lambda: graph(state_("s", "f32", (4, 4)), s=X), "is f32[seq, 4], not f32[4, 4]"),
    "no bounds": (lambda: graph(rows(length=symbol("n")), rows=X), "dim 'n' has no bounds"),
    "0 that does not grow": (lambda: other_dims(seq=(0, 9)), "dim 'seq' has bounds 0..9"),
    "below 0": (lambda: other_dims(past=(-1, 9)), "dim 'past' has bounds -1..9"),
    "one of two": (lambda: shared(appended, lambda s: None), "'a' to past + seq, 'b' to past"),
    "unequal": (lambda: shared(appended, lambda s: X), "do not grow together"),
    "elsewhere": (
        lambda: graph(rows(), state_("s", "f32", (2, PAST))),
        "dim 'past' of state 's' grows in state 'rows'",
    ),
    "to another": (appends_to_another, "it is not the next value of state"),
    "twice appended": (appends_twice, "it is not the next value of state 'a'"),
    "to no state": (lambda: replace(graph(), outputs={"y": appended(X)}), "does not append to a state"),
    "unknown dim": (
        lambda: replace(graph(), inputs=(), outputs={"y": make("iota", (), length=SEQ)}, states=(rows(),)),
        "no required input or state has an axis of size 'seq'",
    ),
}


@pytest.mark.parametrize("name", BREACHES)
def test_a_planted_breach_is_caught(name: str):
    build, message = BREACHES[name]
    with pytest.raises(LlmcError) as caught:
        verify(build())
    assert message in str(caught.value)


def functions(first: Graph, second: Graph, name: str = "second") -> Module:
    return Module({"first": first, name: second})


def narrower() -> Graph:
    return Graph((X,), {"x": X}, graph().dims, (state_("rows", "f16", (PAST, 4), grows=0),))


BETWEEN: dict[str, tuple[Callable[[], Module], str]] = {
    "none": (lambda: Module({}), "it has no function"),
    "name": (lambda: functions(graph(), graph(), "a-b"), "'a-b' cannot be the name of a function"),
    "empty name": (lambda: functions(graph(), graph(), ""), "'' cannot be the name of a function"),
    "invalid": (lambda: functions(graph(), graph(X)), "function second"),
    "bounds": (lambda: functions(graph(rows()), other_dims(past=(0, 9))), "0..9, elsewhere 0..20"),
    "type": (lambda: functions(graph(rows()), narrower()), "f16[past, 4], axis 0 grows, elsewhere f32"),
    "growth": (
        lambda: functions(graph(rows(), rows=X), graph(state_("rows", "f32", (4, 4)))),
        "state 'rows' is another in another function",
    ),
    "nobody's size": (
        lambda: Module.of(fixed_alone()),
        "no input of any function gives the size 'batch' of state 's'",
    ),
    "together": (
        lambda: functions(graph(rows("a"), rows("b")), graph(rows("a"), a=X)),
        "states that share the dim 'past' do not grow together",
    ),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_functions_must_agree(name: str):
    build, message = BETWEEN[name]
    with pytest.raises(LlmcError) as caught:
        verify_module(build())
    assert message in str(caught.value)


def test_what_a_module_knows():
    module = encoder_decoder()
    assert list(module.functions) == ["encode", "step"]
    assert list(module.states) == ["cross_keys", "cross_values", "keys", "values"]
    assert module.states["keys"] == State("keys", module.functions["step"].states[0].type, 2)
    assert module.states["keys"].length == "past"
    assert module.states["cross_keys"].length == ""
    assert dict(module.dims) == {"src": (1, 30), "seq": (1, 40), "past": (0, 40)}
    assert Module.of(module) is module
    assert list(Module.of(accumulator()).functions) == ["forward"]


# --- text


@pytest.mark.parametrize("name", EVERY)
def test_round_trip(name: str):
    module = Module.of(EVERY[name]())
    known = {d: w for g in module.functions.values() for d, w in weights_of(g).items()}
    text = print_module(module)
    again = parse_module(text, known)
    assert print_module(again) == text == str(module)
    for function, found in again.functions.items():
        assert equal(found, module.functions[function], sources=True)
        assert equal(parse_graph(str(found), known), found, sources=True)


def test_text_of_states():
    state = rows()
    text = print_graph(graph(state, rows=appended(state)))
    assert '%1 = state() {name="rows", dtype="f32", shape=(past, 4), grows=0} : f32[past, 4]  # rows' in text
    assert text.endswith('return {"x": %0} update {"rows": %2}\n')
    assert "update" not in print_graph(graph(state))


def test_names_may_look_like_text():
    x, state = input_("x", "f32", (4,)), state_("} update {", "f32", (4,))
    odd = Graph((x,), {"} update {": x, "": x}, {}, (state,), {"} update {": x})
    again = parse_graph(print_graph(odd))
    assert list(again.outputs) == ["} update {", ""]
    assert list(again.updates) == ["} update {"]


def test_graphs_that_differ_in_states_are_not_equal():
    state = rows()
    assert not equal(graph(state, rows=appended(state)), graph(state, rows=X))
    assert not equal(graph(state, rows=X), graph(state))


def test_a_text_without_functions_is_one():
    assert list(parse_module(print_graph(accumulator())).functions) == ["forward"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text has no function"),
        ("function f\ndims", "the graph has no `return` line"),
        ("function f\nreturn {}\nfunction f\nreturn {}", "function f is defined twice"),
        ("function f\nreturn {} update", "not a list of outputs"),
        ("function f\nreturn {}\nreturn {}", "text after the `return` line"),
        ('function f\nreturn {} update {"a": %1}', "%1 is not defined above"),
    ],
)
def test_malformed_modules(text: str, message: str):
    with pytest.raises(LlmcError) as caught:
        parse_module(text)
    assert message in str(caught.value)


# --- the interpreter


def test_an_accumulator_adds():
    x = normal(1, 3, 2, 8)
    found = played(accumulator(), [("forward", {"x": part}) for part in x])
    for outputs, sums in zip(found, np.cumsum(x, 0), strict=True):
        np.testing.assert_allclose(outputs["twice"], 2 * sums, rtol=1e-6)


@pytest.mark.parametrize("batch", [1, BATCH])
@pytest.mark.parametrize("cuts", [(9,), (5, 1, 3), (1,) * 9])
def test_a_causal_layer_in_parts_is_one_pass(batch: Any, cuts: tuple[int, ...]):
    layer = causal(batch)
    x = normal(2, 1 if batch == 1 else 2, 9, WIDTH)
    whole = interpret.run(layer, {"x": x})["y"]
    parts = np.split(x, np.cumsum(cuts)[:-1], axis=1)
    found = played(layer, [("forward", {"x": part}) for part in parts])
    np.testing.assert_allclose(np.concatenate([f["y"] for f in found], 1), whole, rtol=1e-6, atol=1e-6)


def test_two_functions_share_states():
    module = encoder_decoder()
    text, x = normal(3, 1, 7, WIDTH), normal(4, 1, 6, WIDTH)
    whole = played(module, [("encode", {"text": text}), ("step", {"x": x})])
    calls = [("encode", {"text": text}), ("step", {"x": x[:, :4]}), ("step", {"x": x[:, 4:]})]
    parts = played(module, calls)
    joined = np.concatenate([parts[1]["y"], parts[2]["y"]], 1)
    np.testing.assert_allclose(joined, whole[1]["y"], rtol=1e-6, atol=1e-6)
    assert not np.array_equal(
        whole[1]["y"], played(module, [calls[0], calls[0], ("step", {"x": 2 * x})])[2]["y"]
    )


def test_states_of_other_functions_pass_through():
    keys = np.ones((1, 2), np.float32)
    _, states = interpret.step(accumulator(), {"x": normal(1, 1, 8)}, {"keys": keys})
    assert states["keys"] is keys
    assert set(states) == {"keys", "total"}


def test_next_values_share_no_memory():
    x = normal(1, 3, 4)
    _, states = interpret.step(graph(rows(), rows=X), {"x": x}, {})
    assert not np.shares_memory(states["rows"], x)


def fixed_alone() -> Graph:
    """Nothing but the state itself knows its batch."""
    state = state_("s", "f32", (BATCH, 4))
    return Graph((), {"y": make("neg", (state,))}, {"batch": (1, 4)}, (state,))


REFUSED: dict[str, tuple[Callable[[], Graph], dict[str, Any], dict[str, Any], str]] = {
    "too long": (
        lambda: graph(s := rows(), rows=appended(s)),
        {"x": normal(1, 9, 4)},
        {"rows": normal(1, 12, 4)},
        "state 'rows' would have past = 21",
    ),
    "dtype": (
        lambda: graph(s := rows(), rows=appended(s)),
        {"x": normal(1, 9, 4)},
        {"rows": np.zeros((1, 4))},
        "state 'rows' has dtype float64",
    ),
    "width": (
        lambda: graph(s := rows(), rows=appended(s)),
        {"x": normal(1, 9, 4)},
        {"rows": normal(1, 1, 5)},
        "state 'rows' has size 5 on axis 1, not 4",
    ),
    "batch": (accumulator, {"x": normal(1, 2, 8)}, {"total": normal(1, 3, 8)}, "batch = 2, another has 3"),
    "unknown": (fixed_alone, {}, {}, "state 's' has no size batch yet"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_calls(name: str):
    build, inputs, states, message = REFUSED[name]
    with pytest.raises(LlmcError) as caught:
        interpret.step(build(), inputs, states)
    assert message in str(caught.value)
    assert caught.value.hint


def test_inputs_may_have_axes_that_are_sums():
    mask = input_("mask", "i64", (BATCH, PAST + SEQ), default=1, low=0, high=1)
    layer = causal(BATCH)
    y = make("add", (layer.outputs["y"], make("cast", (make("sum", (mask,), axes=(0, 1)),), dtype="f32")))
    masked = replace(layer, inputs=(*layer.inputs, mask), outputs={"y": y})
    verify(masked)
    x = normal(5, 1, 3, WIDTH)
    (_, second) = played(masked, [("forward", {"x": x}), ("forward", {"x": x})])
    given = {"x": x, "mask": np.ones((1, 6), np.int64)}
    np.testing.assert_array_equal(
        second["y"], played(masked, [("forward", {"x": x}), ("forward", given)])[1]["y"]
    )
    with pytest.raises(LlmcError, match="has size 5 on axis 1, not 6"):
        played(masked, [("forward", {"x": x}), ("forward", {**given, "mask": given["mask"][:, :5]})])


@pytest.mark.parametrize(
    ("start", "stop", "found"),
    [
        (0, 1, "0 to 1 of past: 0 to 1 of 0 where past = 0"),  # would read what was there before a reset
        (1, symbol("past"), "1 to past of past: 1 to 0 of 0 where past = 0"),
    ],
)
def test_slices_lie_inside_an_empty_state(start, stop, found):
    seen = state_("seen", "f32", (symbol("past"), 4), grows=0)
    first = make("slice", (seen,), axis=0, start=start, stop=stop)
    with pytest.raises(LlmcError, match="a slice reaches outside when a session begins") as caught:
        verify(Graph((), {"first": first}, {"past": (0, 8)}, (seen,)))
    assert caught.value.found == found


def test_a_state_begins_with_nothing():
    seen = state_("seen", "f32", (symbol("past"), 4), grows=0)
    with pytest.raises(LlmcError, match="dim 'past', along which a state grows, is at least 2"):
        verify(Graph((), {"seen": seen}, {"past": (2, 8)}, (seen,)))


def test_the_last_rows_of_a_state_need_an_input_as_long():
    past, seq = symbol("past"), symbol("seq")
    x, seen = input_("x", "f32", (seq, 4)), state_("seen", "f32", (past, 4), grows=0)
    rows = make("concat", (seen, x), axis=0)
    two = make("slice", (rows,), axis=0, start=dim(past + seq - 2), stop=dim(past + seq))
    some = make("slice", (rows,), axis=0, start=dim(sympy.Max(0, past + seq - 2)), stop=dim(past + seq))

    def graph(last, least):
        return Graph((x,), {"y": last}, {"seq": (least, 8), "past": (0, 8)}, (seen,), {"seen": rows})

    verify(graph(two, 2))
    verify(graph(some, 1))
    with pytest.raises(LlmcError, match="a slice reaches outside when a session begins"):
        verify(graph(two, 1))
