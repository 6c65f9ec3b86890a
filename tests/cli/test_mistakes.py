"""Every mistake gets one clear sentence and the right exit code; a traceback never shows."""

import errno
import fcntl
import signal
import subprocess
import sys
import termios
import time
from typing import Any

import click
import numpy as np
import pytest

import llmc.cli as front
from llmc.compiler.artifact import new_folder
from llmc.errors import LlmcError

RUN = [sys.executable, "-c", "import sys; from llmc.cli import main; sys.exit(main())"]


@pytest.fixture
def raising(monkeypatch):
    """Make `llmc targets` raise."""

    def arrange(error):
        @click.command("targets")
        def command():
            raise error

        monkeypatch.setattr(front._Commands, "get_command", lambda self, ctx, name: command)

    return arrange


def test_a_user_error_is_printed_whole(cli, raising):
    raising(LlmcError("no such target 'z80'", at="--target", found="z80", hint="use x86"))
    result = cli("targets")
    assert result.code == 1
    assert result.out == ""
    assert result.err.splitlines() == [
        "error: no such target 'z80'",
        "  at:    --target",
        "  found: z80",
        "  hint:  use x86",
    ]


@pytest.mark.parametrize("command", [["compile"], ["opt"], ["inspect"]])
@pytest.mark.parametrize("name", ["bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2"])
def test_a_name_on_a_hub_is_no_folder(cli, command, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli(*command, name)
    assert result.code == 1
    assert "llmc downloads nothing" in result.err
    folder = name.rpartition("/")[2]
    assert f"`hf download {name} --local-dir {folder}` first, then give ./{folder}" in result.err
    (tmp_path / "models").mkdir()
    for path in ("/no/such/folder", "models/bert"):
        assert "downloads nothing" not in cli(*command, path).err


def test_a_bug_says_how_to_report_it(cli, raising, monkeypatch):
    monkeypatch.delenv("LLMC_DEBUG", raising=False)
    raising(ZeroDivisionError("division by zero"))
    result = cli("targets")
    assert result.code == 1
    assert result.err.startswith("internal error: ZeroDivisionError: division by zero\n")
    assert "LLMC_DEBUG=1" in result.err
    assert "Traceback" not in result.err


def test_memory_that_there_is_not_is_no_bug(cli, raising):
    """A file may declare an input of 2^31 numbers."""
    raising(MemoryError("Unable to allocate 16.0 GiB for an array with shape (2147483647,)"))
    result = cli("targets")
    assert result.code == 1
    assert result.err.startswith("error: there is not enough memory\n  found: Unable to allocate 16.0 GiB")


def test_a_bug_shows_its_traceback_on_request(cli, raising, monkeypatch):
    monkeypatch.setenv("LLMC_DEBUG", "1")
    raising(ZeroDivisionError("division by zero"))
    assert "Traceback" in cli("targets").err


def test_an_interrupt_is_130(cli, raising):
    raising(KeyboardInterrupt())
    result = cli("targets")
    assert result.code == 130
    assert result.err.strip() == "interrupted"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_termination_removes_what_was_begun(cli, monkeypatch, tmp_path, number, code):
    @click.command("targets")
    def command():
        with new_folder(tmp_path / "m.llmc") as part:
            (part / "weights.bin").write_bytes(b"half")
            signal.raise_signal(number)

    monkeypatch.setattr(front._Commands, "get_command", lambda self, ctx, name: command)
    result = cli("targets")
    assert (result.code, result.err) == (code, "terminated\n")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_full_disk_is_the_systems_sentence(cli, raising):
    raising(OSError(errno.ENOSPC, "No space left on device", "m.llmc/weights.bin"))
    result = cli("targets")
    assert result.code == 1
    assert result.err == "error: no space left on device\n  at:    m.llmc/weights.bin\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compil"], "Did you mean 'compile'"),
        (["bench"], "Missing argument"),
        (["bench", "x", "--batch", "0"], "x>=1"),
        (["bench", "x", "--duration", "soon"], "write 3s, 500ms or 2m"),
        (["bench", "x", "--vs", "y", "--profile"], "without --vs"),
        (["run", "x"], "one of --text, --prompt, --image, --audio, --input or --selftest"),
        (
            ["run", "x", "--text", "a", "--selftest"],
            "one of --text, --prompt, --image, --audio, --input or --selftest",
        ),
        (["run", "x", "--text", "a", "--pair", "b", "--pair", "c"], "2 --pair for 1 --text"),
        (["compile", "x", "-O", "4"], "0<=x<=3"),
        (["completion", "tcsh"], "'bash', 'zsh', 'fish'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_2(cli, arguments, words):
    result = cli(*arguments)
    assert result.code == 2
    assert words in " ".join(result.err.split())
    assert result.out == ""


@pytest.mark.parametrize("command", [["run", "--text", "a"], ["bench"], ["inspect"], ["opt"]], ids=" ".join)
def test_a_missing_path_names_what_exists(cli, tmp_path, command):
    result = cli(*command, tmp_path / "nowhere" / "m.llmc")
    assert result.code == 1
    assert result.err.startswith("error: ")
    assert "was not found" in result.err
    assert f"{tmp_path} exists" in result.err


@pytest.mark.parametrize("command", [["run", "--text", "a"], ["bench"]], ids=" ".join)
def test_a_model_folder_is_no_artifact(cli, demo_folder, command):
    result = cli(*command, demo_folder)
    assert result.code == 1
    assert "not an artifact" in result.err
    assert f"llmc compile {demo_folder}" in result.err


@pytest.mark.parametrize("command", [["run", "--text", "a"], ["bench"], ["inspect"]], ids=" ".join)
def test_other_folders_and_files_are_refused(cli, tmp_path, command):
    file = tmp_path / "file"
    file.write_text("x")
    for path in (tmp_path, file):
        result = cli(*command, path)
        assert result.code == 1
        assert str(path) in result.err


def test_bad_input_files(cli, fake_artifact, tmp_path):
    text, archive = tmp_path / "x.npy", tmp_path / "x.npz"
    text.write_text("1 2 3")
    np.savez(archive, a=np.zeros(1))
    for given, words in (
        ("x", "is not NAME=FILE.npy"),
        ("x=nowhere.npy", "was not found"),
        (f"x={text}", "not a .npy file"),
        (f"x={archive}", "one array"),
    ):
        result = cli("run", fake_artifact, "--input", given)
        assert result.code == (2 if given == "x" else 1)
        assert words in result.err


def test_a_pickle_is_not_loaded(cli, fake_artifact, tmp_path):
    file = tmp_path / "evil.npy"
    np.save(file, np.array([object()], dtype=object), allow_pickle=True)
    result = cli("run", fake_artifact, "--input", f"x={file}")
    assert result.code == 1
    assert "not a .npy file that can be read" in result.err


def test_no_text_on_standard_input(fake_artifact):
    done = subprocess.run(
        [*RUN, "run", str(fake_artifact), "--text", "-"], input="\n", capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "no text on standard input" in done.stderr


def test_a_closed_pipe_is_quiet():
    with subprocess.Popen([*RUN, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


def test_standard_output_on_a_full_disk(demo_folder):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*RUN, "inspect", str(demo_folder)], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "error: no space left on device\n"


def _wait_until_read(pipe: Any) -> None:
    """Return when the other side has taken all that was written, and so waits for more."""
    deadline = time.monotonic() + 300
    while int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), "little"):
        assert time.monotonic() < deadline, "nothing was read"
        time.sleep(0.01)


def test_control_c_while_reading_standard_input(fake_artifact):
    start = "import sys; from llmc.cli import main; sys.exit(main())"
    arguments = [sys.executable, "-c", start, "run", str(fake_artifact), "--text", "-"]
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    with subprocess.Popen(arguments, text=True, **pipes) as process:
        process.stdin.write("a line\n")
        process.stdin.flush()
        _wait_until_read(process.stdin)
        process.send_signal(signal.SIGINT)
        process.wait(300)
        assert process.returncode == 130
        assert process.stderr.read().strip() == "interrupted"


def test_tuning_for_another_machine(cli, demo_folder, tmp_path):
    result = cli("compile", demo_folder, "--tune", "--target", "cuda", "-o", tmp_path / "out.llmc")
    assert result.code == 1
    assert result.err.splitlines()[-3].startswith("error: there is nothing to tune: the kernels of cuda")
    assert not (tmp_path / "out.llmc").exists()


def test_a_time_for_tuning_that_is_none(cli, demo_folder):
    result = cli("compile", demo_folder, "--tune", "--tune-time", "long")
    assert result.code == 2
    assert "is not a duration" in result.err
