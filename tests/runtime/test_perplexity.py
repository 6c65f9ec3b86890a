"""`llmc eval` of a model that generates: perplexity on the artifact `words`, beside a baseline."""

from __future__ import annotations

import json

import numpy as np
import pytest

from llmc import LlmcError
from llmc.cli import main
from llmc.perplexity import _of_folder, perplexity, windows
from llmc.runtime import load
from llmc.runtime.scoring import logprobs

TEXT = (
    "abc de fgh\nij klm no pqr st uvw xyz abc de fgh ij klm no pqr st uvw xyz aa bb cc dd ee ff gg hh ii jj"
)


@pytest.fixture(params=["words", "folded"])
def artifact(request):
    return request.getfixturevalue(request.param)


def by_whole_passes(model, ids, begin):
    """A session and a pass for each token."""
    found = []
    for end in range(begin, len(ids)):
        with model.session() as session:
            for start in range(0, end, 16):
                part = ids[start : min(start + 16, end)]
                given = {"input_ids": np.array([part]), "logits_to_keep": np.array([len(part) - 1])}
                logits = session.run(given)["logits"][0, 0].astype(np.float64)
        found.append(logits[ids[end]] - np.log(np.exp(logits).sum()))
    return np.array(found)


def test_logarithms_are_those_of_whole_passes(artifact):
    ids = [(5 * i * i) % 41 for i in range(30)]
    with load(artifact, threads=1) as model, model.session() as session:
        for begin in (1, 7, 16, 17, 29):
            np.testing.assert_allclose(
                logprobs(model, ids, begin, session), by_whole_passes(model, ids, begin), atol=1e-12
            )


@pytest.mark.parametrize(
    ("count", "window", "stride"), [(10, 4, 2), (10, 4, 3), (10, 10, 1), (3, 64, 32), (9, 5, 3)]
)
def test_windows_score_each_token_once(count, window, stride):
    found = list(windows(count, window, stride))
    assert [i for _, first, end in found for i in range(first, end)] == list(range(1, count))
    assert all(end - begin <= window and (first > begin or begin == 0) for begin, first, end in found)


def test_perplexity_is_that_of_its_windows(artifact, tmp_path):
    (tmp_path / "t.txt").write_text(TEXT)
    found = perplexity(artifact, tmp_path / "t.txt", artifact, window=20, stride=10, threads=1)
    with load(artifact, threads=1) as model, model.session() as session:
        from llmc.runtime.prompts import encoder_of

        ids = encoder_of(model).ids(TEXT)
        parts = [logprobs(model, ids[b:e], f - b, session) for b, f, e in windows(len(ids), 20, 10)]
    assert found.tokens == len(ids) - 1 == sum(map(len, parts))
    assert found.perplexity == pytest.approx(np.exp(-np.concatenate(parts).mean()), rel=1e-12)
    assert (found.baseline_perplexity, found.rise) == (found.perplexity, 0.0)


def test_the_baseline_in_pytorch(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=41, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    ids = torch.arange(12)[None]
    expected = -model(ids, labels=ids).loss.item()
    assert _of_folder(tmp_path, 40, 1)(list(range(12)), 1).mean() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(LlmcError, match="the baseline has other tokens"):
        _of_folder(tmp_path, 41, 1)
    with pytest.raises(LlmcError, match="transformers cannot build the baseline"):
        _of_folder(tmp_path / "nowhere", 40, 1)
    few = transformers.GPT2Config(vocab_size=41, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(few).save_pretrained(tmp_path / "few")
    with pytest.raises(LlmcError, match="PyTorch cannot run the baseline on 12 tokens"):
        _of_folder(tmp_path / "few", 40, 1)(list(range(12)), 1)


@pytest.fixture
def cli(capsys, tmp_path):
    """Run `llmc eval ARGUMENTS` on a text: exit code, output, errors."""
    (tmp_path / "t.txt").write_text(TEXT)

    def run(artifact, *arguments, data="t.txt"):
        code = main(["eval", str(artifact), "--data", str(tmp_path / data), *map(str, arguments)])
        return (code, *capsys.readouterr())

    return run


def test_the_command(cli, words, tmp_path):
    code, out, err = cli(words, "--baseline", words, "--window", 20, "--json", "--threads", 1)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["window"], found["stride"], found["rise"], found["broken"]) == (20, 10, 0.0, [])
    code, out, _ = cli(words, "--limit", 10)
    assert code == 0
    assert "9, windows of 64 every 32" in out
    (tmp_path / "t.jsonl").write_text('{"text": "abc"}\n{"text": "de"}\n')
    assert "6, windows" in cli(words, data="t.jsonl")[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--window", 65], "the window is 65 tokens, must be within 2..64, the model's bound"),
        (["--window", 1], "the window is 1 token,"),
        (["--stride", 0], "the stride is 0 tokens, must be within 1..63, below the window"),
        (["--max-drop", "1%"], "--max-drop is not for models that generate text"),
        (["--limit", 1], "the data is too short"),
        (["--max-rise", "1%"], "a limit is broken: there is no baseline"),
    ],
)
def test_mistakes(cli, words, arguments, told):
    code, _, err = cli(words, *arguments)
    assert code == 1
    assert told in err


def test_data_that_is_no_text(cli, words, tiny, tmp_path):
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    assert "the data is not UTF-8 text" in cli(words, data="b.txt")[2]
    assert "cannot read the data: No such file" in cli(words, data="nowhere.txt")[2]
    assert "--window is for models that generate text" in cli(tiny, "--window", 5)[2]


def test_an_adapter_beside_the_model(cli, adapted, tmp_path):
    (tmp_path / "t.txt").write_text(TEXT)
    plain, french = (
        perplexity(adapted, tmp_path / "t.txt", adapter=name, threads=1) for name in (None, "french")
    )
    assert plain.perplexity != french.perplexity
    code, out, err = cli(adapted, "--adapter", "french", "--baseline", adapted)
    assert code == 0, err
    assert f"{french.perplexity:.4f}" in out
    assert f"{plain.perplexity:.4f}" in out
    code, out, err = cli(adapted, "--adapter", "frensh")
    assert code == 1
    assert "french" in err
