"""-v and -q: before a command's name or after it, with effect, and gone when the command ends."""

import os
import subprocess
import sys
import warnings

import pytest

import llmc
from llmc.cli import llmc as group
from llmc.cli.output import Progress
from llmc.errors import LlmcWarning


@pytest.fixture
def command(monkeypatch):
    """`command(f)` makes `llmc passes` call f."""
    from llmc.cli import passes

    return lambda call: monkeypatch.setattr(passes.command, "callback", lambda **_: call())


@pytest.mark.filterwarnings("always::llmc.errors.LlmcWarning")
@pytest.mark.parametrize("arguments", [("-q", "passes"), ("passes", "--quiet")])
def test_quiet_has_no_progress_and_no_warnings(arguments, command, cli):
    def work():
        warnings.warn("odd", LlmcWarning, stacklevel=1)
        with Progress("work") as progress:
            progress("begun", 0.5)

    command(work)
    assert cli(*arguments).err == ""
    loud = cli("passes").err.splitlines()
    assert loud[0] == "warning: odd"
    assert loud[1].endswith("begun")


@pytest.mark.parametrize(
    ("arguments", "level"),
    [
        (("passes",), None),
        (("-v", "passes"), "1"),
        (("passes", "-vv"), "2"),
        (("passes", "-v", "-v", "-v"), "3"),
    ],
)
def test_verbose_is_the_ladder_of_llmc_debug(arguments, level, command, cli, monkeypatch):
    monkeypatch.delenv("LLMC_DEBUG", raising=False)
    seen = []
    command(lambda: seen.append(os.environ.get("LLMC_DEBUG")))
    assert cli(*arguments).code == 0
    assert seen == [level]
    assert "LLMC_DEBUG" not in os.environ


def test_verbose_does_not_say_less_than_the_variable(command, cli, monkeypatch):
    monkeypatch.setenv("LLMC_DEBUG", "3")
    seen = []
    command(lambda: seen.append(os.environ["LLMC_DEBUG"]))
    cli("-v", "passes")
    assert (seen, os.environ["LLMC_DEBUG"]) == (["3"], "3")


def test_both_are_refused(cli):
    for arguments in (("-v", "-q", "passes"), ("-q", "passes", "-v")):
        found = cli(*arguments)
        assert found.code == 2
        assert "exclude each other" in found.err


def test_run_says_what_it_runs_with(fake_artifact, cli, tmp_path):
    import numpy as np

    np.save(tmp_path / "x.npy", np.zeros(2, np.float32))
    given = ("run", fake_artifact, "--input", f"x={tmp_path / 'x.npy'}", "--threads", 1, "--variant", "avx2")
    assert cli(*given).err == ""
    assert cli("-v", *given).err == f"{fake_artifact}: threads 1, code avx2\n"


def test_warnings_of_others_are_shown_as_ever(command, cli):
    before = warnings.showwarning
    command(lambda: warnings.warn("theirs", UserWarning, stacklevel=1))
    with pytest.warns(UserWarning, match="theirs"):
        assert cli("passes").err == ""
    assert warnings.showwarning is before


def test_every_command_takes_them():
    for name in group.list_commands(None):
        taken = [option for p in group.get_command(None, name).params for option in p.opts]
        assert taken.count("-v") == taken.count("-q") == 1, name


@pytest.mark.parametrize(
    "command_line", [["-m", "llmc"], ["-c", "from llmc.__main__ import main; raise SystemExit(main())"]]
)
def test_the_command_line_is_a_module(command_line):
    done = subprocess.run(
        [sys.executable, *command_line, "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"llmc, version {llmc.__version__}\n"


def test_without_click_there_is_a_sentence():
    """As after `pip install --no-deps`."""
    code = "import sys; sys.modules['click'] = None; from llmc.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: this needs the package click\n  hint:  pip install llmc\n"
