"""`llmc run` on the artifact `words`: prompts, files, streams, chats, JSON, and what is refused."""

from __future__ import annotations

import io
import json
import re
import sys

import pytest

from llmc.cli import main
from llmc.cli.generate import prompts, visible
from llmc.cli.lines import read_lines
from llmc.runtime import load


@pytest.fixture
def cli(capsys, monkeypatch):
    """Run `llmc run ARGUMENTS`: exit code, output, errors."""

    def run(*arguments, said=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said)))
        code = main(["run", *map(str, arguments)])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def model(words):
    with load(words, threads=1) as model:
        yield model


def test_a_prompt_is_continued(cli, words, model, tmp_path):
    expected = model.generate("abc", max_new_tokens=20).text
    assert cli(words, "--prompt", "abc", "--max-new-tokens", 20) == (0, expected + "\n", "")
    assert cli(words, "--prompt", "abc", "--max-new-tokens", 20, "--stream") == (0, expected + "\n", "")
    assert cli(words, "--prompt", "-", "--max-new-tokens", 20, said=b"abc") == (0, expected + "\n", "")
    (tmp_path / "p").write_text("abc")
    assert cli(words, "--prompt-file", tmp_path / "p", "--max-new-tokens", 20) == (0, expected + "\n", "")


def test_json_has_all(cli, words, model, tmp_path):
    (tmp_path / "p").write_text("de")
    drawn = ["--do-sample", "--seed", 7, "--temperature", 1.5, "--top-logprobs", 2]
    code, out, err = cli(words, "--prompt", "abc", "--prompt-file", tmp_path / "p", "--json", *drawn)
    assert (code, err) == (0, "")
    first, second = json.loads(out)
    made = model.generate("abc", do_sample=True, seed=7, temperature=1.5, top_logprobs=2)
    assert (first["text"], first["tokens"], first["finish"]) == (made.text, made.ids, made.finish)
    assert (first["prompt"], second["prompt"], first["seed"]) == ("abc", "de", 7)
    assert first["logprobs"][0]["logprob"] == made.tokens[0].logprob
    assert first["prompt_tokens"] == 3
    assert len(first["logprobs"][0]["top"]) == 2


def test_stop_strings(cli, words, model):
    whole = model.generate("abc", max_new_tokens=20, min_new_tokens=20).text
    _, out, _ = cli(
        words, "--prompt", "abc", "--min-new-tokens", 20, "--max-new-tokens", 20, "--stop", whole[3]
    )
    assert out == whole[: whole.index(whole[3])] + "\n"


def test_beams(cli, words, model):
    best = model.search("abc", num_beams=3, max_new_tokens=6)[0]
    assert cli(words, "--prompt", "abc", "--num-beams", 3, "--max-new-tokens", 6) == (0, best.text + "\n", "")


def test_a_text_is_held_to_a_schema_an_expression_or_a_grammar(cli, words, model, tmp_path):
    pytest.importorskip("llguidance")
    made = model.generate("abc", regex="[ab]{4}").text
    assert cli(words, "--prompt", "abc", "--regex", "[ab]{4}", "--stream") == (0, made + "\n", "")
    (tmp_path / "g").write_text("start: /[ab]{4}/")
    assert cli(words, "--prompt", "abc", "--grammar", tmp_path / "g") == (0, made + "\n", "")
    code, _, err = cli(words, "--prompt", "abc", "--grammar", tmp_path / "nowhere")
    assert (code, "cannot read --grammar: No such file" in err) == (1, True)
    code, _, err = cli(words, "--prompt", "abc", "--json-schema", '{"type": "strin"}')
    assert (code, "cannot use this JSON schema: Invalid type: strin" in err) == (1, True)
    (tmp_path / "s").write_text("{")
    code, _, err = cli(words, "--prompt", "abc", "--json-schema", tmp_path / "s")
    assert (code, "json_schema is no JSON" in err) == (1, True)
    code, _, err = cli(words, "--text", "abc", "--regex", "a")
    assert (code, "--regex goes with --prompt" in err) == (2, True)


def test_another_model_guesses(cli, words, dull, model, tiny):
    made = model.generate("abc", max_new_tokens=20).text
    arguments = ["--prompt", "abc", "--max-new-tokens", 20, "--assistant-model", dull, "-v"]
    code, out, err = cli(words, *arguments, "--num-assistant-tokens", 3)
    assert (code, out) == (0, made + "\n")
    assert re.search(r"; \d+ of \d+ guesses right", err)
    code, _, err = cli(words, "--prompt", "abc", "--assistant-model", tiny)
    assert (code, "the model does not generate text" in err) == (1, True)
    code, _, err = cli(words, "--prompt", "abc", "--assistant-model", "nowhere")
    assert (code, "nowhere" in err) == (1, True)


def test_verbose_tells_the_speed(cli, words):
    _, _, err = cli(words, "--prompt", "abc", "-v")
    assert "3 tokens of prompt, 0 of them held" in err
    assert "a second; ended by" in err


def test_a_conversation(cli, words, model):
    first = model.chat("ab")
    second = model.chat(
        [{"role": "user", "content": "ab"}, first.message, {"role": "user", "content": "c d"}]
    )
    code, out, err = cli(words, "--chat", said=b"ab\n\nc d\n")
    assert (code, out, err) == (0, f"{first.text}\n{second.text}\n", "")
    assert cli(words, "--chat", "--prompt", "ab") == (0, f"{first.text}\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--prompt", ""], 1, "the prompt is empty"),
        (
            ["--prompt", "a" * 64],
            1,
            "the prompt has 64 tokens, the model takes at most 64, new ones included",
        ),
        (
            ["--prompt", "a", "--temperature", "0", "--do-sample"],
            1,
            "temperature is 0.0, must be a number above 0",
        ),
        (["--prompt", "a", "--top-p", "1.5", "--do-sample"], 1, "top_p is 1.5, must be a number within 0..1"),
        (["--prompt", "a", "--stop", ""], 1, "stop_strings is ['']"),
        (["--prompt", "a", "--temprature", "1"], 2, "Did you mean"),
        (["--prompt", "a", "--json", "--stream"], 2, "give one"),
        (["--prompt", "a", "--num-beams", "3", "--stream"], 2, "--num-beams finds whole texts"),
        (["--prompt", "a", "--num-beams", "0"], 1, "num_beams is 0, must be within 1..64"),
        (["--chat", "--json"], 2, "--json needs a --prompt"),
        (["--prompt", "a", "--input", "x=y.npy"], 2, "--input cannot go with a prompt that is continued"),
        (
            ["--prompt", "a", "--language", "fr", "--timestamps", "--strict", "--threshold", "0"],
            2,
            "--strict, --threshold, --language, --timestamps cannot go with a prompt that is continued",
        ),
        (
            ["--text", "a", "--top-k", "3", "--stream"],
            2,
            "--top-k, --stream go with --prompt, --prompt-file or --chat",
        ),
        (["--prompt-file", "nowhere"], 1, "cannot read the prompt: No such file"),
        (["--text", "a"], 1, "give the text by --prompt"),
        (["--image", "a.png"], 1, "the model takes no images"),
        ([], 2, "Give one of --text, --prompt"),
    ],
)
def test_mistakes(cli, words, arguments, code, told):
    found, out, err = cli(words, *arguments)
    assert (found, out) == (code, "")
    assert told in err
    assert "Traceback" not in err


def test_a_prompt_that_is_no_text(cli, words, tmp_path):
    (tmp_path / "p").write_bytes(b"ab\xff")
    code, _, err = cli(words, "--prompt-file", tmp_path / "p")
    assert code == 1
    assert "the prompt is not UTF-8" in err
    assert "byte 0xff at 3" in err


def test_a_byte_order_mark_is_no_text(tmp_path, monkeypatch):
    """Of files and of standard input, as Notepad and PowerShell write them."""
    (tmp_path / "p").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert prompts(None, [tmp_path / "p"]) == ["one\r\ntwo"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfone\r\ntwo\r\n")))
    assert [line.text for line in read_lines(["-"], [])] == ["one", "two"]


def test_a_terminal_gets_nothing_that_it_obeys(monkeypatch):
    assert visible("a\x1b[2J\n\tb") == "a\x1b[2J\n\tb"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert visible("a\x1b[2J\n\tb") == "a\\x1b[2J\n\tb"


def test_options_without_effect_are_told(cli, words):
    code, _, err = cli(words, "--prompt", "abc", "--temperature", 0.5)
    assert code == 0
    assert "temperature has no effect: do_sample is not set" in err


def test_a_model_that_does_not_generate(cli, tiny):
    code, _, err = cli(tiny, "--prompt", "abc")
    assert code == 1
    assert "the model does not generate text" in err
    assert "a sentence-embedding model" in err
