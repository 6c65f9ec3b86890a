"""`llmc run`, `bench` and `inspect` on an artifact with functions and states, and the program `run`."""

from __future__ import annotations

import json

import numpy as np
import pytest

from llmc.cli import main
from llmc.runtime.sources import RUN_SOURCES

IDS = np.array([[1, 2, 3], [4, 5, 6]])


@pytest.fixture
def llmc(capsys):
    """`llmc(arguments...)`: what the command prints, on stderr where it should fail."""

    def call(*arguments, code=0):
        assert main([str(a) for a in arguments]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return call


@pytest.fixture
def ids(tmp_path):
    np.save(tmp_path / "ids.npy", IDS)
    return tmp_path / "ids.npy"


def test_run_a_function(llmc, tally, ids, build):
    found = json.loads(
        llmc("run", tally, "--function", "step", "--past", 2, "--input", f"ids={ids}", "--json")
    )
    expected = build.tally_model(2)
    expected.seen = np.zeros((2, 2), int)
    assert found == {name: value.tolist() for name, value in expected.step(IDS).items()}
    assert "squares int64[2x3]  1 4 9 16 25 36" in llmc(
        "run", tally, "--function", "square", "--input", f"ids={ids}"
    )
    assert "sums float32[2x3]" in llmc("run", tally, "--input", f"ids={ids}")


def test_selftest(llmc, tally):
    assert json.loads(llmc("run", tally, "--selftest", "--json"))["passed"] is True


def test_inspect_shows_functions_and_states(llmc, tally, tiny):
    text = llmc("inspect", tally)
    for words in ("inputs of step", "outputs of peek", "states", "past + seq", "grows", "inputs of square"):
        assert words in text
    assert "inputs of" not in llmc("inspect", tiny)
    assert "attention_mask" in llmc("inspect", tiny)
    assert [f["name"] for f in json.loads(llmc("inspect", tally, "--json"))["functions"]] == [
        "step",
        "peek",
        "square",
    ]


def test_inspect_tells_memory(llmc, tally):
    sizes = ("--batch", 2, "--seq", 3, "--past", 10)
    (step, peek, square) = json.loads(llmc("inspect", tally, *sizes, "--sessions", 5, "--json"))["memory"]
    assert (step["name"], step["weights"], square["states"]) == ("step", 64, 0)
    assert step["states"] > peek["states"] > 0
    assert step["total"] == 64 + 5 * (step["arena"] + step["states"])
    assert "memory" in llmc("inspect", tally, *sizes)


def test_bench(llmc, tally):
    report = json.loads(
        llmc("bench", tally, "--function", "peek", "--past", 7, "--duration", "0.05", "--json")
    )
    assert (report["function"], report["sizes"]["past"]) == ("peek", 7)
    pair = llmc("bench", tally, "--vs", tally, "--function", "step", "--past", 7, "--duration", "0.05")
    assert "interleaved pairs" in pair


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("bench", "TALLY", "--function", "stp"), 1, "did you mean step?"),
        (("bench", "TINY", "--past", "3"), 1, "the model has no state that grows"),
        (("bench", "TALLY", "--past", "41"), 1, "past is 41, must be within 0..40"),
        (("run", "TALLY", "--function", "stp", "--input", "IDS"), 1, "did you mean step?"),
        (("run", "TALLY", "--selftest", "--past", "3"), 2, "--function and --past go with --input"),
        (("run", "TALLY", "--past", "50", "--input", "IDS"), 1, "past is 50, must be within 0..40"),
        (("inspect", "TALLY", "--past", "41"), 1, "past is 41, must be within 0..40"),
        (("inspect", "TALLY", "--batch", "9"), 1, "batch is 9, must be within 1..4"),
        (("inspect", "TINY", "--past", "1"), 1, "the model has no state that grows"),
        (("inspect", "FOLDER", "--batch", "1"), 2, "are for artifacts"),
    ],
)
def test_mistakes_get_a_sentence(llmc, tally, tiny, ids, tmp_path, arguments, code, message):
    names = {"TALLY": tally, "TINY": tiny, "IDS": f"ids={ids}", "FOLDER": tmp_path}
    (tmp_path / "config.json").write_text("{}")
    assert message in llmc(*(names.get(a, a) for a in arguments), code=code)


@pytest.fixture(scope="module")
def program(tally, tmp_path_factory, build):
    """run_main.c with tally.c and the runtime; the artifact is elsewhere."""
    output = tmp_path_factory.mktemp("run") / "run"
    sources = map(str, (build.tiny_c.with_name("tally.c"), *RUN_SOURCES))
    return build.compile_c(output, "-O1", build.checksums(bytes(64)), *sources, "-lm", "-lpthread")


def test_program(program, tally, ids, shell, tmp_path, build):
    done = shell(program, "--model", tally, "--function", "step", "--past", "4", f"ids={ids}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = build.tally_model(2)
    expected.seen = np.zeros((2, 4), int)
    for name, value in expected.step(IDS).items():
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), value)


def test_program_checks_weights_unless_told(program, tally, ids, shell, tmp_path):
    data = bytearray((tally / "weights.bin").read_bytes())
    data[-1] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)
    given = ("--model", tmp_path, "--function", "square", f"ids={ids}")
    done = shell(program, *given, cwd=tmp_path)
    assert done.returncode == 1
    assert "weights.bin is damaged" in done.stderr
    assert shell(program, "--no-check", *given, cwd=tmp_path).returncode == 0


def test_program_without_the_first_function(program, tally, ids, shell, tmp_path):
    assert (
        shell(program, "--model", tally, "--function", "square", f"ids={ids}", cwd=tmp_path).returncode == 0
    )
    np.testing.assert_array_equal(np.load(tmp_path / "squares.npy"), IDS**2)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--function", "stp"], 1, "the model has no function 'stp'"),
        (["--past", "-2"], 2, "not a number of positions"),
        (["--past", "x"], 2, "not a number of positions"),
        (["--past", "41"], 1, "past is 41, must be within 0..40"),
        (["--function", "peek"], 2, "the model has no such input"),
    ],
)
def test_program_refuses(program, tally, ids, shell, tmp_path, arguments, code, message):
    done = shell(program, "--model", tally, *arguments, f"ids={ids}", cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
