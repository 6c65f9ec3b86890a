"""Commands in this process, against stand-ins for the compiler and the runtime."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.shell_completion import BashComplete

from llmc.cli import _COMMANDS, llmc
from llmc.cli.compile import print_report
from llmc.cli.output import Progress, Seconds, size_text, time_text
from llmc.errors import LlmcError
from llmc.report import CompileReport


def test_help_lists_every_command_with_a_summary(cli):
    out = cli("--help").out
    for name in _COMMANDS:
        assert any(line.split()[:1] == [name] and len(line.split()) > 2 for line in out.splitlines()), name


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_help_teaches_by_examples(cli, name):
    result = cli(name, "--help")
    assert result.code == 0
    assert "Examples:" in result.out
    assert f"llmc {name}" in result.out.split("Examples:")[1]


@pytest.mark.parametrize("name", [c for c in _COMMANDS if c != "completion"])
def test_every_command_that_reports_has_json(name):
    options = {o for p in llmc.get_command(None, name).params for o in p.opts}
    assert "--json" in options


def test_unused_weights_are_left_out_if_one_asks(cli, demo_folder, monkeypatch, tmp_path):
    asked = []

    def load(path, *, ignore_unused, **rest):
        asked.append(ignore_unused)
        raise LlmcError("seen")

    monkeypatch.setattr("llmc.compiler.frontends.dispatch.load", load)
    monkeypatch.setenv("LLMC_CACHE", "off")  # imports are kept
    for command in (["compile", "-o", tmp_path / "m.llmc"], ["opt"]):
        assert cli(*command, demo_folder).code == 1
        assert cli(*command, demo_folder, "--ignore-unused-weights").code == 1
    assert asked == [False, True] * 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_says_how_to_install_it(cli, shell):
    result = cli("completion", shell)
    assert result.code == 0
    first, *script = result.out.splitlines()
    assert first.startswith("#")
    assert f"llmc completion {shell}" in first
    assert any("_LLMC_COMPLETE" in line for line in script)


def test_completion_completes_commands(runner):
    words = {"_LLMC_COMPLETE": "bash_complete", "COMP_WORDS": "llmc com", "COMP_CWORD": "1"}
    result = runner.invoke(llmc, env=words, prog_name="llmc")
    assert result.output.split() == ["plain,compile", "plain,compare", "plain,completion"]


def test_bench_passes_its_options_on(cli, fake_artifact):
    result = cli(
        "bench", fake_artifact, "--batch", 4, "--seq", 7, "--threads", 3, "--duration", "500ms", "--json"
    )
    assert result.code == 0, result.err
    expected = {"threads": 3, "batch": 4, "seq": 7, "duration": 0.5, "profile": False}
    assert json.loads(result.out) == expected


def test_bench_takes_a_size_of_any_dim(cli, fake_artifact):
    """Of an image no option but this one says how large it is."""
    result = cli("bench", fake_artifact, "--dim", "height=640", "--dim", "width=48", "--json")
    asked = json.loads(result.out)
    assert (asked["height"], asked["width"]) == (640, 48)
    assert "has no dim 'duration'" in cli("bench", fake_artifact, "--dim", "duration=3").err
    assert "one size" in cli("bench", fake_artifact, "--dim", "height=3..9").err


def test_bench_prints_the_report(cli, fake_artifact):
    assert cli("bench", fake_artifact).out == "p50 1.00 ms\n"


def test_run_with_arrays(cli, fake_artifact, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(3, dtype=np.float32))
    out = tmp_path / "y.npz"
    result = cli("run", fake_artifact, "--input", f"x={tmp_path / 'x.npy'}", "--output", out, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out) == {"y": [1.0, 2.0, 3.0]}
    np.testing.assert_array_equal(np.load(out)["y"], np.arange(3, dtype=np.float32) + 1)
    assert not out.with_name("y.npz.part").exists()
    os.mkfifo(tmp_path / "pipe")
    assert (
        "is no file"
        in cli("run", fake_artifact, "--input", f"x={tmp_path / 'x.npy'}", "--output", tmp_path / "pipe").err
    )
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    ("text", "seconds"), [("3s", 3.0), ("3", 3.0), ("500ms", 0.5), ("2m", 120.0), ("0.25 s", 0.25)]
)
def test_durations(text, seconds):
    assert Seconds()(text) == seconds
    assert Seconds(zero=True)(text) == seconds
    assert Seconds(zero=True)("0") == 0


def test_sizes_and_times_have_units():
    assert [size_text(n) for n in (12, 3100, 5_960_000, 2.5e9)] == ["12 B", "3.1 kB", "6.0 MB", "2.50 GB"]
    assert [time_text(s) for s in (12e-6, 0.00345, 1.2)] == ["12 us", "3.45 ms", "1.20 s"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("compile m --target ar", {"arm", "arm-neon", "arm-dotprod"}),
        ("compile m --target na", {"native"}),
        ("compile m --task text-", {"text-classification", "text-generation"}),
        ("opt m --task aut", {"auto", "automatic-speech-recognition"}),
    ],
)
def test_names_are_completed(monkeypatch, capsys, words, offered):
    """As the script of `llmc completion bash` asks."""
    monkeypatch.setenv("COMP_WORDS", f"llmc {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
    command = BashComplete(llmc, {}, "llmc", "_LLMC_COMPLETE")
    assert {line.partition(",")[2] for line in command.complete().splitlines()} == offered


@pytest.mark.parametrize("here", [True, False])
def test_what_is_next_depends_on_where_it_runs(capsys, here):
    report = CompileReport(Path("m.llmc"), {}, {}, "rpi5", "", 1, 1, 1, 0, runs_here=here)
    print_report(report)
    shown = capsys.readouterr().out
    assert ("llmc bench m.llmc" in shown) == here
    assert ("copy m.llmc to a machine for which rpi5 is, and run m.llmc/bench there" in shown) != here
    assert report.to_dict()["runs_here"] == here


def test_progress_prints_one_line_a_stage(capsys):
    with Progress("compile") as progress:
        for i in range(4):
            progress("import", i / 10)
        progress("build", 0.5)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split()[-1] for line in err.splitlines()] == ["import", "build"]
    assert "50%" in err.splitlines()[1]
