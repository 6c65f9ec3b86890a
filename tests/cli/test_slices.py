"""`llmc eval --slice-by`, F1 and calibration error: figures computed by hand, and data that makes no slices."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import llmc
from llmc.errors import LlmcError
from llmc.evaluate import Limits, evaluate
from llmc.measures import MOST, Answers, bin_of

# Six rows of probabilities for three classes, and labels; the last class has no row and no answer.
LOGITS = np.log(
    [
        [0.7, 0.2, 0.1],
        [0.1, 0.8, 0.1],
        [0.3, 0.3, 0.4],
        [0.6, 0.3, 0.1],
        [0.05, 0.9, 0.05],
        [0.2, 0.5, 0.3],
    ]
)
LOGITS = np.concatenate([LOGITS, np.full((6, 1), -60.0)], 1)
TRUTH = np.array([0, 1, 2, 1, 1, 0])


class Fake:
    """Answers with the logits that the text says; the one called `other` sees every text as the last row."""

    labels, dims, inputs, cut_texts = ("a", "b", "c", "d"), {}, {}, 0

    def __init__(self, path: Any) -> None:
        self.other = str(path).endswith("other")
        self.task = "sentence-embedding" if "embedder" in str(path) else "text-classification"

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def run_text(self, texts: list[str], truncate: bool = True) -> dict[str, Any]:
        rows = LOGITS[[5 if self.other else int(text) for text in texts]].astype(np.float32)
        return {"sentence_embedding" if self.task == "sentence-embedding" else "logits": rows}


@pytest.fixture
def models(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("own", "other", "embedder", "embedder-other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    monkeypatch.setattr(llmc, "load", lambda path, threads=None: Fake(path), raising=False)
    return tmp_path


def write(folder: Any, kinds: list[Any]) -> Any:
    rows = [{"text": str(i), "label": "abcd"[TRUTH[i]], "kind": kind} for i, kind in enumerate(kinds)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "data.jsonl"


# --- F1 and calibration


def test_precision_recall_f1_are_those_of_scikit_learn() -> None:
    """precision_recall_fscore_support and f1_score(average="macro") of scikit-learn 1.7 give these figures."""
    answers = Answers(4)
    for i in range(6):  # in batches
        answers.add(LOGITS[i : i + 1], TRUTH[i : i + 1])
    shares = [1 / 2, 2 / 3, 1, 0]
    assert answers.precision == pytest.approx(shares)
    assert answers.recall == pytest.approx(shares)
    assert answers.f1 == pytest.approx(shares)
    assert list(answers.seen) == [0, 1, 2]
    assert answers.macro_f1 == pytest.approx(13 / 18), "a class that nobody names is none"


def test_expected_calibration_error() -> None:
    """Each row is in a bin of its own: (0.3 + 0.2 + 0.6 + 0.6 + 0.1 + 0.5) / 6."""
    answers = Answers(4)
    answers.add(LOGITS, TRUTH)
    assert answers.calibration_error == pytest.approx(2.3 / 6)
    assert list(bin_of(np.array([0.0, 1e-9, 1 / 15, 0.0667, 0.5, 1.0]))) == [0, 0, 0, 1, 7, 14]


def test_two_rows_of_one_bin_are_averaged_first() -> None:
    """Right with 0.9 and wrong with 0.9: |1/2 - 0.9|, not (0.1 + 0.9) / 2."""
    answers = Answers(2)
    answers.add(np.log([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1]))
    assert answers.calibration_error == pytest.approx(0.4)


def test_a_class_that_is_never_answered_counts_as_zero() -> None:
    answers = Answers(3)
    answers.add(np.log([[0.9, 0.05, 0.05]] * 4), np.array([0, 0, 0, 2]))
    assert list(answers.recall) == [1, 0, 0]
    assert answers.macro_f1 == pytest.approx((6 / 7 + 0) / 2)


def test_one_class_alone(models: Any) -> None:
    (models / "data.csv").write_text("text,label\n1,b\n4,b\n")
    found = evaluate(models / "own", models / "data.csv")
    assert (found.accuracy, found.macro_f1) == (1, 1)
    assert [one["class"] for one in found.classes or []] == ["b"]


def test_large_logits_have_a_confidence() -> None:
    answers = Answers(2)
    answers.add(np.float32([[3e38, -3e38], [-1e30, 1e30]]), np.array([0, 1]))
    assert answers.calibration_error == 0


# --- slices


def test_each_slice_has_its_figures(models: Any) -> None:
    data = write(models, ["x", "y", "x", "y", "x", None])
    found = evaluate(models / "own", data, models / "other", slice_by="kind")
    assert found.slices is not None
    assert [one["value"] for one in found.slices] == ["x", "y", None]
    x, y, none = found.slices
    assert (x["rows"], x["accuracy"], x["baseline_accuracy"], x["agreement"]) == (3, 1, 1 / 3, 1 / 3)
    assert x["difference"] == pytest.approx(2 / 3)
    half = 1.96 * np.sqrt((2 / 3 - 4 / 9) / 3)
    assert x["interval"] == pytest.approx((2 / 3 - half, 2 / 3 + half))
    assert (y["rows"], y["accuracy"], y["baseline_accuracy"], y["difference"]) == (2, 0.5, 1, -0.5)
    assert (none["rows"], none["accuracy"], none["agreement"]) == (1, 0, 1)
    assert found.accuracy == pytest.approx(sum(one["rows"] * one["accuracy"] for one in found.slices) / 6)


def test_limits_of_each_slice(models: Any, cli: Any) -> None:
    data = write(models, ["x", "y\x1b[2J", "x", "y\x1b[2J", "x", "x"])
    run = ("eval", models / "own", "--data", data, "--baseline", models / "other", "--max-drop", "10%")
    assert cli(*run, "--slice-by", "kind").code == 0, "together it gains"
    told = cli(*run, "--slice-by", "kind", "--each-slice")
    assert told.code == 1
    assert r"drop in accuracy of kind 'y\x1b[2J' is 0.5, the limit 0.1" in told.err
    assert cli(*run, "--slice-by", "kind", "--each-slice", "--slice-rows", "3").code == 0


def test_slices_are_shown_escaped_and_small_ones_named(models: Any, cli: Any) -> None:
    data = write(models, ["日本", "\x1b[2J", "[/red]", "\u202egnp", 3, True])
    told = cli("eval", models / "own", "--data", data, "--slice-by", "kind")
    assert told.code == 0, told.err
    assert "slices by kind" in told.out
    for shown in ("日本", r"\x1b[2J", "[/red]", r"\u202egnp", "\n 3 ", "\n true "):
        assert shown in told.out
    assert "\x1b" not in told.out
    assert told.out.count("fewer than 30 rows") == 6
    assert "macro F1" in told.out
    assert "calibration error" in told.out


def test_a_column_of_any_name(models: Any, cli: Any) -> None:
    (models / "data.csv").write_text("text,label,>[/b]\n0,a,x\n")
    told = cli("eval", models / "own", "--data", models / "data.csv", "--slice-by", ">[/b]")
    assert told.code == 0, told.err
    assert "slices by >[/b]" in told.out


def test_too_many_values_are_no_slices(models: Any, cli: Any) -> None:
    rows = "".join(f"0,a,{i}\n" for i in range(MOST + 1))
    (models / "data.csv").write_text(f"text,label,id\n{rows}")
    run = ("eval", models / "own", "--data", models / "data.csv", "--slice-by", "id")
    told = cli(*run)
    assert told.code == 0
    assert f"not measured: slices: column 'id' has more than {MOST} values" in told.out
    facts = json.loads(cli(*run, "--json").out)
    assert (facts["slices"], facts["accuracy"]) == (None, 1)
    told = cli(*run, "--each-slice", "--min-accuracy", "0.5")
    assert (told.code, "there are no slices to hold to the limits" in told.err) == (1, True)


def test_embeddings_have_cosines_by_slice(models: Any, cli: Any) -> None:
    data = write(models, ["x", "y", "x", "y", "x", "y"])
    run = ("eval", models / "embedder", "--data", data, "--baseline", models / "embedder-other")
    facts = json.loads(cli(*run, "--slice-by", "kind", "--json").out)
    a, b = LOGITS, LOGITS[5:]
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b)
    assert [one["cosine_mean"] for one in facts["slices"]] == pytest.approx(
        [cosines[::2].mean(), cosines[1::2].mean()], rel=1e-6
    )
    assert facts["slices"][1]["cosine_min"] == pytest.approx(cosines[1::2].min(), rel=1e-6)
    assert "accuracy, F1 and calibration error: embeddings name no classes" in cli(*run).out


def test_without_labels_agreement_alone(models: Any, cli: Any) -> None:
    (models / "data.csv").write_text("text,kind\n5,x\n0,y\n")
    run = ("eval", models / "own", "--data", models / "data.csv", "--baseline", models / "other")
    told = cli(*run, "--slice-by", "kind")
    assert told.code == 0, told.err
    assert "not measured: accuracy, F1 and calibration error: the data has no labels" in told.out
    facts = json.loads(cli(*run, "--slice-by", "kind", "--json").out)
    assert [(one["value"], one["agreement"], one["accuracy"]) for one in facts["slices"]] == [
        ("x", 1, None),
        ("y", 0, None),
    ]


MISTAKES = {
    "no such column": ("d.csv", "text,label,kind\n0,a,x\n", ["--slice-by", "knd"], "did you mean kind?"),
    "several values": ("d.jsonl", '{"text": "0", "label": "a", "k": [1]}\n', ["--slice-by", "k"], "several"),
    "plain text": ("d.txt", "0\n", ["--slice-by", "kind"], "a text file has none"),
    "empty": ("d.csv", "text,label,kind\n", ["--slice-by", "kind"], "the data is empty"),
    "no slices": ("d.csv", "text,label\n0,a\n", ["--each-slice", "--min-accuracy", "0"], "no slices to hold"),
    "another label": ("d.csv", "text,label,k\n0,e,x\n", ["--slice-by", "k"], "unknown label 'e'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(models: Any, cli: Any, mistake: str) -> None:
    name, text, options, words = MISTAKES[mistake]
    (models / name).write_text(text)
    told = cli("eval", models / "own", "--data", models / name, *options)
    assert (told.code, words in told.err) == (1, True), told.err


def test_options_that_belong_together(models: Any, cli: Any) -> None:
    data = write(models, ["x"] * 6)
    run = ("eval", models / "own", "--data", data)
    assert cli(*run, "--each-slice").code == 2
    assert cli(*run, "--slice-rows", "3").code == 2
    with pytest.raises(LlmcError, match="no slices to hold"):
        evaluate(models / "own", data, limits=Limits(min_accuracy=0, each_slice=True))
    (models / "own" / "manifest.json").write_text('{"generation": {"logits": "logits"}}')
    told = cli(*run, "--slice-by", "kind")
    assert (told.code, "--slice-by is not for models that generate text" in told.err) == (1, True), told.err


def test_a_byte_order_mark_before_the_column(models: Any) -> None:
    (models / "data.csv").write_bytes(b"\xef\xbb\xbfkind,text,label\nx,0,a\n")
    found = evaluate(models / "own", models / "data.csv", slice_by="kind")
    assert [one["value"] for one in found.slices or []] == ["x"]


def test_folders_have_no_columns(tmp_path: Any) -> None:
    from llmc.dataset import read_files

    (tmp_path / "cat").mkdir()
    with pytest.raises(LlmcError, match="a folder has none"):
        next(read_files(tmp_path, "image", group="kind"))
