"""The text form: printing, parsing back, equality, messages."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.compiler.dims import symbol
from llmc.compiler.equality import equal, same_value
from llmc.compiler.graph import DTYPES, Graph, Source, Weight
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.parse import parse_graph
from llmc.compiler.text import print_graph, weights_of
from llmc.errors import LlmcError

SEQ = symbol("seq")

EXAMPLE = """\
dims batch=1..8, seq=1..512
%0 = input() {name="ids", dtype="i64", shape=(batch, seq), low=0, high=29} : i64[batch, seq]  # ids
%w0 = constant() {value=weight("table", "DIGEST")} : f32[30, 4]  # table
%1 = embedding(%w0, %0) : f32[batch, seq, 4]  # embeddings (model.py:7)
%w1 = constant() {value=tensor("", "f32", (4,), (1.0, nan, -inf, -0.0))} : f32[4]
%2 = mul(%1, %w1) : f32[batch, seq, 4]  # embeddings (model.py:8)
%3 = slice(%2) {axis=1, start=0, stop=seq, step=2} : f32[batch, floor(seq/2 + 1/2), 4]
return {"hidden": %3, "sum of all": %2}
"""


def example() -> tuple[str, dict[str, Weight]]:
    table = Weight(np.arange(120, dtype=np.float32).reshape(30, 4), "table")
    return EXAMPLE.replace("DIGEST", table.digest[:16]), {table.digest: table}


def round_trip(graph: Graph) -> Graph:
    text = print_graph(graph)
    again = parse_graph(text, weights_of(graph))
    assert print_graph(again) == text
    assert equal(graph, again)
    return again


def test_example_is_read_and_printed_exactly():
    text, weights = example()
    graph = parse_graph(text, weights)
    assert print_graph(graph) == text
    assert str(graph) == text
    assert graph.outputs["hidden"].inputs[0].source == Source("embeddings", "model.py:8")
    assert graph.dims["seq"] == (1, 512)
    assert list(weights_of(graph)) == [
        next(iter(weights)),
        graph.outputs["sum of all"].inputs[1].attributes["value"].digest,
    ]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_graphs_round_trip(random_graph, seed: int):
    graph, _ = random_graph(seed)
    assert equal(graph, round_trip(graph), sources=True)


SCALARS = st.one_of(st.floats(width=32), st.integers(-(2**63), 2**63 - 1), st.booleans())


@settings(max_examples=100, deadline=None)
@given(
    name=st.text(min_size=1, max_size=20),
    path=st.text(max_size=20),
    line=st.text(max_size=10),
    values=st.lists(st.floats(width=32), max_size=9),
    number=SCALARS,
)
def test_any_text_and_number_round_trips(name, path, line, values, number):
    x = input_(name, "f32", (SEQ, len(values)))
    y = make("add", (x, constant(Weight(np.array(values, np.float32), name))), Source(path, line))
    z = make("full", (), shape=(), value=number, dtype="f32")
    round_trip(Graph((x,), {name: y, name + "2": z}, {"seq": (1, 9)}))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 2), (9,), (2, 3, 4)])
def test_constants_of_every_dtype_round_trip(dtype: str, shape: tuple[int, ...]):
    values = (np.random.default_rng(1).normal(size=shape) * 50).astype(
        DTYPES[dtype] if dtype != "u8" else np.int8
    )
    graph = Graph((), {"y": constant(Weight(values.astype(DTYPES[dtype]), "w"))})
    again = round_trip(graph).outputs["y"].attributes["value"]
    assert again.digest == graph.outputs["y"].attributes["value"].digest
    assert again.name == "w"


def test_unusual_nan_keeps_its_bits():
    bits = np.array([0x7FC00001, 0xFFC00000], np.uint32).view(np.float32)
    graph = Graph((), {"y": constant(Weight(bits))})
    again = round_trip(graph).outputs["y"].attributes["value"].array
    assert again.tobytes() == bits.tobytes()


def test_tied_weights_keep_their_names():
    values = np.ones((3, 4), np.float32)
    pair = make("add", (constant(Weight(values, "one")), constant(Weight(values.copy(), "two"))))
    text = print_graph(Graph((), {"y": pair}))
    assert '"one"' in text
    assert '"two"' in text
    round_trip(Graph((), {"y": pair}))


def test_fused_ops_round_trip():
    x = input_("x", "f32", (SEQ, 8))
    body = (("gelu", (0,), (("approximate", "tanh"),)), ("cast", (-1,), (("dtype", "i32"),)))
    chain = make("chain", (x,), body=body)
    three = make("reshape", (x,), shape=(1, SEQ, 8))
    mha = make("mha", (three,) * 3, heads=2, head_dim=4, scale=0.1 + 0.2, offsets=(0, 0, 0))
    again = round_trip(Graph((x,), {"chain": chain, "mha": mha}, {"seq": (1, 9)}))
    assert again.outputs["chain"].attributes["body"] == body
    assert again.outputs["mha"].attributes["scale"] == 0.1 + 0.2


def test_hand_written_text_may_leave_out_types_and_hold_comments():
    graph = parse_graph('# a comment\n\n  %a = full() {shape=(), value=1, dtype="i64"}\n  return {"y": %a}\n')
    assert str(graph.outputs["y"].type) == "i64[]"


BREACHES = [
    ("%1 = embedding", "%1 = embeding", 4, "no op 'embeding'"),
    ("embedding(%w0, %0)", "embedding(%w0, %9)", 4, "%9 is not defined above"),
    ("embedding(%w0, %0)", "embedding(%0, %w0)", 4, "the index has dtype f32"),
    ("embedding(%w0, %0)", "embedding %w0, %0", 4, "not a node"),
    (
        ": f32[batch, seq, 4]  # embeddings (model.py:7)",
        ": f32[batch, seq, 5]",
        4,
        "the type is f32[batch, seq, 4]",
    ),
    (": f32[batch, seq, 4]  # embeddings (model.py:7)", ": f32[batch, seq*]", 4, "not an expression"),
    ("%2 = mul", "%1 = mul", 6, "%1 is defined twice"),
    ("axis=1, ", "", 7, "'axis' is missing"),
    ("axis=1, ", "axis=, ", 7, "not an expression"),
    ("axis=1, ", "axis=[1], ", 7, "not a dimension"),
    ("axis=1, ", 'axis=-"a", ', 7, "not a dimension"),
    ("axis=1, ", "axis=b'a', ", 7, "not a node"),
    ("axis=1, ", "axis=1j, ", 7, "not a dimension"),
    ("axis=1, ", "axis=(1, 2), ", 7, "axis (1, 2) is not in 0..2"),
    ('"hidden": %3', '"hid\\qden": %3', 8, "not a list of outputs"),
    ('"hidden": %3', '"hid\\uden": %3', 8, "not an expression"),
    ("axis=1, ", "ax=1, ", 7, "no attribute 'ax'"),
    ("(1.0, nan, -inf, -0.0)", "(1.0, nan)", 5, "not a tensor"),
    ('weight("table", "', 'weight("table", "0', 3, "no weight with digest"),
    ("batch=1..8", "batch=1-8", 1, "not a dim with bounds"),
    ('"hidden": %3', '"hidden" %3', 8, "not a list of outputs"),
    ('"hidden": %3', '"hidden": %33', 8, "%33 is not defined"),
    ("%2}\n", "%2}\n%4 = neg(%3)\n", 9, "after the `return` line"),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), BREACHES)
def test_malformed_text_names_the_line(old: str, new: str, line: int, message: str):
    text, weights = example()
    assert old in text
    with pytest.raises(LlmcError) as caught:
        parse_graph(text.replace(old, new, 1), weights)
    assert message in str(caught.value)
    assert caught.value.at == f"line {line}"


def test_text_without_return():
    with pytest.raises(LlmcError, match="no `return` line"):
        parse_graph("dims\n")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_text_never_crashes(data):
    text, weights = example()
    at = data.draw(st.integers(0, len(text) - 1))
    length = data.draw(st.integers(0, 3))
    damaged = text[:at] + data.draw(st.text(max_size=3)) + text[at + length :]
    with contextlib.suppress(LlmcError):
        print_graph(parse_graph(damaged, weights))


# --- equality


def test_equal_sees_each_difference():
    text, weights = example()
    graph = parse_graph(text, weights)
    assert equal(graph, parse_graph(text, weights), sources=True)
    for old, new in [
        ("seq=1..512", "seq=1..511"),
        ("high=29", "high=28"),
        ("(1.0, nan", "(2.0, nan"),
        ("-0.0", "0.0"),
        ("mul(", "sub("),
        ('"hidden"', '"state"'),
        ("(%1, %w1)", "(%w1, %1)"),
        ('"sum of all": %2', '"sum of all": %1'),
    ]:
        assert old in text
        assert not equal(graph, parse_graph(text.replace(old, new), weights)), old
    other = parse_graph(text.replace("model.py:8", "model.py:9"), weights)
    assert equal(graph, other)
    assert not equal(graph, other, sources=True)


def test_equal_sees_sharing():
    x = input_("x", "f32", (2,))
    one, other = make("neg", (x,)), make("neg", (x,))
    shared, split = Graph((x,), {"y": make("add", (one, one))}), Graph((x,), {"y": make("add", (one, other))})
    assert not equal(shared, split)
    assert not equal(split, shared)


def test_same_value_is_strict():
    assert not same_value(1, True)
    assert not same_value(1, 1.0)
    assert not same_value(0.0, -0.0)
    assert same_value(float("nan"), float("nan"))
    assert same_value((1, ("a", SEQ + 1)), (1, ("a", 1 + SEQ)))
    assert not same_value((1,), (1, 2))


def test_a_source_without_a_path_is_read_as_it_was() -> None:
    """It is a line of code alone, which the artifact's steps are named by."""
    x = input_("x", "f32", (2,))
    graph = Graph((x,), {"y": make("neg", (x,), Source("", "model.py:7"))}, {})
    (read,) = (node for node in parse_graph(print_graph(graph), {}).nodes if node.op == "neg")
    assert read.source == Source("", "model.py:7")
