"""The compression passes: what they change, what they leave, what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from random_encoders import Encoder

from llmc.compiler import interpret
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.ops.storage import stored_ops
from llmc.compiler.parse import parse_graph
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.text import weights_of
from llmc.compiler.verify import verify
from llmc.errors import LlmcError, LlmcWarning
from llmc.passes import LEVELS, PASSES
from llmc.passes.compress.cluster import cluster
from llmc.passes.compress.weights import values
from llmc.passes.only import Only

O3 = Pipeline.parse(LEVELS[3], PASSES)
WAYS = {"linear": "whole", "norm": "post", "sum": "ab", "attention": "explicit", "activation": "gelu"}
RNG = np.random.default_rng(0)


def run(text: str, graph: Graph) -> Graph:
    return Pipeline.parse(text, PASSES).run(graph)[0]


def encoder(seed: int = 5, **ways: str) -> Graph:
    return O3.run(Encoder(seed, **{**WAYS, "positions": "buffer", "mask": "fill", **ways}).graph())[0]


def product(*shape: int, array: Any = None, **attributes: Any) -> Graph:
    """One linear called `layer.0.dense`."""
    x = input_("x", "f32", (symbol("n"), shape[1]))
    w = constant(RNG.normal(size=shape).astype(np.float32) if array is None else array, "dense.weight")
    return Graph((x,), {"y": make("linear", (x, w), Source("layer.0.dense"), **attributes)}, {"n": (1, 8)})


def weights(graph: Graph) -> list[np.ndarray[Any, Any]]:
    """Of every linear, decoded."""
    found = [values(node.inputs[1]) for node in graph.nodes if node.op == "linear"]
    return [w for w in found if w is not None]


def stored(graph: Graph) -> int:
    return sum(n.attributes["value"].array.nbytes for n in graph.nodes if n.op == "constant")


def inputs_of(graph: Graph) -> dict[str, Any]:
    return {"ids": np.array([[3, 1, 4, 1], [5, 9, 2, 6]]), "mask": np.array([[1, 1, 1, 1], [1, 1, 0, 0]])}


# --- every pass

SPECS = {
    "prune": "prune{sparsity=0.3,least=1}",
    "prune 2:4": 'prune{pattern="2:4",least=1}',
    "prune 4x1": 'prune{pattern="4x1",least=1}',
    "prune-heads": "prune-heads{fraction=0.5}",
    "prune-neurons": "prune-neurons{fraction=0.25,multiple=1}",
    "factorize": "factorize{rank=2,least=1}",
    "share": "share{clusters=16,least=1,tables=false}",
    "share tables": "share{clusters=8,least=60}",
}


@pytest.mark.parametrize("name", SPECS)
def test_golden(name, golden):
    golden(run(SPECS[name], encoder()))


@pytest.mark.parametrize("name", SPECS)
def test_the_graph_is_smaller_valid_and_lossy(name):
    before = encoder()
    after = run(SPECS[name], before)
    verify(after)
    assert stored(after) < stored(before)
    given = inputs_of(before)
    old, new = interpret.run(before, given), interpret.run(after, given)
    assert all(new[k].shape == old[k].shape and np.isfinite(new[k]).all() for k in old)
    assert any(not np.array_equal(new[k], old[k]) for k in old)
    assert Pipeline.parse(SPECS[name], PASSES).lossy


@pytest.mark.parametrize("name", [n for n in SPECS if n != "prune 4x1"])  # their sizes are any
def test_random_encoders_stay_valid(name, random_encoder):
    for seed in range(20):
        graph, inputs = random_encoder(seed)
        after = run(SPECS[name], O3.run(graph)[0])
        interpret.run(after, inputs)


@pytest.mark.parametrize("name", SPECS)
def test_the_text_reads_back(name):
    after = run(SPECS[name], encoder())
    assert str(parse_graph(str(after), weights_of(after))) == str(after)


@pytest.mark.parametrize("name", [n for n in PASSES if PASSES[n].keeps.kind == "lossy"])
def test_untouched_where_nothing_applies(name):
    """Small weights, and no heads or feed-forward blocks: by default nothing is worth it."""
    before = product(8, 8)
    change = Only(("*",), "share") if name == "only" else PASSES[name]()
    assert change.run(before) is before


@pytest.mark.parametrize("name", SPECS)
def test_unpack_stores_the_same_values_whole(name):
    before = run(SPECS[name], encoder())
    after = run("unpack", before)
    assert not stored_ops() & {n.op for n in after.nodes}
    assert (after is before) == (not stored_ops() & {n.op for n in before.nodes})
    given = inputs_of(before)
    old, new = interpret.run(before, given), interpret.run(after, given)
    assert all(np.array_equal(new[k], old[k]) for k in old)


# --- prune


def test_unstructured_zeros_are_the_smallest():
    before = product(64, 96)
    (old,), (new,) = weights(before), weights(run("prune{sparsity=0.3}", before))
    assert (new == 0).sum() == round(0.3 * old.size)
    assert np.abs(old[new == 0]).max() <= np.abs(old[new != 0]).min()
    np.testing.assert_array_equal(new[new != 0], old[new != 0])


def test_scope():
    x = input_("x", "f32", (symbol("n"), 64))
    big = constant(10 * RNG.normal(size=(64, 64)).astype(np.float32), "a")
    small = constant(RNG.normal(size=(64, 64)).astype(np.float32), "b")
    y = make("linear", (make("linear", (x, big)), small))
    graph = Graph((x,), {"y": y}, {"n": (1, 8)})
    shares = {
        s: [float((w == 0).mean()) for w in weights(run(f"prune{{scope={s}}}", graph))]
        for s in ("layer", "global")
    }
    assert shares["layer"] == pytest.approx([0.3, 0.3], abs=1e-3)
    assert sum(shares["global"]) == pytest.approx(0.6, abs=1e-3)
    assert shares["global"][1] > shares["global"][0] + 0.3


def test_a_product_that_keeps_next_to_nothing_is_told():
    x = input_("x", "f32", (symbol("batch"), 96))
    outputs = {}
    for name, size in (("pooler", 0.001), ("dense", 1)):
        w = constant((size * RNG.normal(size=(64, 96))).astype(np.float32), name)
        outputs[name] = make("linear", (x, w), Source(name))
    graph = Graph((x,), outputs, {"batch": (1, 8)})
    with pytest.warns(
        LlmcWarning, match=r"less than 1% of the weights of pooler; scope=.layer. ranks"
    ) as told:
        run("prune{sparsity=0.5}", graph)
    assert len(told) == 1
    run('prune{sparsity=0.5,scope="layer"}', graph)  # a warning would be an error here
    run('prune{sparsity=0.5,skip=["pooler"]}', graph)


def test_two_of_four():
    (new,) = weights(run('prune{pattern="2:4"}', product(64, 96)))
    assert ((new.reshape(64, 24, 4) != 0).sum(-1) == 2).all()


def test_sizes_shrink_as_stored():
    before = product(64, 96)
    assert stored(run("prune{sparsity=0.5}", before)) == pytest.approx(
        stored(before) * (0.5 + 1 / 32), rel=0.01
    )
    assert stored(run("prune{sparsity=0.01}", before)) == stored(before), "a mask would outgrow what it saves"
    assert stored(run("share{clusters=16}", before)) == 64 * 48 + 4 * 16
    assert stored(run("share{clusters=256}", before)) == 64 * 96 + 4 * 256


def test_a_table_that_is_looked_up_stays():
    table = constant(RNG.normal(size=(90, 64)).astype(np.float32), "words")
    ids = input_("ids", "i64", (symbol("n"),), low=0, high=89)
    rows = make("embedding", (table, ids))
    graph = Graph((ids,), {"y": make("linear", (rows, table))}, {"n": (1, 8)})
    assert run("prune", graph) is graph
    after = run("share", graph)
    assert [n.op for n in after.nodes].count("codebook") == 2
    assert stored(after) == 90 * 64 + 4 * 256, "stored once for both readers"


# --- heads and neurons


def test_heads_of_least_weight_go():
    before = encoder()
    (mha,) = (n for n in before.nodes if n.op == "mha")
    (out,) = before.users[mha]
    array = out.inputs[1].attributes["value"].array.copy()
    array[:, :4] *= 1e-3  # nothing reads the first head
    quiet = before.replace(lambda n: constant(array, "o") if n is out.inputs[1] else n)
    after = run("prune-heads{fraction=0.5}", quiet)
    (kept,) = (n for n in after.nodes if n.op == "mha")
    assert (kept.attributes["heads"], kept.attributes["head_dim"]) == (1, 4)
    assert kept.inputs[0].inputs[1].shape[0] == 12
    given = inputs_of(before)
    old, new = interpret.run(quiet, given), interpret.run(after, given)
    assert np.abs(old["hidden"] - new["hidden"]).max() < 2e-2, (
        "the head that is left is the one that was read"
    )


@pytest.mark.parametrize("seed", range(8))
def test_a_silent_head_is_not_missed(seed):
    """Whatever the attention looks like: with zeros in a head's output, taking it out changes nothing."""
    before = encoder(seed, attention="whole", bias="yes" if seed % 2 else "no")
    outs = {before.users[n][0].inputs[1] for n in before.nodes if n.op == "mha"}

    def silence(node: Node) -> Node:
        if node not in outs:
            return node
        array = node.attributes["value"].array.copy()
        array[:, 4:] = 0
        return constant(array, "o")

    quiet = before.replace(silence)
    after = run("prune-heads{fraction=0.5}", quiet)
    assert all(n.attributes["heads"] == 1 for n in after.nodes if n.op == "mha")
    given = inputs_of(before)
    old, new = interpret.run(quiet, given), interpret.run(after, given)
    for name in old:
        np.testing.assert_allclose(new[name], old[name], atol=1e-5)


def test_one_head_always_stays():
    after = run("prune-heads{fraction=0.99}", encoder())
    assert [n.attributes["heads"] for n in after.nodes if n.op == "mha"] == [1]
    after = run("prune-heads{fraction=0.99,scope=global}", encoder())
    assert [n.attributes["heads"] for n in after.nodes if n.op == "mha"] == [1]


def test_silent_neurons_are_not_missed():
    before = encoder()
    up = next(n for n in before.nodes if n.op == "linear" and n.shape[-1] == 12)
    array = up.inputs[1].attributes["value"].array.copy()
    array[[1, 5, 7]] = 0
    bias = up.inputs[2].attributes["value"].array.copy()
    bias[[1, 5, 7]] = 0
    table = {up.inputs[1]: constant(array, "u"), up.inputs[2]: constant(bias, "b")}
    quiet = before.replace(lambda n: table.get(n, n))
    after = run("prune-neurons{fraction=0.25,multiple=1}", quiet)
    assert any(n.op == "linear" and n.shape[-1] == 9 for n in after.nodes)
    given = inputs_of(before)
    old, new = interpret.run(quiet, given), interpret.run(after, given)
    for name in old:
        np.testing.assert_allclose(new[name], old[name], atol=1e-5)


def test_gated_feed_forward():
    """down(silu(gate(x)) * up(x)), as in Llama."""
    x = input_("x", "f32", (symbol("n"), 8))
    gate, up = (make("linear", (x, constant(RNG.normal(size=(32, 8)).astype(np.float32), n))) for n in "gu")
    inner = make("mul", (make("silu", (gate,)), up))
    down = make("linear", (inner, constant(RNG.normal(size=(8, 32)).astype(np.float32), "d")))
    graph = Graph((x,), {"y": down}, {"n": (1, 8)})
    after = run("prune-neurons{fraction=0.5,multiple=1}", graph)
    assert sorted(int(n.shape[-1]) for n in after.nodes if n.op == "linear") == [8, 16, 16]
    seen = Graph((x,), {"y": down, "inner": inner}, {"n": (1, 8)})
    assert run("prune-neurons{fraction=0.5,multiple=1}", seen) is seen, "an output keeps its shape"


# --- factorize and share


def test_low_rank_is_found_exactly():
    low = (RNG.normal(size=(64, 5)) @ RNG.normal(size=(5, 96))).astype(np.float32)
    before = product(64, 96, array=low)
    after = run("factorize{energy=0.999999}", before)
    assert [tuple(n.inputs[1].shape) for n in after.nodes if n.op == "linear"] == [(5, 96), (64, 5)]
    v, u = weights(after)
    np.testing.assert_allclose(u @ v, low, atol=1e-4)
    assert run("factorize{rank=39}", before) is before, "two factors of rank 39 would be larger"


def test_clusters_are_nearest_means():
    values_, counts = np.unique(RNG.normal(size=5000).astype(np.float32), return_counts=True)
    centres, place = cluster(values_, counts, 16)
    assert (np.diff(centres) > 0).all()
    nearest = np.abs(values_[:, None] - centres[None]).argmin(1)
    assert (nearest == place).mean() > 0.999
    error = float(((values_ - centres[place]) ** 2).mean())
    assert error < 0.0115, "16 levels of a unit normal: 0.0095 is the optimum (Max 1960)"


def test_zeros_stay_zeros():
    before = product(64, 96)
    pruned = run("prune{sparsity=0.3}", before)
    (old,), (new,) = weights(pruned), weights(run("share{clusters=16}", pruned))
    assert (new[old == 0] == 0).all()
    assert len(np.unique(new)) == 16


def test_deterministic():
    assert str(
        run("share{clusters=16}", product(64, 96, array=np.arange(6144, dtype=np.float32).reshape(64, 96)))
    ) == str(
        run("share{clusters=16}", product(64, 96, array=np.arange(6144, dtype=np.float32).reshape(64, 96)))
    )


def test_fold_leaves_them_stored():
    after = run("share{least=1,clusters=8},fold", product(8, 8))
    assert "codebook" in {n.op for n in after.nodes}


# --- refused

REFUSED = [
    ("prune{sparsity=1.5}", "sparsity must be at least 0 and below 1"),
    ("prune{sparsity=-0.1}", "sparsity must be at least 0"),
    ('prune{sparsity=0.3,pattern="2:4"}', "is a sparsity of 0.5"),
    ('prune{sparsity=0.5,pattern="1:4"}', "is a sparsity of 0.75"),
    ("prune{pattern=2:2}", "no such pattern"),
    ("prune{pattern=4x4}", "no such pattern"),
    ('prune{pattern="8x1"}', "no such pattern"),
    ("prune{scope=model}", "no such scope"),
    ("prune-heads{fraction=1}", "fraction must be at least 0 and below 1"),
    ("prune-neurons{fraction=2}", "fraction must be at least 0 and below 1"),
    ("prune-neurons{multiple=0}", "multiple must be at least 1"),
    ("share{clusters=257}", "from 2 to 256"),
    ("share{clusters=1}", "from 2 to 256"),
    ("factorize{rank=4,energy=0.9}", "not both"),
    ("factorize{rank=0}", "at least 1"),
    ("factorize{energy=1.1}", "at most 1"),
    ("share{cluster=16}", "did you mean clusters"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_options_refused(text, message):
    with pytest.raises(LlmcError) as caught:
        Pipeline.parse(text, PASSES)
    assert message in str(caught.value)


MISFITS = [
    ('prune{pattern="2:4",least=1}', product(8, 10), "multiple of 4", "[8, 10]"),
    ('prune{pattern="4x1",least=1}', product(10, 8), "that 4 divides", "[10, 8]"),
]


@pytest.mark.parametrize(("text", "graph", "message", "found"), MISFITS)
def test_misfits_name_the_module(text, graph, message, found):
    with pytest.raises(LlmcError) as caught:
        run(text, graph)
    assert message in caught.value.problem
    assert caught.value.at == "layer.0.dense"
    assert found in caught.value.found


def test_skip():
    before = product(64, 96)
    for name in ("prune", "share{clusters=16", "factorize{rank=8", "prune-heads", "prune-neurons"):
        opening = name if "{" in name else name + "{"
        comma = "," if "=" in name else ""
        assert run(f'{opening}{comma}skip=["layer.0.*"]}}', before) is before
    with pytest.raises(LlmcError, match="no product fits 'clasifier'"):
        run("prune{skip=[clasifier]}", before)


def test_skip_is_not_matched_by_a_bias_that_modules_share():
    """Biases of zeros are one constant, which has the name of the first: `tie` of a model before training."""
    x = input_("x", "f32", (symbol("n"), 64))
    bias = constant(np.zeros(64, np.float32), "layer.0.dense.bias")
    for layer in range(2):
        w = constant(RNG.normal(size=(64, 64)).astype(np.float32), f"layer.{layer}.dense.weight")
        x = make("linear", (x, w, bias), Source(f"layer.{layer}.dense"), epilogue=("bias",))
    graph = Graph((next(iter(x.inputs)).inputs[0],), {"y": x}, {"n": (1, 8)})
    first, second = weights(run('prune{sparsity=0.5,skip=["layer.0.*"]}', graph))
    assert first.all()
    assert (second == 0).sum() == 2048
