"""Answers of changed graphs by what has changed alone: as the interpreter gives them, in whatever batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import random_encoders

from llmc.compiler import interpret
from llmc.compiler.graph import Graph
from llmc.compiler.pipeline import Pipeline
from llmc.passes import LEVELS, PASSES
from llmc.sensitivity import Evaluator, Loss, Measure, Rows, measure_of

LOGITS = "logits"


def encoder() -> Graph:
    graph, _ = random_encoders.random_encoder(0)
    return Pipeline.parse(LEVELS[3], PASSES).run(graph)[0]


def rows(graph: Graph, count: int = 5) -> Rows:
    """Sentences of different lengths, without padding."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, 9, count)
    names = [n.attributes["name"] for n in graph.inputs]
    samples = [
        {name: np.ones((1, n), np.int64) if "mask" in name else rng.integers(0, 5, (1, n)) for name in names}
        for n in lengths
    ]
    return Rows(samples, [int(i) for i in rng.integers(0, 2, count)])


def test_answers_are_those_of_the_interpreter() -> None:
    graph = encoder()
    found = Evaluator(graph, rows(graph), keep=True)
    changed, _ = Pipeline.parse("share{clusters=16,least=8}", PASSES).run(graph)
    assert changed is not graph
    done = 0
    for answers in found.answers(changed):
        count = len(next(iter(answers.values())))
        for i in range(count):
            expected = interpret.run(changed, found.rows.samples[done + i])
            for name, value in expected.items():
                own = answers[name][i : i + 1][tuple(map(slice, value.shape))]
                np.testing.assert_allclose(own, value, rtol=1e-4, atol=1e-5)
        done += count
    assert done == 5


def test_what_is_not_changed_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = encoder()
    found = Evaluator(graph, rows(graph), keep=True)
    monkeypatch.setattr("llmc.sensitivity._value", lambda *a: pytest.fail("it was known"))
    monkeypatch.setattr(Evaluator, "_fixed", staticmethod(lambda graph: {}))
    assert found.divergence(graph, Measure("noise")) == 0


def logits(*values: float) -> dict[str, Any]:
    return {LOGITS: np.array([[v, 0.0] for v in values], np.float32)}


def test_losses_by_row() -> None:
    before, after = logits(1, -1, 2), logits(1, 1, -2)
    labels = [0, 0, 0]
    assert Measure("accuracy", LOGITS).loss(before, after, labels).tolist() == [0, -1, 1]
    assert Measure("answers", LOGITS).loss(before, after, None).tolist() == [0, 1, 1]
    kl = Measure("accuracy", LOGITS).divergence(before, after)
    p = 1 / (1 + np.exp(1))
    assert kl[0] == 0
    assert kl[1] == pytest.approx((1 - 2 * p) * 1)  # sum p log(p / q), q being 1 - p
    assert Measure("cosine", "y").loss({"y": np.eye(2)}, {"y": -np.eye(2)}, None).tolist() == [2, 2]
    noise = Measure("noise").loss({"y": np.array([[3.0, 4.0]])}, {"y": np.array([[3.0, 3.0]])}, None)
    assert noise.tolist() == [1 / 25]


def test_an_interval() -> None:
    found = Loss.of(np.array([0.0, 1.0, 0.0, -1.0]))
    assert (found.mean, found.rows) == (0, 4)
    assert found.half == pytest.approx(1.96 * np.sqrt(0.5) / 2)
    assert found.error == pytest.approx(found.half / 1.96)


def test_answers_that_are_no_numbers_diverge_without_bound() -> None:
    graph = encoder()
    found = Evaluator(graph, rows(graph), keep=False)
    broken = [{name: np.full_like(v, np.nan) for name, v in answers.items()} for answers in found.before]
    found.answers = lambda graph: broken  # type: ignore[method-assign]
    assert found.divergence(graph, Measure("noise")) == np.inf


@pytest.mark.parametrize(
    ("task", "scores", "labelled", "name"),
    [
        ("text-classification", None, True, "accuracy"),
        ("text-classification", None, False, "answers"),
        ("text-classification", "sigmoid", True, "noise"),
        ("sentence-embedding", None, False, "cosine"),
        ("generic", None, False, "noise"),
    ],
)
def test_what_is_measured(task: str, scores: str | None, labelled: bool, name: str) -> None:
    imported: Any = SimpleNamespace(task=task, scores=scores)
    measure = measure_of(imported, labelled)
    assert measure.name == name
    assert measure.rows_for(0.005) == (200 if name in ("accuracy", "answers") else 16)
    assert measure.rows_for(None) == 16
