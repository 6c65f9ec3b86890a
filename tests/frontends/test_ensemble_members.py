"""Members of ensembles: what they share, what they are called, and what they must have in common."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ensembles import (
    NAMES,
    answers,
    member,
    near,
    of_numbers,
    refused,
    run,
    softmax,
    three,
    written,
)

from llmc.compiler import interpret
from llmc.compiler.dims import symbol
from llmc.compiler.frontends import graph_text
from llmc.compiler.frontends.combining import method_of
from llmc.compiler.frontends.ensemble import joined, member_names
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.frontends.tokenizer import Tokenizer
from llmc.compiler.graph import Graph
from llmc.compiler.ops import input_, make, state_
from llmc.compiler.pipeline import Pipeline
from llmc.errors import LlmcError
from llmc.passes import LEVEL_PARTS, PASSES


def frozen(seed: int) -> Imported:
    """The model of seed 0 with a head of its own, as of a trunk that was not trained."""
    own, base = member(seed), member(0)

    def change(before: Any, node: Any) -> Any:
        if node.op == "constant" and not node.source.path.startswith("classifier"):
            return known.get((node.attributes["value"].name, node.type), node)
        return node

    known = {(n.attributes["value"].name, n.type): n for n in base.graph.nodes if n.op == "constant"}
    return replace(own, graph=own.graph.rebuild(change))


def work(graph: Graph, op: str) -> int:
    return sum(node.op == op for node in graph.nodes)


def elements(graph: Graph) -> int:
    constants = {
        n.attributes["value"].digest: n.attributes["value"].array for n in graph.nodes if n.op == "constant"
    }
    return sum(array.size for array in constants.values())


def test_what_is_frozen_is_stored_and_computed_once() -> None:
    members = [frozen(seed) for seed in range(3)]
    inputs, parts = answers(members)
    assert not np.allclose(parts[0], parts[1])
    made = joined(members, NAMES, method_of("mean", NAMES))
    weights = [n for n in made.graph.nodes if n.op == "constant" and n.source.path != "ensemble"]
    digests = [n.attributes["value"].digest for n in weights]
    assert len(digests) == len(set(digests)), "equal weights are one constant already"
    pipeline = Pipeline.parse(",".join(LEVEL_PARTS[3].values()), PASSES)
    after, _ = pipeline.run(made.graph)
    alone, _ = pipeline.run(members[0].graph)
    assert work(after, "mha") == work(alone, "mha") == 1
    assert work(after, "linear") == work(alone, "linear") + 2, "two heads more"
    head = sum(n.attributes["value"].array.size for n in members[0].graph.nodes
               if n.op == "constant" and n.attributes["value"].name.startswith("classifier"))  # fmt: skip
    assert elements(after) <= elements(alone) + 2 * head + 16
    found = interpret.run(after, inputs)["logits"]
    near(found, np.log(np.mean([softmax(p) for p in parts], axis=0)))


def test_nodes_and_weights_say_whose_they_are() -> None:
    made = joined(three(), NAMES, method_of("mean", NAMES))
    own = {
        n.source.path for n in member(1).graph.nodes if n.op not in ("input", "constant") and n.source.path
    }
    paths = {n.source.path for n in made.graph.nodes}
    assert {f"b.{path}" for path in own} <= paths
    assert "ensemble" in paths
    assert not own & paths
    names = [
        n.attributes["value"].name
        for n in made.graph.nodes
        if n.op == "constant" and n.attributes["value"].name
    ]
    assert all(name.startswith(("a.", "b.", "c.")) for name in names)


def test_bodies_are_named_too() -> None:
    members = []
    for number in range(2):
        x = input_("x", "f32", (symbol("batch"), 2))
        inner = input_("h", "f32", (symbol("batch"), 2))
        body = Graph((inner,), {"h": make("tanh", (inner,))})
        loop = make("loop", (x,), body=body, count=2 + number, carried=1)
        graph = Graph((x,), {"y": make("result", (loop,), index=0)}, {"batch": (1, 4)})
        members.append(Imported(graph, "m", "generic", "", "", (), None, None))
    made = joined(members, NAMES[:2], method_of("mean", NAMES[:2]))
    assert {n.source.path for n in made.graph.everywhere() if n.op == "tanh"} == {"a.h", "b.h"}
    x = np.ones((1, 2), np.float32)
    near(interpret.run(made.graph, {"x": x})["y"], (np.tanh(np.tanh(x)) + np.tanh(np.tanh(np.tanh(x)))) / 2)


def test_another_architecture_of_the_same_signature() -> None:
    """DistilBERT tells no segments apart: they go to BERT alone."""
    members = [member(0), member(0, family="distilbert")]
    inputs, parts = answers(members)
    assert "token_type_ids" in inputs
    for order in (members, members[::-1]):
        near(
            run(order, method_of("mean", NAMES[:2]), inputs),
            np.log(np.mean([softmax(p) for p in parts], axis=0)),
        )
    made = joined(members, NAMES[:2], method_of("mean", NAMES[:2]))
    assert made.architecture == "BertForSequenceClassification+DistilBertForSequenceClassification"
    assert [m["name"] for m in made.ensemble["members"]] == ["a", "b"]


def test_sizes_and_ranges_are_those_that_all_take() -> None:
    members = [member(0), member(1, max_position_embeddings=32, vocab_size=90)]
    made = joined(members, NAMES[:2], method_of("mean", NAMES[:2]))
    assert made.graph.dims["seq"].high == 32
    ids = next(node for node in made.graph.inputs if node.attributes["name"] == "input_ids")
    assert ids.attributes["high"] == 89


def test_a_graphs_text_keeps_what_it_is_made_of(tmp_path: Path) -> None:
    made = joined(three(), NAMES, method_of("mean", NAMES))
    graph_text.write(tmp_path / "ensemble.txt", made)
    again = graph_text.load(tmp_path / "ensemble.txt")
    assert again.ensemble == made.ensemble
    inputs, _ = answers(three())
    np.testing.assert_array_equal(
        interpret.run(again.graph, inputs)["logits"], interpret.run(made.graph, inputs)["logits"]
    )


def tokenized(one: Imported, tmp_path: Path, name: str, **settings: Any) -> Imported:
    file = tmp_path / f"{name}.json"
    words = settings.pop("words", {"a": 0, "b": 1})
    file.write_text(json.dumps({"model": {"type": "WordLevel", "vocab": words}}))
    return replace(one, tokenizer=Tokenizer(file, **{"max_length": 20, "pad_id": 0, **settings}))


def test_texts_are_as_long_as_all_take(tmp_path: Path) -> None:
    a, b = tokenized(member(0), tmp_path, "a"), tokenized(member(1), tmp_path, "b", max_length=12)
    made = joined([a, b], NAMES[:2], method_of("mean", NAMES[:2]))
    assert made.tokenizer is not None
    assert made.tokenizer.max_length == 12


def test_segments_are_made_for_those_that_read_them(tmp_path: Path) -> None:
    few = ("input_ids", "attention_mask")
    bert, distil = (
        tokenized(member(0), tmp_path, "a"),
        tokenized(member(0, "distilbert"), tmp_path, "b", inputs=few),
    )
    for members in ([bert, distil], [distil, bert]):
        made = joined(members, NAMES[:2], method_of("mean", NAMES[:2]))
        assert made.tokenizer is not None
        assert set(made.tokenizer.inputs) == {*few, "token_type_ids"}
    other = tokenized(member(1), tmp_path, "c", inputs=few)
    with pytest.raises(LlmcError, match="b differs from a in the input token_type_ids") as caught:
        joined([bert, other], NAMES[:2], method_of("mean", NAMES[:2]))
    assert caught.value.found == "made by the tokenizer of a, at its default in b"


def test_another_tokenizer_is_named_with_the_place(tmp_path: Path) -> None:
    a, b = tokenized(member(0), tmp_path, "a"), tokenized(member(1), tmp_path, "b", words={"a": 0, "b": 7})
    with pytest.raises(LlmcError, match="b differs from a in its tokenizer") as caught:
        joined([a, b], NAMES[:2], method_of("mean", NAMES[:2]))
    assert caught.value.at == "tokenizer.json.model.vocab.b"
    assert caught.value.found == "1 in a, 7 in b"
    with pytest.raises(LlmcError, match="differs from a in tokenizer's pad_id"):
        joined([a, tokenized(member(1), tmp_path, "a", pad_id=1)], NAMES[:2], method_of("mean", NAMES[:2]))
    with pytest.raises(LlmcError, match="differs from a in"):
        joined([a, member(1)], NAMES[:2], method_of("mean", NAMES[:2]))


def test_other_labels_tasks_and_scores() -> None:
    a = member(0)
    error = refused([a, replace(member(1), labels=("bad", "fair", "good"))])
    assert (error.problem, error.at) == ("b differs from a in its labels", "labels[1]")
    assert error.found == '"so-so" in a, "fair" in b'
    assert "b differs from a in its labels" in refused([a, replace(member(1), labels=("bad",))]).problem
    assert (
        refused([a, replace(member(1), task="token-classification")]).problem
        == "b differs from a in its task"
    )
    assert refused([a, replace(member(1), scores="sigmoid")]).problem == "b differs from a in scores"
    assert "c differs from a" in refused([a, member(1), replace(member(2), preprocess={"kind": "x"})]).problem


def test_other_inputs_and_outputs() -> None:
    a = member(0)
    mask = [n for n in a.graph.inputs if n.attributes["name"] != "attention_mask"]
    ids = {"input_ids": make("cast", (mask[0],), dtype="f32")}
    narrow = replace(a, graph=Graph(tuple(mask), ids, a.graph.dims))
    error = refused([a, narrow])
    assert error.problem == "b differs from a in the input attention_mask"
    assert error.found == "i64[batch, seq], default 1, from 0 to 1 in a, none in b"
    error = refused([a, replace(a, graph=replace(a.graph, outputs={"hidden": a.graph.outputs["logits"]}))])
    assert error.problem == "b differs from a in the outputs"
    assert error.found == "logits f32[batch, 3] in a, hidden f32[batch, 3] in b"
    error = refused(of_numbers([1, 2], [1, 2, 3]))
    assert error.problem == "b differs from a in the input x"
    short = replace(a, graph=replace(a.graph, dims={**a.graph.dims, "seq": (90, 99)}))
    assert "takes no size that the others take" in refused([a, short]).problem


def test_states_and_tasks_without_a_mean() -> None:
    x, past = input_("x", "f32", (symbol("seq"), 4)), state_("seen", "f32", (symbol("past"), 4), grows=0)
    rows = make("concat", (past, x), axis=0)
    bounds = {"seq": (1, 8), "past": (0, 8)}
    graph = Graph((x,), {"logits": rows}, bounds, states=(past,), updates={"seen": rows})
    writer = Imported(graph, "m", "text-generation", "", "", (), None, None)
    error = refused([writer, writer])
    assert "a keeps states from call to call" in error.problem
    assert "language-modeling" in str(error.hint)
    assert "no mean" in refused(of_numbers([1], [2], task="object-detection")).problem
    integers = [
        replace(m, graph=replace(m.graph, outputs={"ids": make("cast", tuple(m.graph.outputs.values()), dtype="i64")}))
        for m in of_numbers([1], [2], task="generic")
    ]  # fmt: skip
    assert "ids is no float" in refused(integers).problem
    several = replace(member(0), functions={"a": member(0).graph, "b": member(0).graph})
    assert "has several functions" in refused([several, several]).problem


def test_votes_and_stacks_are_of_classes(tmp_path: Path) -> None:
    tokens = [member(seed, suffix="ForTokenClassification") for seed in range(2)]
    assert "a vote is of classes" in refused(tokens, "vote").problem
    assert "a vote is of classes" in refused(of_numbers([1], [2], scores="none"), "vote").problem
    head = written(tmp_path / "head.json", np.ones((3, 6)), None, None)
    assert (
        "a stack is of logits"
        in refused([member(s, suffix="Model") for s in range(2)], f"stack:{head}").problem
    )


def test_names_of_members(tmp_path: Path) -> None:
    folders = [tmp_path / "run 1" / "best", tmp_path / "run 2" / "best", tmp_path / "run 2" / "my model"]
    for folder in folders:
        folder.mkdir(parents=True)
    assert member_names(folders) == ("best", "best-2", "my-model")
    with pytest.raises(LlmcError, match="given twice") as caught:
        member_names([folders[0], folders[1], tmp_path / "run 2" / ".." / "run 1" / "best"])
    assert "weights" in str(caught.value.hint)
    with pytest.raises(LlmcError, match="2 to 64 members"):
        member_names(folders[:1])
