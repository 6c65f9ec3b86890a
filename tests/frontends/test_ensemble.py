"""Ensembles: every method against NumPy on the members' own answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ensembles import (
    NAMES,
    Array,
    answers,
    member,
    near,
    of_numbers,
    run,
    sigmoid,
    softmax,
    three,
    written,
)

from llmc.compiler.frontends.combining import method_of
from llmc.compiler.frontends.sentence import Sentence


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
