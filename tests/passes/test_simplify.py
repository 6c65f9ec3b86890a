"""`simplify` and `fold`: every rule on the smallest graph that has its pattern, and graphs that must stay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.rewrite import Decline
from llmc.errors import LlmcError
from llmc.passes import PASSES
from llmc.passes.fuse import heads, norms, products
from llmc.passes.fuse.qkv import Qkv
from llmc.passes.simplify import RULES, Simplify
from llmc.passes.simplify.fold import Fold

B, S = symbol("b"), symbol("s")
X = input_("x", "f32", (B, S, 4))
ROW = input_("row", "f32", (B, 1, 4))
FLAGS = input_("flags", "bool", (B, S))
IDS = input_("ids", "i64", (B, S), low=0, high=9)
ONE, ZERO, MINUS_ZERO = (constant(np.float32(v)) for v in (1.0, 0.0, -0.0))
I0, I1 = constant(np.int64(0)), constant(np.int64(1))


def op(name: str, *inputs: Node, **attributes: object) -> Node:
    return make(name, inputs, None, **attributes)


def graph(output: Node) -> Graph:
    inputs = (X, ROW, FLAGS, IDS)
    return Graph(inputs, {"y": output}, {"b": (1, 4), "s": (1, 16)})


def positions(*shape: object) -> Node:
    return op("reshape", op("iota", length=S), shape=shape)


def rows_in_order() -> Node:
    row = op("mul", op("iota", length=B), op("dim", value=S))
    return op("add", op("reshape", row, shape=(B, 1)), positions(1, S))


def repeated(x: Node) -> Node:
    """As torch.repeat is exported: [1, 2, 3, 4] -> [2*b, 3, 4]."""
    split = op("reshape", x, shape=(1, 2, 1, 3, 1, 4))
    return op("reshape", op("expand", split, shape=(B, 2, 1, 3, 1, 4)), shape=(2 * B, 3, 4))


WIDE = op("expand", ROW, shape=(B, S, 4))
SPLIT = op("reshape", X, shape=(B, S, 2, 2))
SQUARES = constant(np.arange(10) ** 2)
FLAT = op("reshape", X, shape=(B * S, 4))
CASES: dict[str, Callable[[], Node]] = {
    "drop_neutral_mul": lambda: op("mul", ONE, X),
    "drop_neutral_div": lambda: op("div", X, op("expand", ONE, shape=(S, 4))),
    "drop_neutral_add": lambda: op("add", X, MINUS_ZERO),
    "drop_neutral_sub": lambda: op("sub", X, ZERO),
    "drop_neutral_integer": lambda: op("add", IDS, I0),
    "drop_double": lambda: op("not", op("not", FLAGS)),
    "drop_same": lambda: op("or", FLAGS, FLAGS),
    "drop_logic_neutral": lambda: op("and", FLAGS, op("full", shape=(), value=True, dtype="bool")),
    "drop_logic_fixed": lambda: op("and", op("full", shape=(B, S), value=False, dtype="bool"), FLAGS),
    "choose_where": lambda: op("where", constant(np.bool_(False)), X, WIDE),
    "where_of_not": lambda: op("where", op("reshape", op("not", FLAGS), shape=(B, S, 1)), X, ROW),
    "drop_cast": lambda: op("cast", X, dtype="f32"),
    "cast_of_cast": lambda: op("cast", op("cast", FLAGS, dtype="i32"), dtype="f32"),
    "compare_flag": lambda: op("ne", op("cast", FLAGS, dtype="i64"), I0),
    "compare_flag_inverted": lambda: op("eq", op("cast", FLAGS, dtype="f32"), ZERO),
    "invert_flag": lambda: op("sub", ONE, op("cast", FLAGS, dtype="f32")),
    "invert_comparison": lambda: op("not", op("lt", IDS, I1)),
    "full_to_expand": lambda: op("full", shape=(B, 3), value=7, dtype="i32"),
    "uniform_to_expand": lambda: op("embedding", constant(np.zeros(9, np.int64)), IDS),
    "drop_identity": lambda: op("slice", op("reshape", X, shape=(B, S, 4)), axis=1, start=0, stop=S),
    "reshape_of_reshape": lambda: op("reshape", op("reshape", X, shape=(B * S, 4)), shape=(B, S * 4)),
    "transpose_of_transpose": lambda: op("transpose", op("transpose", X, perm=(0, 2, 1)), perm=(2, 0, 1)),
    "expand_of_expand": lambda: op("expand", op("expand", ROW, shape=(B, S, 4)), shape=(2, B, S, 4)),
    "expand_to_reshape": lambda: op("expand", X, shape=(1, B, S, 4)),
    "slice_of_slice": lambda: op(
        "slice", op("slice", X, axis=2, start=1, stop=4, step=2), axis=2, start=1, stop=2
    ),
    "slice_of_concat": lambda: op("slice", op("concat", X, ROW, axis=1), axis=1, start=S, stop=S + 1),
    "reshape_of_expand": lambda: op("reshape", WIDE, shape=(B, 1, S, 4)),
    "broadcast_late": lambda: op("mul", WIDE, op("exp", op("expand", ROW, shape=(B, S, 4)))),
    "view_late": lambda: op("reshape", op("neg", op("add", FLAT, FLAT)), shape=(B, S, 4)),
    "repeat": lambda: op("transpose", repeated(constant(np.ones((1, 2, 3, 4), np.float32))), perm=(0, 2, 1)),
    "product_of_merged": lambda: op(
        "matmul",
        op("reshape", op("transpose", SPLIT, perm=(0, 2, 1, 3)), shape=(2 * B, S, 2)),
        op("reshape", op("expand", constant(np.eye(2, dtype="f4")), shape=(B, 2, 2, 2)), shape=(2 * B, 2, 2)),
    ),
    "decide_comparison": lambda: op("ge", positions(1, S), I0),
    "decide_comparison_false": lambda: op(
        "lt", op("add", positions(1, S), op("dim", value=S)), positions(1, S)
    ),
    "decide_comparison_of_dims": lambda: op("gt", op("dim", value=S), op("add", op("dim", value=S), I1)),
    "read_in_order": lambda: op("embedding", FLAT, rows_in_order()),
    "read_range": lambda: op("embedding", SQUARES, op("add", op("iota", length=2, step=2), I1)),
    "plain_iota": lambda: op("slice", constant(np.arange(9)[None]), axis=1, start=0, stop=S),
    "fixed_dim": lambda: op("add", IDS, op("dim", value=5)),
}


@pytest.mark.parametrize("case", CASES)
def test_rule(case, golden, same_output):
    before = graph(CASES[case]())
    after = same_output(Simplify(), before)
    assert after is not before
    golden(after)


def test_every_rule_says_what_it_does():
    for rule in (*RULES, *heads.RULES, *products.RULES, *norms.RULES, *Qkv.rules):
        assert " -> " in rule.__doc__, rule


def test_every_rule_has_a_case():
    fired: set[str] = set()
    for build in CASES.values():
        _, report = Pipeline.of(Simplify()).run(graph(build()))
        fired |= set(report.runs[0].applied)
    assert {r.__name__ for r in RULES} - fired == set()


STAY: dict[str, Callable[[], Node]] = {
    "there may be fewer rows, and embedding clamps": lambda: op(
        "embedding", FLAT, op("iota", length=3, start=1)
    ),
    "float zero is not neutral: -0.0 + 0.0 is 0.0": lambda: op("add", X, ZERO),
    "subtracting -0.0 is adding 0.0": lambda: op("sub", X, MINUS_ZERO),
    "0 * x may be NaN": lambda: op("mul", X, ZERO),
    "x == x is false for NaN": lambda: op("eq", X, X),
    "not(a < b) is true for NaN": lambda: op("not", op("lt", X, ROW)),
    "the inner cast rounds": lambda: op("cast", op("cast", X, dtype="i64"), dtype="f32"),
    "f32 does not hold i64": lambda: op("cast", op("cast", IDS, dtype="f32"), dtype="i64"),
    "i32 does not hold i64": lambda: op("cast", op("cast", IDS, dtype="i32"), dtype="i64"),
    "the inner expand is part of the result": lambda: op("reshape", WIDE, shape=(B * S, 4)),
    "positions may be above 3": lambda: op("lt", op("iota", length=S), constant(np.int64(3))),
    "ids are not known": lambda: op("embedding", SQUARES, IDS),
    "another column order": lambda: op("embedding", FLAT, op("transpose", rows_in_order(), perm=(1, 0))),
    "float tables are read by index": lambda: op(
        "embedding", constant(np.ones((9, 4), np.float32)), positions(1, S)
    ),
}


@pytest.mark.parametrize("why", STAY)
def test_untouched(why):
    before = graph(STAY[why]())
    assert Simplify().run(before) is before


def test_fold_computes_what_is_constant(golden, same_output):
    values = constant(np.arange(4, dtype=np.float32), "enc.layer.a")
    folded = same_output(Fold(), graph(op("mul", X, op("neg", op("add", values, constant(np.float32(1)))))))
    golden(folded)


def test_fold_keeps_sizes_small():
    """A broadcast of one number to 4 MB is not worth its bytes; a transposed weight is."""
    big = op("pad", constant(np.float32([1])), before=(0,), after=(1 << 20,))
    weight = op("transpose", constant(np.zeros((300, 400), np.float32)), perm=(1, 0))
    assert isinstance(Fold().fold_constants(big), Decline)
    assert Fold(limit=1 << 23).fold_constants(big).op == "constant"
    assert Fold().fold_constants(weight).shape == (400, 300)


@pytest.mark.parametrize("node", [op("dim", value=S), op("iota", length=S), op("iota", length=2, start=S)])
def test_fold_leaves_dims(node):
    assert Fold().fold_constants(node) is None


@pytest.mark.parametrize(
    "weight",
    [op("expand", ONE, shape=(200, 1, 9, 10)), op("full", shape=(200, 1, 9, 10), value=0.5, dtype="f32")],
)
def test_fold_writes_out_the_weight_of_a_convolution(weight, same_output):
    """However large: there is no kernel for a weight that is not there. What a size repeats stays."""
    image = op("reshape", X, shape=(B, 1, S, 4))
    how = {"stride": (1, 1), "dilation": (1, 1), "padding": (8, 9, 8, 9), "groups": 1}
    folded = same_output(Fold(), graph(op("conv2d", image, weight, **how)))
    assert not any(node.op == weight.op for node in folded.nodes)
    by_size = op("cast", op("reshape", op("dim", value=S), shape=(1, 1, 1, 1)), dtype="f32")
    open_ = op("conv2d", image, op("expand", by_size, shape=weight.shape), **how)
    assert Fold().fold_repeated_weight(open_) is None


def test_fold_refuses_a_negative_limit():
    with pytest.raises(LlmcError, match="limit"):
        Pipeline.parse("fold{limit=-1}", PASSES)
