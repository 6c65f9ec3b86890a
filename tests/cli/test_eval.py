"""`llmc eval`: reading data, counting, thresholds, and every mistake in the data."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

import llmc
from llmc.cli import main
from llmc.dataset import column_names, label_index, read_rows
from llmc.errors import LlmcError
from llmc.evaluate import Limits, evaluate, mcnemar, paired
from llmc.runtime.encoder import BadTexts

ROWS = [("a great film", 1), ("a bad film", 0), ("bad, bad", 0), ("great fun", 1)]


class Fake:
    """A classifier that answers 1 where `word` is in the text, or an embedder."""

    labels, dims, inputs, cut_texts = ("negative", "positive"), {}, {}, 0

    def __init__(self, word, task="text-classification"):
        self.word, self.task = word, task

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run_text(self, texts, truncate=True):
        hit = np.array([self.word in text for text in texts], np.float32)
        if self.task == "sentence-embedding":
            return {"sentence_embedding": np.stack([1 - hit, hit + 1], 1)}
        return {"logits": np.stack([1 - hit, hit], 1)}


@pytest.fixture
def artifacts(tmp_path, monkeypatch):
    """Folders that look like artifacts, whose name is the word that they look for."""
    for name in ("great", "film", "embed-great", "embed-film", "tokens"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")

    def load(path, threads=None):
        name = str(path).rpartition("/")[2]
        task = "token-classification" if name == "tokens" else "text-classification"
        return Fake(name.removeprefix("embed-"), "sentence-embedding" if "embed" in name else task)

    monkeypatch.setattr(llmc, "load", load, raising=False)
    return tmp_path


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": t, "label": i}) + "\n" for t, i in ROWS))
    return path


# --- counting


def test_texts_that_are_cut_are_counted(artifacts, data, monkeypatch, cli):
    monkeypatch.setattr(Fake, "cut_texts", 3)
    found = evaluate(artifacts / "great", data, artifacts / "film")
    assert (found.cut, found.baseline_cut) == (3, 3)
    said = cli("eval", artifacts / "great", "--data", data).err
    assert said == "warning: 3 of 4 texts were cut to what the model takes; --strict makes it an error\n"


def test_strict_refuses_what_would_be_cut(artifacts, data, monkeypatch, cli):
    def run_text(self, texts, truncate=True):
        assert not truncate
        raise BadTexts({2: "has 300 tokens, the model takes 128"}, len(texts))

    monkeypatch.setattr(Fake, "run_text", run_text)
    said = cli("eval", artifacts / "great", "--data", data, "--strict")
    assert said.code == 1
    assert "a text has 300 tokens, the model takes 128" in said.err
    assert "data.jsonl, line" in said.err


def test_batches_are_no_larger_than_the_artifact_takes(artifacts, data, monkeypatch):
    sizes = []

    def run_text(self, texts, truncate=True):
        sizes.append(len(texts))
        return {"logits": np.zeros((len(texts), 2), np.float32)}

    monkeypatch.setattr(Fake, "run_text", run_text)
    monkeypatch.setattr(Fake, "inputs", {"input_ids": SimpleNamespace(shape=("batch", "seq"))})
    monkeypatch.setattr(Fake, "dims", {"batch": (1, 3)})
    evaluate(artifacts / "great", data)
    assert sizes == [3, 1]


def test_nothing_to_measure_is_said(artifacts, tmp_path, cli):
    """Not `rows 2` and no more."""
    plain = tmp_path / "plain.csv"
    plain.write_text("text,stars\ngood,1\nbad,0\n")
    said = cli("eval", artifacts / "great", "--data", plain)
    assert said.code == 1
    assert "there are no labels to hold the answers to" in said.err
    assert "columns text, stars" in said.err
    assert "--label-column NAME" in said.err
    said = cli("eval", artifacts / "great", "--data", plain, "--baseline", artifacts / "film")
    assert said.code == 0
    assert "warning: no accuracy: the data has no labels; --label-column NAME names them" in said.err
    said = cli("eval", artifacts / "embed-great", "--data", plain)
    assert "nothing to compare the embeddings with" in said.err
    assert "--baseline MODEL" in said.err


def test_accuracy_and_the_paired_difference(artifacts, data):
    found = evaluate(artifacts / "great", data, artifacts / "film")
    assert (found.rows, found.accuracy, found.baseline_accuracy) == (4, 1.0, 0.5)
    assert (found.agreement, found.difference) == (0.5, 0.5)
    low, high = found.interval
    assert (low + high) / 2 == 0.5
    assert high - low == pytest.approx(2 * 1.96 * 0.25)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("whose", ["artifact", "baseline"])
def test_outputs_that_are_no_numbers_are_refused(artifacts, data, monkeypatch, value, whose):
    """NaN has a largest place and is below no limit: it would pass for an answer."""
    whole = Fake.run_text
    word = "great" if whose == "artifact" else "film"

    def run_text(self, texts, truncate=True):
        found = whole(self, texts, truncate)
        if self.word == word:
            found["logits"][[t == "a bad film" for t in texts]] = value
        return found

    monkeypatch.setattr(Fake, "run_text", run_text)
    with pytest.raises(LlmcError, match=f"the {whose}'s outputs are not finite numbers") as caught:
        evaluate(artifacts / "great", data, artifacts / "film", limits=Limits(min_agreement=0.0))
    assert caught.value.at == f"{data}, line 2"


def test_half_a_character_is_told_with_its_line(artifacts, data, monkeypatch):
    """JSON may hold one; the runtime says which text of a batch it is."""

    def run_text(self, texts, truncate=True):
        raise BadTexts({texts.index("a \ud83d film"): "is not valid Unicode"}, len(texts))

    monkeypatch.setattr(Fake, "run_text", run_text)
    with data.open("a") as file:
        file.write(json.dumps({"text": "a \ud83d film", "label": 1}) + "\n")
    with pytest.raises(LlmcError, match="a text is not valid Unicode") as caught:
        evaluate(artifacts / "great", data)
    assert caught.value.at == f"{data}, line 5"


def test_the_interval_and_the_p_value():
    difference, (low, high) = paired(12, 30, 2000)
    assert difference == pytest.approx(-0.009)
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt((42 / 2000 - 0.009**2) / 2000))
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 10) == pytest.approx(2 / 1024)
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(700, 800) == pytest.approx(0.0106, abs=2e-4)


def test_cosine(artifacts, data):
    found = evaluate(artifacts / "embed-great", data, artifacts / "embed-film", limits=Limits(min_cosine=0.9))
    expected = [1.0, 1 / math.sqrt(2), 1.0, 1 / math.sqrt(2)]
    assert found.cosine_mean == pytest.approx(np.mean(expected))
    assert found.cosine_min == pytest.approx(1 / math.sqrt(2))
    assert found.broken == [f"mean cosine is {found.cosine_mean:.4g}, the limit 0.9"]


def test_order_and_batches_do_not_matter(artifacts, tmp_path):
    path = tmp_path / "many.csv"
    lines = [f'"{"word " * (i % 37)}{"great" if i % 3 else "x"}",{int(i % 5 > 0)}' for i in range(700)]
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    seen = []
    found = evaluate(artifacts / "great", path, progress=seen.append)
    assert found.accuracy == pytest.approx(np.mean([(i % 3 > 0) == (i % 5 > 0) for i in range(700)]))
    assert (seen[-1], found.rows) == (700, 700)
    assert evaluate(artifacts / "great", path, limit=10).rows == 10


# --- the command


def test_table_and_json(artifacts, data, cli):
    result = cli("eval", artifacts / "great", "--data", data, "--baseline", artifacts / "film")
    assert result.code == 0
    assert "100.00 %" in result.out
    assert "+50.00 points" in result.out
    facts = json.loads(cli("eval", artifacts / "great", "--data", data, "--json").out)
    assert facts["accuracy"] == 1.0
    assert facts["baseline_accuracy"] is None


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (["--max-drop", "50%"], 0),
        (["--max-drop", "49%"], 1),
        (["--min-accuracy", "0.5", "--min-agreement", "50%"], 0),
        (["--min-accuracy", "51%"], 1),
        (["--min-agreement", "0.51"], 1),
        (["--max-drop", "5 points"], 2),
        (["--max-drop", "101%"], 2),
    ],
)
def test_exit_code_by_threshold(artifacts, data, cli, limits, code):
    result = cli("eval", artifacts / "film", "--data", data, "--baseline", artifacts / "great", *limits)
    assert result.code == code
    if code == 1:
        assert "a limit is broken" in result.err
        assert "50.00 %" in result.out, "the figures are printed all the same"


def test_a_limit_without_its_figure(artifacts, data, cli):
    result = cli("eval", artifacts / "film", "--data", data, "--max-drop", "1%")
    assert result.code == 1
    assert "accuracy needs labels, agreement and cosine need a --baseline" in result.err


# --- data


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "d.jsonl",
            '{"review": "x", "sentiment": "positive"}\n\n{"review": "y, z", "sentiment": "negative"}\n',
        ),
        ("d.csv", 'sentence,label\nx,positive\n"y, z",negative\n'),
        ("d.tsv", "label\tcontent\npositive\tx\nnegative\ty, z\n"),
    ],
)
def test_columns_are_guessed(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    rows = list(read_rows(tmp_path / name))
    assert [(r.text, r.label) for r in rows] == [("x", "positive"), ("y, z", "negative")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.jsonl", '{"text": "x", "label": "1"}\r\n{"text": "y", "label": "2"}\r\n'),
        ("d.csv", "text,label\r\nx,1\r\ny,2\r\n"),
        ("d.tsv", "text\tlabel\nx\t1\ny\t2\n"),
        ("d.txt", "x\r\ny\r\n"),
    ],
)
def test_a_byte_order_mark_is_no_text(tmp_path, name, text):
    """As Excel and Notepad write them."""
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    labels = [None, None] if name == "d.txt" else ["1", "2"]
    assert [(r.text, r.label) for r in read_rows(tmp_path / name)] == [("x", labels[0]), ("y", labels[1])]
    assert column_names(tmp_path / name) == ([] if name == "d.txt" else ["text", "label"])


def test_named_columns_pairs_and_plain_lines(tmp_path):
    (tmp_path / "d.csv").write_text("text,other,b,c\n1,q,ctx,7\n")
    (row,) = read_rows(tmp_path / "d.csv", text="other", pair="b", label="c")
    assert (row.text, row.pair, row.label) == ("q", "ctx", "7")
    (tmp_path / "d.txt").write_text("one\n\ntwo\n")
    assert [(r.line, r.text, r.label) for r in read_rows(tmp_path / "d.txt")] == [
        (1, "one", None),
        (3, "two", None),
    ]


def test_labels():
    for value in ("Positive", 1, "1", 1.0, "LABEL_1", " positive "):
        assert label_index("", value, ("negative", "positive"), 2) == 1
    with pytest.raises(LlmcError, match="unknown label '2'") as caught:
        label_index("d.csv, line 3", 2, ("negative", "positive"), 2)
    assert caught.value.at == "d.csv, line 3"
    assert "negative, positive" in caught.value.hint


MISTAKES = {
    "no such column": ("d.csv", "text,label\nx,1\n", ["--label-column", "stars"], "no column 'stars'"),
    "no text column": ("d.csv", "a,b\nx,1\n", [], "no column looks like the text"),
    "unknown label": ("d.csv", "text,label\nx,1\ny,maybe\n", [], "unknown label 'maybe'"),
    "short row": ("d.tsv", "text\tlabel\nx\n", [], "the column 'label' is missing"),
    "long row": ("d.csv", "label,text\n1,x, and more\n", [], "the row has more fields than the first"),
    "field left out": ("d.jsonl", '{"text": "x", "label": 1}\n{"text": "y"}\n', [], "line 2"),
    "broken JSON": ("d.jsonl", '{"text": "x"\n', [], "broken JSON"),
    "a JSON list": ("d.jsonl", '["x"]\n', [], "not a JSON object"),
    "text is a number": ("d.jsonl", '{"text": 3}\n', [], "holds no text"),
    "open quote": ("d.csv", 'text,label\n"x,1\n', [], "broken row"),
    "empty": ("d.csv", "", [], "the data is empty"),
    "header only": ("d.csv", "text,label\n", [], "the data is empty"),
    "another kind": ("d.xlsx", "x", [], "data of this kind cannot be read"),
    "missing": ("d.csv", None, [], "No such file"),
    "not text": ("d.csv", b"text,label\n\xff\xfe,1\n", [], "not UTF-8"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_data(artifacts, tmp_path, cli, mistake):
    name, content, options, message = MISTAKES[mistake]
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    result = cli("eval", artifacts / "great", "--data", tmp_path / name, *options)
    assert result.code == 1
    assert message in result.err
    assert result.err.startswith("error: ")


def test_mistakes_in_the_models(artifacts, data, cli):
    assert "no measure for the task token-class" in cli("eval", artifacts / "tokens", "--data", data).err
    missing = cli("eval", artifacts / "great", "--data", data, "--baseline", artifacts / "nothing")
    assert "the baseline was not found" in missing.err
    other = cli("eval", artifacts / "great", "--data", data, "--baseline", artifacts / "embed-film")
    assert "the baseline's task is sentence-embedding" in other.err
    assert main(["eval", str(artifacts / "great")]) == 2
