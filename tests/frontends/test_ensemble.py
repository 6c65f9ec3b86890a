"""Ensembles: every method against NumPy on the members' own answers; what is shared; what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import kept_graphs
import numpy as np
import pytest
from random_families import layers, random_model, sample
from safetensors.numpy import save_file

from llmc.compiler import interpret
from llmc.compiler.dims import symbol
from llmc.compiler.frontends import graph_text
from llmc.compiler.frontends.combining import Method, method_of
from llmc.compiler.frontends.combining_files import read_head, read_weights_of
from llmc.compiler.frontends.ensemble import joined, member_names
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.frontends.sentence import Sentence
from llmc.compiler.frontends.tokenizer import Tokenizer
from llmc.compiler.graph import Graph
from llmc.compiler.ops import constant, input_, make, state_
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.verify import verify_module
from llmc.errors import LlmcError
from llmc.passes import LEVEL_PARTS, PASSES

NAMES = ("a", "b", "c")
CLASSIFIER = "ForSequenceClassification"
Array = np.ndarray[Any, Any]


@cache
def member(seed: int, family: str = "bert", suffix: str = CLASSIFIER, **changes: Any) -> Imported:
    """A random model of one layer and three labels."""
    labelled = suffix.endswith("Classification")
    labels = {"id2label": {0: "bad", 1: "so-so", 2: "good"}} if labelled else {}
    model = random_model(family, suffix, seed, **layers(suffix), **labels, **changes)
    return kept_graphs.imported(model, max_batch=8)


def three(suffix: str = CLASSIFIER, **changes: Any) -> list[Imported]:
    return [member(seed, suffix=suffix, **changes) for seed in range(3)]


def answers(members: Sequence[Imported], output: str = "logits") -> tuple[dict[str, Array], list[Array]]:
    """Inputs with padding, and what each member says of them by itself, in float64."""
    inputs = sample(members[0].graph, 5, 9)
    found = []
    for one in members:
        names = {node.attributes["name"] for node in one.graph.inputs}
        given = {name: value for name, value in inputs.items() if name in names}
        found.append(interpret.run(one.graph, given)[output].astype(np.float64))
    return inputs, found


def run(
    members: Sequence[Imported], method: Method, inputs: dict[str, Array], output: str = "logits"
) -> Array:
    made = joined(members, NAMES[: len(members)], method)
    verify_module(made.module)
    return interpret.run(made.graph, inputs)[output]


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def near(found: Array, wanted: Array) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


# --- methods


def test_the_mean_is_of_probabilities() -> None:
    inputs, parts = answers(three())
    wanted = np.mean([softmax(p) for p in parts], axis=0)
    found = run(three(), method_of("mean", NAMES), inputs)
    near(softmax(found.astype(np.float64)), wanted)
    near(found, np.log(wanted))


def test_weights_are_of_probabilities(tmp_path: Path) -> None:
    file = tmp_path / "weights.json"
    inputs, parts = answers(three())
    wanted = sum(w * softmax(p) for w, p in zip((0.5, 0.375, 0.125), parts, strict=True))
    for said in (
        {"weights": [4, 3, 1]},
        {"weights": {"c": 1, "b": 3, "a": 4}},
        {"a": 4.0, "b": 3.0, "c": 1.0},
    ):
        file.write_text(json.dumps(said))
        found = run(three(), method_of(str(file), NAMES), inputs)
        near(found, np.log(wanted))


def voted(parts: Sequence[Array]) -> tuple[Array, Array]:
    votes = sum(np.eye(p.shape[-1])[p.argmax(-1)] for p in parts)
    return votes / len(parts), np.mean([softmax(p) for p in parts], axis=0)


def test_a_vote_is_the_share_of_members() -> None:
    inputs, parts = answers(three())
    shares, mean = voted(parts)
    found = softmax(run(three(), method_of("vote", NAMES), inputs).astype(np.float64))
    np.testing.assert_allclose(found, shares, atol=1e-3)
    assert (found.argmax(-1) == (shares + 1e-6 * mean).argmax(-1)).all()


def of_numbers(
    *rows: Sequence[float], scores: str = "softmax", task: str = "text-classification"
) -> list[Imported]:
    """Members that answer each sample with the sample itself plus a row of numbers."""
    made = []
    for row in rows:
        x = input_("x", "f32", (symbol("batch"), len(row)))
        graph = Graph(
            (x,), {"logits": make("add", (x, constant(np.array(row, np.float32))))}, {"batch": (1, 8)}
        )
        made.append(Imported(graph, "m", task, "", "", (), None, None, scores=scores))
    return made


def test_the_mean_probability_decides_a_tie() -> None:
    members = of_numbers([0, 3, 0], [1, 0, 0])
    found = run(members, method_of("vote", NAMES[:2]), {"x": np.zeros((2, 3), np.float32)})
    assert np.isfinite(found).all()
    assert (found.argmax(-1) == 1).all()
    np.testing.assert_allclose(softmax(found), [[0.5, 0.5, 0]] * 2, atol=1e-3)
    found = run(members[::-1], method_of("vote", NAMES[:2]), {"x": np.zeros((2, 3), np.float32)})
    assert (found.argmax(-1) == 1).all()


def test_votes_go_before_probabilities() -> None:
    members = of_numbers([0.1, 0], [0.1, 0], [0, 50])
    found = run(members, method_of("vote", NAMES), {"x": np.zeros((1, 2), np.float32)})
    assert found.argmax(-1) == 0


def test_probabilities_that_float32_has_not_are_kept() -> None:
    """exp(-200) is 0 in float32; its logarithm is not."""
    members = of_numbers([200, 0], [400, 0])
    found = run(members, method_of("mean", NAMES[:2]), {"x": np.zeros((1, 2), np.float32)})
    np.testing.assert_allclose(found, [[0, -200 - np.log(2)]], rtol=1e-6, atol=1e-6)
    zeros = run(
        of_numbers([0, -np.inf], [1, -np.inf]),
        method_of("mean", NAMES[:2]),
        {"x": np.zeros((1, 2), np.float32)},
    )
    np.testing.assert_array_equal(softmax(zeros), [[1, 0]])


@pytest.mark.parametrize("kind", ["mean", "vote"])
def test_labels_that_hold_for_themselves(kind: str) -> None:
    rows = [[3, -2, 40, -300], [-1, 1, 60, -1], [2, -1, -40, -2]]
    members = of_numbers(*rows, scores="sigmoid")
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    found = run(members, method_of(kind, NAMES), {"x": x})
    parts = [(x + np.array(row, np.float32)).astype(np.float64) for row in rows]
    mean = np.mean([sigmoid(p) for p in parts], axis=0)
    if kind == "mean":
        near(found, np.log(mean) - np.log(np.mean([sigmoid(-p) for p in parts], axis=0)))
    else:
        np.testing.assert_allclose(sigmoid(found), np.mean([p > 0 for p in parts], axis=0), atol=1e-3)


def test_a_tie_of_a_label_is_decided_too() -> None:
    members = of_numbers([3, 1], [-1, -3], scores="sigmoid")
    found = run(members, method_of("vote", NAMES[:2]), {"x": np.zeros((1, 2), np.float32)})
    assert (found > 0).tolist() == [[True, False]]


def test_numbers_have_the_mean_of_numbers() -> None:
    x = np.ones((2, 3), np.float32)
    found = run(of_numbers([1, 2, 3], [3, 2, 7], scores="none"), method_of("mean", NAMES[:2]), {"x": x})
    near(found, np.array([[3, 3, 6]] * 2))
    found = run(of_numbers([1, 2], [3, 2], task="generic"), method_of("mean", NAMES[:2]), {"x": x[:, :2]})
    near(found, np.array([[3, 3]] * 2))


def test_tokens_have_classes_each() -> None:
    members = three("ForTokenClassification")
    inputs, parts = answers(members)
    found = run(members, method_of("mean", NAMES), inputs)
    near(found, np.log(np.mean([softmax(p) for p in parts], axis=0)))


def test_answers_of_questions_are_means_of_logits() -> None:
    members = [member(seed, suffix="ForQuestionAnswering") for seed in range(2)]
    for output in ("start_logits", "end_logits"):
        inputs, parts = answers(members, output)
        near(run(members, method_of("mean", NAMES[:2]), inputs, output), np.mean(parts, axis=0))


def test_several_outputs() -> None:
    members = [member(seed, suffix="Model") for seed in range(2)]
    assert len(members[0].graph.outputs) == 2
    for output in members[0].graph.outputs:
        inputs, parts = answers(members, output)
        near(run(members, method_of("mean", NAMES[:2]), inputs, output), np.mean(parts, axis=0))


def test_vectors_of_length_1_stay_so() -> None:
    rows = [[1.0, 0, 0], [0, 1, 0]]
    members = []
    for one in of_numbers(*rows, task="sentence-embedding"):
        (node,) = one.graph.outputs.values()
        graph = replace(one.graph, outputs={"sentence_embedding": node})
        members.append(replace(one, graph=graph, scores=None, sentence=Sentence(steps=("normalize",))))
    inputs = {"x": np.zeros((2, 3), np.float32)}
    found = run(members, method_of("mean", NAMES[:2]), inputs, "sentence_embedding")
    near(found, np.array([[np.sqrt(0.5), np.sqrt(0.5), 0]] * 2))
    plain = [replace(m, sentence=Sentence()) for m in members]
    near(
        run(plain, method_of("mean", NAMES[:2]), inputs, "sentence_embedding"), np.array([[0.5, 0.5, 0]] * 2)
    )


def written(path: Path, weight: Any, bias: Any, inputs: str | None) -> Path:
    """A stack in the kind of file that the path names."""
    if path.suffix == ".json":
        said = {"weight": np.asarray(weight).tolist(), "bias": None if bias is None else bias.tolist()}
        path.write_text(json.dumps(said | ({"inputs": inputs} if inputs else {})))
        return path
    arrays = {"weight": weight} | ({} if bias is None else {"bias": bias})
    if path.suffix == ".npz":
        np.savez(path, **arrays, **({"inputs": inputs} if inputs else {}))
    else:
        floats = {name: np.asarray(a, np.float32) for name, a in arrays.items()}
        save_file(floats, path, {"inputs": inputs} if inputs else None)
    return path


@pytest.mark.parametrize("suffix", [".json", ".npz", ".safetensors"])
@pytest.mark.parametrize(("inputs", "biased"), [("probabilities", True), ("logits", False), (None, True)])
def test_a_stack_is_a_layer_over_the_members(
    tmp_path: Path, suffix: str, inputs: str | None, biased: bool
) -> None:
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(size=(3, 9)), rng.normal(size=3) if biased else None
    file = written(tmp_path / f"head{suffix}", weight, bias, inputs)
    given, parts = answers(three())
    read = [softmax(p) for p in parts] if inputs == "probabilities" else parts
    wanted = np.concatenate(read, -1) @ weight.T + (bias if biased else 0)
    found = run(three(), method_of(f"stack:{file}", NAMES), given)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_stack_over_labels_that_hold_for_themselves(tmp_path: Path) -> None:
    weight = np.arange(8.0).reshape(2, 4)
    file = written(tmp_path / "head.json", weight, None, "probabilities")
    members = of_numbers([1, -1], [2, 0], scores="sigmoid")
    found = run(members, method_of(f"stack:{file}", NAMES[:2]), {"x": np.zeros((1, 2), np.float32)})
    near(found, sigmoid(np.array([[1, -1, 2, 0.0]])) @ weight.T)


# --- what is shared


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


# --- tokenizers


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


# --- what is refused


def refused(members: Sequence[Imported], text: str = "mean") -> LlmcError:
    names = NAMES[: len(members)]
    with pytest.raises(LlmcError) as caught:
        joined(members, names, method_of(text, names))
    return caught.value


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


@pytest.mark.parametrize("shape", [(3, 8), (2, 9), (9, 3)])
def test_a_stack_of_another_size(tmp_path: Path, shape: tuple[int, int]) -> None:
    file = written(tmp_path / "head.npz", np.ones(shape), None, None)
    error = refused(three(), f"stack:{file}")
    assert error.problem == "the stack's weight does not fit the members' logits"
    assert f"{list(shape)}, wanted [3, 9]" in str(error.found)
    file = written(tmp_path / "head.npz", np.ones((3, 9)), np.ones(2), None)
    assert "bias has 2 numbers" in refused(three(), f"stack:{file}").problem


def test_a_regression_of_one_row_is_told_what_to_do(tmp_path: Path) -> None:
    file = written(tmp_path / "head.npz", np.ones((1, 4)), None, None)
    assert "the rows 0 and w" in str(refused(of_numbers([1, 2], [3, 4]), f"stack:{file}").hint)


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


@pytest.mark.parametrize("text", ["men", "weights.txt", "stack", ""])
def test_a_method_that_is_none(text: str) -> None:
    with pytest.raises(LlmcError, match="no ensemble"):
        method_of(text, NAMES)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not valid JSON"),
        ("[1, 2, 3]", "not a JSON object"),
        ('{"weights": 3}', "holds no weights"),
        ('{"weights": [1, 2]}', "2 weights for 3 members"),
        ('{"weights": [1, 2, -1]}', "the weight of c is no positive number"),
        ('{"weights": [1, 2, 0]}', "the weight of c is no positive number"),
        ('{"weights": [1, true, 2]}', "the weight of b is no positive number"),
        ('{"weights": [1, "2", 2]}', "the weight of b is no positive number"),
        ('{"weights": [1, NaN, 2]}', "the weight of b is no positive number"),
        ('{"weights": [1, Infinity, 2]}', "the weight of b is no positive number"),
        ('{"weights": [1, 1e-200, 2]}', "a weight is nothing beside the others"),
        ('{"a": 1, "b": 2}', "there is no weight of c"),
        ('{"a": 1, "b": 2, "c": 3, "d": 4}', "'d' is no member's name"),
        ("{}", "there is no weight of a"),
    ],
)
def test_damaged_weights(tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "weights.json"
    file.write_text(content)
    with pytest.raises(LlmcError, match=told) as caught:
        read_weights_of(file, NAMES)
    assert caught.value.at == str(file)


def test_weights_of_any_size_are_shares(tmp_path: Path) -> None:
    file = tmp_path / "weights.json"
    file.write_text('{"weights": [1e299, 1e299, 2e299]}')
    assert read_weights_of(file, NAMES) == pytest.approx((0.25, 0.25, 0.5))
    with pytest.raises(LlmcError, match="no such file"):
        read_weights_of(tmp_path / "none.json", NAMES)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("head.bin", b"", "no kind of file"),
        ("head.json", b"{", "not valid JSON"),
        ("head.json", b'{"bias": [1]}', "has no weight"),
        ("head.json", b'{"weight": [[1, 2], [3]]}', "is not rows of one length"),
        ("head.json", b'{"weight": [1, 2]}', "is not rows of one length"),
        ("head.json", b'{"weight": [["a"]]}', "is not rows of one length"),
        ("head.json", b'{"weight": [[1]], "bias": [[1]]}', "bias is not a row"),
        ("head.json", b'{"weight": [[NaN]]}', "not finite"),
        ("head.json", b'{"weight": [[1e300]]}', "not finite"),
        ("head.json", b'{"weight": [[1]], "inputs": "labels"}', "inputs are of another kind"),
        ("head.json", b'{"weight": [[1]], "inputs": []}', "inputs are of another kind"),
        ("head.json", b'{"weight": [[1]], "scale": 2}', "'scale' is nothing of a stack's"),
        ("head.npz", b"PK\x03\x04 and so on", "damaged, or no .npz file"),
        ("head.safetensors", b"\xff" * 40, "corrupt or truncated"),
    ],
)
def test_damaged_stacks(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(LlmcError, match=told) as caught:
        read_head(file)
    assert caught.value.at == str(file)


def test_a_stack_that_is_cut_or_holds_objects(tmp_path: Path) -> None:
    file = written(tmp_path / "head.npz", np.ones((3, 9)), None, None)
    data = file.read_bytes()
    for end in (10, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:end])
        with pytest.raises(LlmcError, match=r"damaged, or no .npz file"):
            read_head(file)
    np.savez(file, weight=np.array([[object()]], dtype=object))
    with pytest.raises(LlmcError, match="Python objects"):
        read_head(file)
    whole = tmp_path / "whole.safetensors"
    save_file({"weight": np.ones((3, 9), np.int64)}, whole)
    with pytest.raises(LlmcError, match="is I64"):
        read_head(whole)
    with pytest.raises(LlmcError, match="no such file"):
        read_head(tmp_path / "none.npz")
