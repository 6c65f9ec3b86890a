"""`llmc bench` of a model that generates, on the artifact `words`."""

from __future__ import annotations

import json

import pytest

from llmc import LlmcError
from llmc.cli import main
from llmc.runtime import load


@pytest.mark.parametrize("name", ["words", "folded"])
def test_every_test_is_measured(name, request):
    with load(request.getfixturevalue(name), threads=1) as model:
        found = model.benchmark_generation(
            prompt_tokens=[3, 20], new_tokens=[5], depths=[0, 17], repetitions=3
        )
        short = model.benchmark_generation(prompt_tokens=[4], new_tokens=[], repetitions=1)
    names = [speed.test for speed in found.speeds]
    assert names == ["pp3", "pp20", "pp3 @ d17", "pp20 @ d17", "tg5", "tg5 @ d17"]
    for speed in found.speeds:
        counted = speed.tokens if speed.test.startswith("pp") else speed.tokens - 1
        assert len(speed.seconds) == 3
        assert speed.tokens_per_second == pytest.approx(sum(counted / s for s in speed.seconds) / 3)
        assert 0 < speed.p50 <= speed.p99
        assert (speed.bandwidth is not None) == speed.test.startswith("tg")
    assert [s.test for s in short.speeds] == ["pp4"]
    assert found.weights_bytes == 64
    assert found.session_bytes > 0


def test_texts_at_once(words):
    with load(words, threads=1) as model:
        options = {
            "prompt_tokens": [9],
            "new_tokens": [5],
            "depths": [0, 17],
            "texts": [1, 3],
            "repetitions": 2,
        }
        found = model.benchmark_generation(**options)
    names = ["pp9", "pp9 @ d17", "pp9 x3", "pp9 @ d17 x3", "tg5", "tg5 @ d17", "tg5 x3", "tg5 @ d17 x3"]
    assert [speed.test for speed in found.speeds] == names
    for speed in found.speeds:
        counted = speed.texts * (speed.tokens - speed.test.startswith("tg"))
        assert speed.tokens_per_second == pytest.approx(sum(counted / s for s in speed.seconds) / 2)
        assert (speed.bandwidth is not None) == (speed.test in ("tg5", "tg5 @ d17"))


def test_what_a_prompt_costs_is_its_own_tokens(words, monkeypatch):
    """The session holds the depth beforehand, and nothing of the prompt."""
    from llmc.runtime import generation_benchmark as bench

    with load(words, threads=1) as model, model.session() as session:
        entry = model.manifest.generation
        for kind in (bench._prompt, bench._prompt, bench._new, bench._prompt):
            seen = []
            made = bench.Generation
            monkeypatch.setattr(bench, "Generation", lambda *a, m=made, s=seen: s.append(m(*a)) or s[-1])
            kind([session], entry, list(range(40)), bench._Test("", 9, 20, 1))
            monkeypatch.setattr(bench, "Generation", made)
            usage = seen[-1].usage
            if kind is bench._prompt:
                assert (usage.prompt_tokens, usage.cached_tokens, usage.new_tokens) == (29, 20, 1)
            else:
                assert (usage.prompt_tokens, usage.new_tokens) == (20, 9)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prompt_tokens": [64]}, "64 tokens at depth 0 are more than the model takes"),
        ({"new_tokens": [10], "depths": [60]}, "are more than the model takes"),
        ({"new_tokens": [1]}, "a test of 1 tokens at depth 0 makes no sense"),
        ({"prompt_tokens": [], "new_tokens": []}, "there is nothing to measure"),
        ({"texts": [0]}, "texts is 0, must be within 1..1024"),
        ({"repetitions": 0}, "repetitions is 0, must be within 1..10000"),
    ],
)
def test_tests_that_make_no_sense(words, options, told):
    with load(words, threads=1) as model, pytest.raises(LlmcError, match=told):
        model.benchmark_generation(**{"prompt_tokens": [4], "new_tokens": [4], **options})


def test_a_function_that_generates_gives_one_row_of_logits(words):
    with load(words, threads=1) as model:
        assert model.benchmark(duration=0.02).sizes == {"seq": 16, "kept": 1, "past": 0}
        assert model.benchmark(duration=0.02, kept=3).sizes["kept"] == 3


def cli(capsys, *arguments):
    code = main(["bench", *map(str, arguments)])
    return (code, *capsys.readouterr())


def test_the_command(capsys, words, tiny):
    code, out, _ = cli(capsys, words, "-r", 1)
    assert code == 0
    assert "pp63" in out
    assert "tg63" in out
    assert "words: " in out
    code, out, _ = cli(capsys, words, "-n", "4,8", "-d", "0,10", "-r", 2, "--json", "--threads", 1)
    assert [s["test"] for s in json.loads(out)["speeds"]] == ["tg4", "tg8", "tg4 @ d10", "tg8 @ d10"]
    assert cli(capsys, words, "--function", "step", "--duration", "0.05s")[0] == 0
    assert "the model does not generate text" in cli(capsys, tiny, "-n", 4)[2]
    assert cli(capsys, words, "-n", 4, "--profile")[0] == 2
    assert "'a' is not a list of numbers" in cli(capsys, words, "-n", "a")[2]
