"""`fuse` and `qkv`: golden graphs of the patterns, encoders written many ways, what must stay apart."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from random_encoders import Encoder

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES
from llmc.passes.fuse import Fuse
from llmc.passes.fuse.masks import keys_and_bias
from llmc.passes.fuse.qkv import Qkv

PLAIN = {"linear": "whole", "norm": "post", "sum": "ab", "attention": "explicit", "activation": "gelu"}
PLAIN |= {"positions": "buffer", "scale": "div", "bias": "no", "mask": "fill"}
# the masks are of whole rows of tokens: fully masked queries are what `fuse` may change
INPUTS = {"ids": np.array([[3, 1, 4, 1], [5, 9, 2, 6]]), "mask": np.array([[1, 1, 1, 1], [1, 1, 0, 0]])}
O3 = Pipeline.parse(LEVELS[3], PASSES)


def count(graph: Graph) -> Counter[str]:
    return Counter(n.op for n in graph.nodes if n.op not in ("input", "constant"))


def encoder(**ways: str) -> Graph:
    """One block, written as PLAIN but for `ways`."""
    return Encoder(5, **{**PLAIN, **ways}).graph()


def test_an_encoder_at_level_3(golden, same_output):
    golden(same_output(O3, encoder(), INPUTS))


WAYS = [
    (way, name)
    for way, names in {
        "linear": ("add", "matmul"),
        "norm": ("pre",),
        "sum": ("ba",),
        "attention": ("whole",),
        "positions": ("iota", "slice", "none"),
        "scale": ("mul", "query"),
        "mask": ("where", "subtract", "excluded", "pairs", "none"),
        "bias": ("yes",),
        "activation": ("tanh", "erf", "cubic", "relu", "silu", "sigmoid"),
    }.items()
    for name in names
]


@pytest.mark.parametrize(("way", "name"), WAYS)
def test_every_way_of_writing_fuses(way, name, same_output):
    ops = count(same_output(O3, encoder(**{way: name}), INPUTS))
    assert (ops["mha"], ops["embed_norm"]) == (1, 1)
    assert ops["linear"] == 5  # qkv, output, two of the feed-forward, pooler
    assert not ops.keys() & {"matmul", "softmax", "transpose", "attention", "add", "gelu", "erf", "embedding"}


def test_keys_are_told_from_bias(same_output):
    """A mask of the keys alone becomes keys; what differs between heads or queries becomes bias."""
    flags = {}
    for mask in ("where", "subtract", "pairs", "none"):
        for bias in ("yes", "no"):
            after = same_output(O3, encoder(mask=mask, bias=bias), INPUTS)
            (node,) = (n for n in after.nodes if n.op == "mha")
            flags[mask, bias] = node.attributes["has_keys"], node.attributes["has_bias"]
    assert flags == {
        ("where", "yes"): (True, True),
        ("where", "no"): (True, False),
        ("subtract", "yes"): (True, True),
        ("subtract", "no"): (True, False),
        ("pairs", "yes"): (False, True),
        ("pairs", "no"): (False, True),
        ("none", "yes"): (False, True),
        ("none", "no"): (False, False),
    }


def test_two_finite_masks_stay_a_bias(same_output):
    """A key lowered by both is below one lowered once: where every key is lowered, the latter alone count."""
    b, s, low = symbol("b"), symbol("s"), -1e4
    mask = input_("mask", "i64", (b, s), low=0, high=1)
    window = input_("window", "i64", (s,), low=0, high=1)
    q, k, v = (input_(name, "f32", (b, 2, s, 4)) for name in "qkv")
    terms = [
        make(
            "where",
            (
                make("cast", (op("reshape", m, shape=shape),), None, dtype="bool"),
                constant(0.0),
                constant(low),
            ),
        )
        for m, shape in ((mask, (b, 1, 1, s)), (window, (1, 1, 1, s)))
    ]
    core = op("attention", q, k, v, op("add", *terms), scale=0.5, has_mask=True)
    before = Graph((q, k, v, mask, window), {"y": core}, {"b": (1, 4), "s": (1, 16)})
    rng = np.random.default_rng(3)
    values = {n: rng.normal(size=(2, 2, 3, 4)).astype(np.float32) for n in "qkv"}
    given = {**values, "mask": np.array([[1, 0, 0], [0, 0, 1]]), "window": np.array([0, 1, 0])}
    after = same_output(O3, before, given)
    found = keys_and_bias(core)
    assert (found.keys, found.bias is None, found.evenly) == (None, False, False)
    assert Counter(n.op for n in after.nodes)["attention"] + Counter(n.op for n in after.nodes)["mha"] == 1


@pytest.mark.parametrize("order", ["flags first", "flags last"])
def test_masks_are_laid_on_in_their_order(order, same_output):
    """Row 0 sees key 0 alone, which is padding: keys lowered by one mask are above those lowered by both."""
    b, s, low = symbol("b"), symbol("s"), constant(np.float32(np.finfo(np.float32).min))
    q, kt, v = (
        input_("q", "f32", (b, 2, s, 4)),
        input_("k", "f32", (b, 2, 4, s)),
        input_("v", "f32", (b, 2, s, 4)),
    )
    mask = input_("mask", "i64", (b, s), low=0, high=1)
    kept = make("cast", (op("reshape", mask, shape=(b, 1, 1, s)),), None, dtype="bool")
    rows, columns = (op("reshape", op("iota", length=s), shape=shape) for shape in ((s, 1), (1, s)))
    scores, before = op("matmul", q, kt), op("ge", rows, columns)
    added = op("where", kept, constant(np.float32(0)), low)
    if order == "flags first":
        scores = op("add", op("where", before, scores, low), added)
    else:
        scores = op("where", kept, op("add", scores, op("where", before, constant(np.float32(0)), low)), low)
    whole = Graph(
        (q, kt, v, mask), {"y": op("matmul", op("softmax", scores, axis=3), v)}, {"b": (1, 4), "s": (1, 16)}
    )
    rng = np.random.default_rng(3)
    shapes = {"q": (2, 2, 5, 4), "k": (2, 2, 4, 5), "v": (2, 2, 5, 4)}
    given = {n: rng.normal(size=shape).astype(np.float32) for n, shape in shapes.items()}
    after = same_output(O3, whole, {**given, "mask": np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])})
    assert not count(after).keys() & {"matmul", "softmax"}


def test_a_view_of_a_scalar_stays(same_output):
    x = input_("x", "f32", ())
    scalar = Graph((x,), {"y": op("reshape", op("exp", op("abs", x)), shape=(1, 1))})
    same_output(O3, scalar, {"x": np.array(-0.5, np.float32)})


B, S = symbol("b"), symbol("s")
X = input_("x", "f32", (B, S, 8))
Y = input_("y", "f32", (B, S, 8))
DIMS = {"b": (1, 4), "s": (1, 16)}
RNG = np.random.default_rng(0)


def weight(*shape: int):
    return constant(RNG.normal(size=shape).astype(np.float32), "w")


def op(name, *inputs, **attributes):
    return make(name, inputs, None, **attributes)


def graph(**outputs) -> Graph:
    return Graph((X, Y), outputs, DIMS)


def norm(x):
    return op("layer_norm", x, weight(8), weight(8), eps=1e-5)


def test_sum_and_norm(golden, same_output):
    golden(same_output(Fuse(), graph(z=norm(op("add", X, Y)))))


@pytest.mark.parametrize("width", [1, 8])
def test_a_norm_of_embeddings_with_one_number_for_a_row(width, same_output):
    """As positions may have it: the sum broadcasts that number, the fused kernel takes rows."""
    ids = input_("ids", "i64", (B, S), low=0, high=10)
    positions = op("embedding", weight(16, width), op("iota", length=S))
    summed = op("add", op("embedding", weight(11, 8), ids), positions)
    inputs = {"ids": np.array([[3, 1, 4], [5, 9, 2]])}
    after = same_output(Fuse(), Graph((ids,), {"z": norm(summed)}, DIMS), inputs)
    assert count(after)["embed_norm"] == (width == 8)


def test_chain(golden, same_output):
    shared = op("tanh", X)
    golden(same_output(Fuse(), graph(z=op("mul", op("add", shared, Y), op("sigmoid", shared)))))


def test_chain_crosses_views(same_output):
    flat = op("reshape", op("exp", op("neg", X)), shape=(B, S * 8))
    assert count(same_output(Fuse(), graph(z=op("sin", flat)))) == {"chain": 1, "reshape": 1}


def test_chain_limits(same_output):
    x = X
    for _ in range(10):
        x = op("sin", x)
    assert count(same_output(Fuse(max_steps=4), graph(z=x))) == {"chain": 3}
    assert count(same_output(Fuse(chains=False), graph(z=x))) == {"sin": 10}


def test_small_values_stay_outside_a_chain(same_output):
    row = op("exp", op("slice", X, axis=1, start=0, stop=1))
    assert count(same_output(Fuse(), graph(z=op("mul", op("sin", Y), row)))) == {
        "slice": 1,
        "exp": 1,
        "chain": 1,
    }


LINEAR = op("linear", X, weight(8, 8))
SHARED = op("add", X, Y)
STAY = {
    "the product is an output too": {"a": LINEAR, "b": op("gelu", LINEAR)},
    "the product is read twice": {
        "a": op("matmul", op("gelu", LINEAR), op("transpose", LINEAR, perm=(0, 2, 1)))
    },
    "the bias is not constant": {
        "a": op("softmax", op("add", LINEAR, op("slice", Y, axis=1, start=0, stop=1)), axis=1)
    },
    "the sum is read elsewhere": {"a": norm(SHARED), "b": SHARED},
    "a value is read twice": {"a": op("softmax", op("sin", Y), axis=1), "b": norm(op("sin", X))},
    "softmax over queries": {
        "a": op("matmul", op("softmax", op("matmul", X, op("transpose", Y, perm=(0, 2, 1))), axis=1), Y)
    },
}


@pytest.mark.parametrize("why", STAY)
def test_untouched(why):
    before = graph(**STAY[why])
    assert Fuse().run(before) is before


@pytest.mark.parametrize(("axis", "norms"), [(2, 1), (1, 0)])
def test_a_norm_over_rows_of_dynamic_size_stays_in_parts(axis, norms, same_output):
    """No kernel normalises such rows."""
    x = op("transpose", X, perm=(0, 3 - axis, axis))
    centred = op("sub", x, op("mean", x, axes=(2,), keepdims=True))
    variance = op("mean", op("mul", centred, centred), axes=(2,), keepdims=True)
    root = op("rsqrt", op("add", variance, constant(np.float32(1e-5))))
    after = same_output(Fuse(), graph(z=op("mul", centred, root)))
    assert count(after)["layer_norm"] == norms


def test_declines_say_why():
    _, report = Pipeline.of(Fuse()).run(graph(**STAY["the product is an output too"]))
    assert [e.reason for e in report.runs[0].declined] == ["the product is read elsewhere too"]


def test_queries_of_another_sequence(same_output):
    """Cross attention: keys and values are merged, queries are not."""

    def heads(x):
        return op("transpose", op("reshape", x, shape=(B, S, 2, 4)), perm=(0, 2, 1, 3))

    def linear(x):
        return op("linear", x, weight(8, 8), weight(8), epilogue=("bias",))

    core = op("attention", heads(linear(X)), heads(linear(Y)), heads(linear(Y)), scale=0.5)
    merged = op("reshape", op("transpose", core, perm=(0, 2, 1, 3)), shape=(B, S, 8))
    after = same_output(O3, graph(z=merged))
    assert count(after) == {"linear": 2, "mha": 1}
    (mha,) = (n for n in after.nodes if n.op == "mha")
    assert mha.attributes["offsets"] == (0, 0, 8)


def test_one_product_for_all_is_read_by_offsets(same_output):
    """Models that ship q, k and v as one weight: the slices disappear into offsets."""
    whole = op("linear", X, weight(24, 8))
    parts = [op("slice", whole, axis=2, start=i, stop=i + 8) for i in (0, 8, 16)]
    heads = [op("transpose", op("reshape", p, shape=(B, S, 2, 4)), perm=(0, 2, 1, 3)) for p in parts]
    core = op("attention", *heads, scale=0.5, causal=True)
    merged = op("reshape", op("transpose", core, perm=(0, 2, 1, 3)), shape=(B, S, 8))
    after = same_output(Fuse(), graph(z=merged))
    assert count(after) == {"linear": 1, "mha": 1}
    (mha,) = (n for n in after.nodes if n.op == "mha")
    assert (mha.attributes["offsets"], mha.attributes["causal"]) == ((0, 8, 16), True)


def test_grouped_heads():
    q, k, v = (
        op(
            "transpose",
            op("reshape", op("linear", X, weight(4 * h, 8)), shape=(B, S, h, 4)),
            perm=(0, 2, 1, 3),
        )
        for h in (4, 2, 2)
    )
    core = op("attention", q, k, v, scale=0.5)
    before = graph(z=op("reshape", op("transpose", core, perm=(0, 2, 1, 3)), shape=(B, S, 16)))
    mha = Fuse().run(before).outputs["z"]
    assert (mha.op, mha.attributes["heads"], mha.attributes["kv_heads"]) == ("mha", 4, 2)


def test_qkv_without_mha_is_untouched():
    before = encoder(attention="whole")
    assert Qkv().run(before) is before


@pytest.mark.parametrize("options", ["max_steps=1", "max_inputs=0"])
def test_options_are_checked(options):
    with pytest.raises(LlmcError, match="at least"):
        Pipeline.parse(f"fuse{{{options}}}", PASSES)
