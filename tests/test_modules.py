"""Files of users: what runs is what they say."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import sys
from pathlib import Path

import pytest

from llmc.compiler import extensions
from llmc.compiler.modules import run_file
from llmc.errors import LlmcError


def test_an_edit_within_a_second_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own bytecode is that of a file of this size and second: a promise of 1e-7 was taken for one of 1e-2."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "bound.py"
    found = []
    for bound in ("1e-2", "1e-7"):
        file.write_text(f"BOUND = {bound}\n")
        os.utime(file, (1_700_000_000, 1_700_000_000))
        ran = run_file(file, "pass")
        found.append((ran.module.BOUND, ran.sha256))
    assert [bound for bound, _ in found] == [1e-2, 1e-7]
    assert found[0][1] != found[1][1]
    assert [path.name for path in tmp_path.iterdir()] == ["bound.py"]


EXTENSION = 'from llmc import Extension\nextension = Extension("mine")\n'
FAULTS = {
    "of asyncio": ("import asyncio\nraise asyncio.CancelledError()", "CancelledError", ":2"),
    "of its own": ("class Odd(BaseException): pass\nraise Odd('hm')", "Odd: hm", ":2"),
    "of generators": ("raise GeneratorExit", "GeneratorExit", ":1"),
    "that cannot be shown": (
        "class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd",
        "Odd",
        ":3",
    ),
    "of several lines": ("raise ValueError('one\\n\\n  two')", "ValueError: one two", ":1"),
    "without end": ("raise ValueError('x' * 100000)", f"ValueError: {'x' * 500}...", ":1"),
    "after it left the table": (
        "import sys\ndel sys.modules[__name__]\nraise KeyError(1)",
        "KeyError: 1",
        ":3",
    ),
    "of syntax, made by hand": ("\nraise SyntaxError('no')", "SyntaxError: no", ":2"),
    "of bytes": ("x = 1\0", "SyntaxError: source code string cannot contain null bytes", ""),
    "of an encoding": (
        "# -*- coding: none-such -*-",
        "SyntaxError: unknown encoding: none-such (mine.py, line 0)",
        "",
    ),
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_file_that_fails_is_told_in_a_sentence(tmp_path: Path, text: str) -> None:
    """Each was a traceback, or an internal error, or had `:None` for a line."""
    file = tmp_path / "mine.py"
    source, said, line = FAULTS[text]
    file.write_text(source)
    before = set(sys.modules)
    with pytest.raises(LlmcError) as caught:
        run_file(file, "pass")
    assert caught.value.problem == f"the pass file fails: {said}"
    assert caught.value.at == f"{file}{line}"
    assert not [name for name in set(sys.modules) - before if name.startswith("llmc_file")]


def test_interruptions_and_signals_stay_what_they_are(tmp_path: Path) -> None:
    class Asked(BaseException):
        """As llmc's own of SIGTERM: a handler raises it within the file."""

    def handler(number: int, frame: object) -> None:
        raise Asked

    file = tmp_path / "mine.py"
    for said, raised in (("raise KeyboardInterrupt", KeyboardInterrupt), ("signal.raise_signal(15)", Asked)):
        file.write_text(f"import signal\n{said}\n")
        earlier = signal.signal(signal.SIGTERM, handler)
        try:
            with pytest.raises(raised):
                run_file(file, "pass")
        finally:
            signal.signal(signal.SIGTERM, earlier)


def test_the_line_of_a_fault_is_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the line of another file's faulty syntax, behind this one's name."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "beside_it.py").write_text("\n\n\n\n\ndef f(:\n")
    (tmp_path / "mine.py").write_text("x = 1\nimport beside_it\n")
    with pytest.raises(LlmcError, match=r"beside_it\.py, line 6") as caught:
        run_file(tmp_path / "mine.py", "pass")
    assert caught.value.at == f"{tmp_path / 'mine.py'}:2"


def test_files_that_load_each_other_are_refused(tmp_path: Path) -> None:
    """They did so until the stack was full, and the sentence said so each time."""
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text(f"import llmc\nllmc.load_extension({str(two)!r})\n{EXTENSION}")
    two.write_text(f"import llmc\nllmc.load_extension({str(one)!r})\n{EXTENSION}")
    with pytest.raises(LlmcError) as caught:
        extensions.load(one)
    fails = "the extension file fails: LlmcError: "
    assert caught.value.problem == f"{fails}{fails}the extension file loads itself"
    assert caught.value.at == f"{one}:2, {two}:2, {one}"
    two.write_text(EXTENSION.replace("mine", "two"))
    extensions.load(one)
    extensions.unload("mine")
    extensions.unload("two")


def test_paths_that_cannot_be_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    for path, problem in (
        ("~nobody-of-that-name/mine.py", "no such pass file"),
        (tmp_path / "mine.zip" / "mine.py", "no such pass file"),
        (tmp_path / ("x" * 300 + ".py"), "the pass file cannot be read"),
        ("zero\0byte.py", "the pass file cannot be read"),
        (tmp_path, "the pass file cannot be read"),
        (tmp_path / "pipe.py", "the pass file is a pipe"),  # nobody wrote to it: that never ended
    ):
        with pytest.raises(LlmcError) as caught:
            run_file(path, "pass")
        assert (caught.value.problem, caught.value.at) == (problem, str(path))


def test_files_of_one_name_and_content_are_two_modules(tmp_path: Path) -> None:
    """The second took the first's name: what looks its own module up, as pickle does, found the other's."""
    names = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "mine.py"
        file.write_text("class Held: pass\n")
        module = run_file(file, "pass").module
        assert sys.modules[module.Held.__module__] is module
        names.append(module)
    for module in names:
        assert pickle.loads(pickle.dumps(module.Held)) is module.Held


def test_packages_are_apart_and_a_failed_one_is_run_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that said the same in `__init__.py` had one set of modules, and a failed one kept what it had imported."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("from .other import VALUE\nNEEDED = 1 / VALUE\n")
        (tmp_path / folder / "other.py").write_text(f"VALUE = {value}\n")
    found = [run_file(tmp_path / folder / "__init__.py", "pass").module.VALUE for folder in ("a", "b")]
    assert found == [1, 2]
    (tmp_path / "c").mkdir()
    package = shutil.copy(tmp_path / "a" / "__init__.py", tmp_path / "c")
    (tmp_path / "c" / "other.py").write_text("VALUE = 0\n")
    with pytest.raises(LlmcError, match="ZeroDivisionError"):
        run_file(package, "pass")
    (tmp_path / "c" / "other.py").write_text("VALUE = 4\n")
    assert run_file(package, "pass").module.NEEDED == 0.25


def test_a_file_that_changed_is_known_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that was relative to another folder was taken for another file: "another extension of that name"."""
    file = tmp_path / "mine.py"
    file.write_text(EXTENSION)
    monkeypatch.chdir(tmp_path)
    extensions.load("mine.py")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir("below")
    file.write_text(f"{EXTENSION}# changed\n")
    try:
        assert extensions.load("../mine.py") is run_file(file, "extension").module.extension
    finally:
        extensions.unload("mine")


def test_a_stand_in_beside_an_extension(tmp_path: Path) -> None:
    """Lazy objects of libraries raise when they are asked what they are."""
    file = tmp_path / "mine.py"
    late = (
        "class Late:\n    @property\n    def __class__(self): raise RuntimeError('not yet')\nlate = Late()\n"
    )
    file.write_text(f"{late}{EXTENSION}")
    extensions.load(file)
    extensions.unload("mine")
