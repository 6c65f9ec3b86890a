"""`llmc eval` of a model that makes a text of another: chrF and ROUGE, as their libraries count them."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from llmc import LlmcError
from llmc.cli import main
from llmc.references import RESAMPLES, Scores, nearness
from llmc.runtime import load
from llmc.torch_writer import of_folder

sacrebleu, rouge = pytest.importorskip("sacrebleu"), pytest.importorskip("rouge_score.rouge_scorer")
ROWS = [
    ("the old bird sees a fish", "one fish sees the bird"),
    ("two fish", "sees two"),
    ("a tree near the river finds", "a small house , red"),
    ("the house and the bird", "green"),
    (" ".join(["old bird"] * 20), "red red red"),
]


@pytest.fixture(scope="module")
def translator(shared, tmp_path_factory):
    import translators

    return shared("translator.llmc", translators.artifact(tmp_path_factory.mktemp("translator")))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in ROWS))
    return path


@pytest.fixture
def cli(capsys, data):
    def run(artifact, *arguments, data=data):
        code = main(["eval", str(artifact), "--data", str(data), *map(str, arguments)])
        return (code, *capsys.readouterr())

    return run


def test_measures_are_the_libraries_own():
    texts = ["the cat sat on the mat .", "Eine Straße, grün", "", "a b c d"]
    references = ["the cat is on the mat .", "Eine Strasse ist grün", "nothing", "a b c d"]
    found = Scores(texts, references)
    assert found.whole()["chrF"] == pytest.approx(sacrebleu.corpus_chrf(texts, [references]).score, abs=1e-12)
    scorer = rouge.RougeScorer(["rouge1", "rouge2", "rougeL"])
    rows = [scorer.score(r, t) for t, r in zip(texts, references, strict=True)]
    for name in ("rouge1", "rouge2", "rougeL"):
        assert found.whole()[name] == pytest.approx(100 * np.mean([row[name].fmeasure for row in rows]))
    weights = np.array([2.0, 0, 1, 1])
    again = [0, 0, 2, 3]
    some = sacrebleu.corpus_chrf([texts[i] for i in again], [[references[i] for i in again]]).score
    assert found.of(weights)[0] == pytest.approx(some, abs=1e-12)


def test_an_artifact_and_a_baseline(translator, data):
    found = nearness(translator, data, translator, threads=1)
    with load(translator, threads=1) as model:
        made = [model.generate(s).text for s, _ in ROWS[:4]]
    assert (found.rows, found.cut, found.agreement) == (5, 1, 1.0)
    assert found.differences == dict.fromkeys(("chrF", "rouge1", "rouge2", "rougeL"), 0.0)
    assert set(found.intervals.values()) == {(0.0, 0.0)}
    short = nearness(translator, data, limit=4, threads=1)
    assert short.scores["chrF"] == sacrebleu.corpus_chrf(made, [[t for _, t in ROWS[:4]]]).score
    assert short.baseline_scores is short.differences is None
    german = nearness(translator, data, limit=4, tgt_lang="de_DE", max_new_tokens=3, num_beams=2)
    assert german.scores != short.scores


def test_the_difference_and_its_interval(translator, data, monkeypatch):
    """Against drawing rows by hand."""
    from llmc import references

    with load(translator, threads=1) as model:
        texts = [[t for _, t in ROWS], [t[:-3] for _, t in ROWS]]
        found = references.Nearness(model.task, 5, {})
    made = references._measured(found, texts, texts[0])
    assert made.differences["chrF"] == pytest.approx(100 - sacrebleu.corpus_chrf(texts[1], [texts[0]]).score)
    random, drawn = np.random.default_rng(5), []
    for _ in range(RESAMPLES):
        rows = random.integers(0, 5, 5)
        some, whole = [texts[1][i] for i in rows], [texts[0][i] for i in rows]
        drawn.append(100 - sacrebleu.corpus_chrf(some, [whole]).score)
    assert made.intervals["chrF"] == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=3)
    low, high = made.intervals["rougeL"]
    assert low <= made.differences["rougeL"] <= high
    assert references._judged(made, 0.0, None).broken == []
    assert "agreement is 0, the limit 0.5" in references._judged(made, None, 0.5).broken
    worse = references._measured(references.Nearness("", 5, {}), texts[::-1], texts[0])
    assert len(references._judged(worse, 0.01, None).broken) == 4


def test_the_baseline_in_pytorch(translator, tmp_path):
    """The tokens that transformers is asked for, and the text of what it makes."""
    import translators

    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {
        "d_model": 16,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
    }
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.BartConfig(
        vocab_size=34, **sizes, **heads, decoder_start_token_id=1, eos_token_id=0
    )
    twin = transformers.BartForConditionalGeneration(config).eval()
    twin.save_pretrained(tmp_path)
    with load(translator, threads=1) as model:
        source, options = [32, 5, 6, 7, 0], {"max_new_tokens": 6, "do_sample": False}
        (found,) = of_folder(tmp_path, model, {**options, "tgt_lang": "de_DE"}, 1)([source])
        ids = twin.generate(torch.tensor([source]), **options, forced_bos_token_id=33)[0].tolist()
        assert found == " ".join(translators.WORDS[i] for i in ids[1:] if i not in (0, 1, 32, 33))
        with pytest.raises(LlmcError, match="transformers cannot build the baseline"):
            of_folder(tmp_path / "nowhere", model, {}, 1)
        config.vocab_size = 33
        transformers.BartForConditionalGeneration(config).save_pretrained(tmp_path / "less")
        with pytest.raises(LlmcError, match="the baseline has other tokens"):
            of_folder(tmp_path / "less", model, {}, 1)


def test_the_command(cli, translator):
    code, out, err = cli(translator, "--baseline", translator, "--max-drop", "1%", "--threads", 1)
    assert code == 0
    assert "1 of 5 texts was cut" in err
    assert [line.split()[0] for line in out.splitlines() if line.strip()][2:6] == [
        "rows",
        "chrF",
        "baseline's",
        "difference",
    ]
    code, out, _ = cli(translator, "--limit", 2, "--json", "--label-column", "source", "--num-beams", 1)
    assert (code, json.loads(out)["rows"], json.loads(out)["agreement"]) == (0, 2, None)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--strict"], "a source has more than the 30 tokens that the model takes"),
        (
            ["--window", 5, "--min-cosine", "1%"],
            "--window, --min-cosine are not for models that make a text of another",
        ),
        (["--max-drop", "1%"], "a limit needs a baseline"),
        (["--text-column", "nope"], "there is no column 'nope'"),
        (["--tgt-lang", "xx"], "no language"),
        (["--num-beams", 0], "num_beams is 0"),
    ],
)
def test_mistakes(cli, translator, arguments, told):
    code, _, err = cli(translator, "--limit", 5, *arguments)
    assert (code, told in err) == (1, True), err


def test_data_without_references_and_other_models(cli, translator, words, tmp_path, monkeypatch):
    (tmp_path / "t.txt").write_text("the old bird\n")
    assert "there are no references" in cli(translator, data=tmp_path / "t.txt")[2]
    (tmp_path / "n.jsonl").write_text('{"text": "a", "summary": 3}\n')
    assert "a reference is no text" in cli(translator, data=tmp_path / "n.jsonl")[2]
    (tmp_path / "e.jsonl").write_text('{"text": " ", "summary": "a"}\n')
    assert "a source is empty" in cli(translator, data=tmp_path / "e.jsonl")[2]
    assert "--tgt-lang is for models that make a text of another" in cli(words, "--tgt-lang", "fr")[2]
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    assert "pip install 'llmc[metrics]'" in cli(translator)[2]
