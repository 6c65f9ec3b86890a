"""`ragged` and `blank`: the packed form of an encoder, every way of writing one, and what must stay whole."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from random_encoders import Encoder

from llmc.compiler import interpret
from llmc.compiler.dims import symbol
from llmc.compiler.equality import equal
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.parse import parse_graph
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.rewrite import recording
from llmc.compiler.text import print_graph, weights_of
from llmc.passes import LEVELS, PASSES
from llmc.passes.rows.blank import Blank
from llmc.passes.rows.ragged import Ragged, ragged_steps

PLAIN = {"linear": "whole", "norm": "post", "sum": "ab", "attention": "explicit", "activation": "gelu"}
PLAIN |= {"positions": "buffer", "scale": "div", "bias": "no", "mask": "fill"}
O3 = Pipeline.parse(LEVELS[3], PASSES)
BLANK = Blank("mask")
MASKS = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]])
B, S = symbol("batch"), symbol("seq")


def encoder(seed: int = 5, **ways: str) -> Graph:
    """Written as PLAIN but for `ways`, after -O3; drawn from the seed if that is given."""
    return O3.run(Encoder(seed, **({**PLAIN, **ways} if seed == 5 else ways)).graph())[0]


def inputs(mask: np.ndarray[Any, Any] = MASKS) -> dict[str, Any]:
    return {"ids": np.random.default_rng(0).integers(0, 23, mask.shape), "mask": mask}


def ops(graph: Graph) -> Counter[str]:
    return Counter(n.op for n in graph.nodes)


def test_an_encoder(golden, same_output):
    golden(same_output(Ragged(), BLANK.run(encoder()), inputs()))


@pytest.mark.parametrize("bias", ["yes", "no"])
@pytest.mark.parametrize("positions", ["iota", "buffer", "slice", "none"])
def test_every_mask(bias, positions, same_output):
    blanked = BLANK.run(encoder(bias=bias, positions=positions))
    wide = np.random.default_rng(1).integers(0, 2, (3, 16))
    for mask in (MASKS, np.ones_like(MASKS), np.zeros_like(MASKS), np.ones((1, 1), np.int64), wide):
        after = same_output(Ragged(), blanked, inputs(mask))
    counts = ops(after)
    assert (counts["mha"], counts["ragged_mha"], counts["unpack_rows"]) == (0, 1, 1)
    assert all(n.shape[0] == symbol("tokens") for n in after.nodes if n.op in ("embed_norm", "layer_norm"))


def test_random_encoders(same_output):
    packed = 0
    for seed in range(10, 22):
        graph = BLANK.run(encoder(seed, mask="fill"))
        after = same_output(Ragged(), graph, inputs())
        packed += after is not graph
        assert not ops(after)["mha"]
    assert packed == 12


def test_text_round_trip():
    after = Ragged().run(BLANK.run(encoder()))
    assert str(after).startswith("dims batch=1..4, seq=1..16, tokens=1..64\n")
    assert equal(after, parse_graph(print_graph(after), weights_of(after)))


def test_quantised_rows(same_output):
    """What `--quant int8` appends works on rows of tokens."""
    int8 = Pipeline.parse("quantize{min_columns=1},qfuse,cse", PASSES)
    after, _ = int8.run(Ragged().run(BLANK.run(encoder())))
    late = Ragged().run(int8.run(BLANK.run(encoder()))[0])  # and `ragged` on what is quantised
    for graph in (after, late):
        counts = ops(graph)
        assert (counts["qlinear"], counts["linear"], counts["ragged_mha"]) == (5, 0, 1)
    results = [interpret.run(graph, inputs()) for graph in (after, late)]
    np.testing.assert_array_equal(results[0]["hidden"], results[1]["hidden"])


def test_fixed_shapes(same_output):
    ids, mask = input_("ids", "i64", (4, 4), low=0, high=22), input_("mask", "i64", (4, 4), low=0, high=1)
    sizes = {B: 4, S: 4}

    def fixed(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(fixed, value))
        return value if not hasattr(value, "subs") else int(value.subs(sizes))

    done: dict[Node, Node] = {}
    graph = BLANK.run(encoder(positions="iota"))
    for node in graph.nodes:
        attributes = {k: fixed(v) for k, v in node.attributes.items()}
        named = {"ids": ids, "mask": mask}.get(attributes.get("name", ""))
        done[node] = named or make(node.op, [done[i] for i in node.inputs], node.source, **attributes)
    outputs = {name: done[node] for name, node in graph.outputs.items()}
    after = same_output(Ragged(), Graph((ids, mask), outputs), inputs())
    assert ops(after)["ragged_mha"] == 1


# --- what stays whole


def reasons(graph: Graph) -> set[str]:
    with recording() as journal:
        assert Ragged().run(graph) is graph
    return {event.reason for event in journal.declined}


def test_outputs_wanted_at_padding():
    graph = encoder()
    assert reasons(graph) == {"its rows at padding are read by output hidden"}
    assert Ragged().run(Graph(graph.inputs, {"pooled": graph.outputs["pooled"]}, graph.dims)) is not graph


@pytest.mark.parametrize(
    ("ways", "reason"),
    [
        ({"mask": "none"}, "no input says which keys are tokens"),
        ({"mask": "pairs"}, "no input says which keys are tokens"),
    ],
)
def test_masks_that_say_nothing(ways, reason):
    assert reasons(BLANK.run(encoder(**ways))) == {reason}


def changed(graph: Graph, op: str, change: Any) -> Graph:
    return graph.replace(lambda node: change(node) if node.op == op else node)


def test_attentions_that_see_padding():
    graph = BLANK.run(encoder())
    causal = changed(
        graph, "mha", lambda n: make(n.op, n.inputs, **{**n.attributes, "causal": True, "evenly": False})
    )
    assert reasons(causal) == {"it is causal"}
    inverse = changed(graph, "mha", lambda n: n.with_inputs((*n.inputs[:3], make("not", (n.inputs[3],)))))
    assert reasons(inverse) == {"padding by mask is not masked"}


@pytest.mark.parametrize(
    ("head", "packs"),
    [
        (lambda x, m: make("sum", (make("mul", (x, m)),), axes=(1,)), True),
        (lambda x, m: make("max", (make("where", (make("gt", (m, zero())), x, low())),), axes=(1,)), True),
        (lambda x, m: make("max", (make("where", (make("eq", (m, zero())), low(), x)),), axes=(1,)), True),
        (lambda x, m: make("max", (make("where", (inverted(m), low(), x)),), axes=(1,)), True),
        (
            lambda x, m: make("min", (make("where", (make("not", (inverted(m),)), x, high())),), axes=(1,)),
            True,
        ),
        (lambda x, m: make("sum", (make("add", (x, m)),), axes=(1,)), False),
        (lambda x, m: make("mean", (x,), axes=(1,)), False),
        (lambda x, m: make("slice", (x,), axis=1, start=S - 1, stop=S), False),
        (lambda x, m: make("slice", (x,), axis=1, start=0, stop=1), True),
        (lambda x, m: make("gather", (x, at_first(m)), axis=1), True),
        (lambda x, m: make("gather", (x, at_first(inverted(m))), axis=1), False),
        (lambda x, m: make("add", (make("slice", (x,), axis=2, start=0, stop=1), zero())), False),
    ],
)
def test_heads(head, packs, same_output):
    """Pooling that leaves padding out, and what only looks like it."""
    graph = encoder()
    x = graph.outputs["hidden"]
    flat = make("cast", (graph.inputs[1],), dtype="f32")
    weights = make("reshape", (flat,), shape=(B, S, 1))
    headed = Graph(graph.inputs, {"y": head(x, weights)}, graph.dims)
    after = same_output(Ragged(), headed, inputs())
    assert (after is not headed) == packs


def zero() -> Node:
    return constant(np.float32(0))


def low() -> Node:
    return constant(np.float32(-1e9))


def high() -> Node:
    return constant(np.float32(1e9))


def inverted(mask: Node) -> Node:
    """True at padding, as some models write it: 1 - mask."""
    return make("cast", (make("sub", (constant(np.float32(1)), mask)),), dtype="bool")


def at_first(mask: Node) -> Node:
    """i64[batch, 1, 8]: the first place of each row where a mask `[batch, seq, 1]` is largest."""
    flags = make("cast", (mask,), dtype="f32")
    return make("expand", (make("argmax", (flags,), axis=1, keepdims=True),), shape=(B, 1, 8))


def test_an_inverted_mask(same_output):
    """What makes its keys known is not zero at padding; here one attention stays whole and reads them there."""
    graph = encoder(10, mask="fill", norm="post")
    pad = make("eq", (graph.inputs[1], constant(np.int64(0))))
    inverse = changed(
        graph, "mha", lambda n: n.with_inputs((*n.inputs[:3], make("not", (pad,)), *n.inputs[4:]))
    )
    first, _ = (n for n in inverse.nodes if n.op == "mha")
    seen = {"pooled": inverse.outputs["pooled"], "seen": make("sum", (first,), axes=(1,))}
    after = same_output(Ragged(), Graph(graph.inputs, seen, graph.dims), inputs())
    assert (ops(after)["mha"], ops(after)["ragged_mha"]) == (1, 1)


def test_steps():
    """`blank` only where it lets something be packed."""
    graph = encoder()
    pooled = Graph(graph.inputs, {"pooled": graph.outputs["pooled"]}, graph.dims)
    assert str(ragged_steps(graph, blank=True)) == 'blank{mask="mask"},ragged'
    assert str(ragged_steps(graph, blank=False)) == ""
    assert str(ragged_steps(pooled, blank=True)) == "ragged"
    assert str(ragged_steps(encoder(mask="none"), blank=True)) == ""


def test_blank():
    graph = encoder()
    assert Blank("nothing").run(graph) is graph
    pooled = Graph(graph.inputs, {"pooled": graph.outputs["pooled"]}, graph.dims)
    assert BLANK.run(pooled) is pooled
    after = BLANK.run(graph)
    before, blanked = interpret.run(graph, inputs()), interpret.run(after, inputs())
    np.testing.assert_array_equal(blanked["hidden"], np.where(MASKS[..., None], before["hidden"], 0))
