"""Texts that are none, patterns that give up, and the settings beside tokenizer.json."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmc import LlmcError
from llmc.cli import main
from llmc.errors import TextsCut
from llmc.runtime import load
from llmc.runtime.encoder import BadTexts, held_stderr

TOKENIZER = {"file": "tokenizer.json", "max_length": 4, "pad_id": 0, "pad_token": "[PAD]"}
ENDLESS = "a" * 40 + "b"  # for the pattern below: each way to cut the a's is tried


@pytest.fixture
def made(copy_of_tiny: Path, build: Any) -> Any:
    """`made(setting=value, ...)`: a copy of tiny whose manifest says so of its tokenizer."""

    def make(**settings: Any) -> Path:
        build.write_manifest(copy_of_tiny, tokenizer={**TOKENIZER, **settings}, task="other")
        return copy_of_tiny

    return make


@pytest.fixture
def endless(copy_of_tiny: Path, made: Any) -> Path:
    """The tokenizer splits by a pattern that backtracks."""
    file = copy_of_tiny / "tokenizer.json"
    pattern = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    file.write_text(json.dumps({**json.loads(file.read_text()), "pre_tokenizer": pattern}))
    return Path(made())


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        ({}, [[2, 3, 4, 5], [9, 0, 0, 0]]),
        ({"truncation_side": "left"}, [[4, 5, 6, 7], [9, 0, 0, 0]]),
        ({"padding_side": "left"}, [[2, 3, 4, 5], [0, 0, 0, 9]]),
        ({"prompts": {"q": "h "}, "prompt": "q"}, [[9, 2, 3, 4], [9, 9, 0, 0]]),
    ],
)
def test_settings_are_done(settings: dict[str, Any], ids: Any, made: Any, expected: Any) -> None:
    with load(made(**settings), threads=1) as model, pytest.warns(TextsCut, match="1 of 2"):
        found = model.run_text(["a b c d e f", "h"])
    want = expected(ids, np.not_equal(ids, 0).astype(int))
    np.testing.assert_array_equal(found["hidden"], want["hidden"])


def test_inputs_that_the_tokenizer_does_not_make(made: Any, expected: Any) -> None:
    with load(made(inputs=["input_ids"]), threads=1) as model:
        found = model.run_text(["a b", "h"])
    np.testing.assert_array_equal(found["hidden"], expected([[2, 3], [9, 0]])["hidden"])


def test_a_prompt_by_name(made: Any) -> None:
    with load(made(prompts={"q": "h "})) as model:
        assert model.run_text("a", prompt="q")["hidden"].shape[1] == 2
        assert model.run_text("a")["hidden"].shape[1] == 1
        with pytest.raises(LlmcError, match="no prompt 'r'"):
            model.run_text("a", prompt="r")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"padding_side": "top"}, "tokenizer.padding_side must be one of right, left"),
        ({"prompt": "q"}, "tokenizer.prompt must be one of"),
        ({"prompts": {"q": 1}}, "tokenizer.prompts.q must be a text"),
        ({"inputs": ["pixels"]}, "must be one of input_ids"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], problem: str, made: Any) -> None:
    with pytest.raises(LlmcError, match=problem):
        load(made(**settings))


def test_half_a_character(made: Any) -> None:
    with load(made()) as model:
        with pytest.raises(
            BadTexts, match=r"text 2 is not valid Unicode: .* U\+D83D at character 3"
        ) as caught:
            model.run_text(["a", "b \ud83d", ("a", "\udcff")])
        assert list(caught.value.rows) == [1, 2]
        with pytest.raises(BadTexts, match="the text is not valid Unicode"):
            model.run_text("\ud83d")


def test_a_pattern_that_gives_up(endless: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with load(endless) as model:
        with pytest.raises(BadTexts, match="text 2 cannot be tokenised: Onig") as caught:
            model.run_text(["a", ENDLESS])
        assert list(caught.value.rows) == [1]
        assert model.run_text("a")["hidden"].shape[1] == 1  # the library is as good as before
    assert capfd.readouterr().err == ""


def test_what_others_write_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    with held_stderr():
        os.write(2, b"something else\n")
    assert capfd.readouterr().err == "something else\n"


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


def test_every_line_is_a_text(made: Any, monkeypatch: Any, capsys: Any) -> None:
    """Blank ones too; one that is not UTF-8 is named, and the others run."""
    stdin(monkeypatch, b"a b\n\n \r\n\xff\xfe\nc")
    code = main(["run", str(made()), "--text", "-", "--json"])
    out, err = capsys.readouterr()

    told = json.loads(out)
    assert [answer.get("text") for answer in told] == ["a b", "", " ", None, "c"]
    assert told[3] == {"at": "line 4", "error": "is not UTF-8: byte 0xff at 1"}
    assert np.shape(told[4]["hidden"]) == (2, 3)
    assert code == 1
    assert err == ("error: 1 of 5 texts could not be run\n  found: line 4 is not UTF-8: byte 0xff at 1\n")


def test_nothing_on_standard_input(made: Any, monkeypatch: Any, capsys: Any) -> None:
    stdin(monkeypatch, b"")
    assert main(["run", str(made()), "--text", "-"]) == 1
    assert "no text on standard input" in capsys.readouterr().err


def test_bytes_and_patterns_on_the_command_line(endless: Path) -> None:
    """A shell passes any bytes; the library's own dump stays inside."""
    start = [
        sys.executable,
        "-c",
        "import sys; from llmc.cli import main; sys.exit(main())",
        "run",
        str(endless),
    ]
    texts = [b"--text", b"\xff", b"--text", ENDLESS.encode(), b"--text", b"a"]
    done = subprocess.run([*start, *texts], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == "a"
    assert done.stderr.splitlines() == [
        "error: 2 of 3 texts could not be run",
        "  found: --text 1 is not UTF-8: byte 0xff at 1; --text 2 cannot be tokenised: "
        "Onig: Regex search error: retry-limit-in-match over",
    ]
