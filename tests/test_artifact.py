"""An artifact's folder appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from llmc import LlmcError
from llmc.compiler import artifact
from llmc.compiler.artifact import new_folder


def make(output: Path, text: str) -> None:
    with new_folder(output) as folder:
        assert folder.parent == output.resolve().parent
        (folder / "manifest.json").write_text(text)


def fail(output: Path, error: BaseException) -> None:
    with new_folder(output) as folder:
        (folder / "manifest.json").write_text("2")
        raise error


def read(output: Path) -> str:
    return (output / "manifest.json").read_text()


def test_it_is_renamed_when_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "m.llmc") as folder:
        assert not (tmp_path / "m.llmc").exists()
        (folder / "manifest.json").write_text("1")
    assert os.listdir(tmp_path) == ["m.llmc"]
    make(tmp_path / "m.llmc", "2")
    assert os.listdir(tmp_path) == ["m.llmc"]
    assert read(tmp_path / "m.llmc") == "2"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    make(tmp_path / "m.llmc", "1")
    with pytest.raises(error):
        fail(tmp_path / "m.llmc", error())
    assert os.listdir(tmp_path) == ["m.llmc"]
    assert read(tmp_path / "m.llmc") == "1"


@pytest.mark.parametrize("error", [KeyboardInterrupt, PermissionError])
@pytest.mark.parametrize("after", [0, 1])
def test_an_interrupt_between_the_renames(
    error: type[BaseException], after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "m.llmc", "1")
    rename, calls = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == after + 1:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises((KeyboardInterrupt, LlmcError)):
        make(tmp_path / "m.llmc", "2")
    assert os.listdir(tmp_path) == ["m.llmc"]
    assert read(tmp_path / "m.llmc") == "1"


def test_an_os_error_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match="cannot write the artifact: No space left on device") as caught:
        fail(tmp_path / "m.llmc", OSError(28, "No space left on device"))
    assert caught.value.hint == "free some space"
    assert os.listdir(tmp_path) == []


def test_a_link_goes_on_pointing(tmp_path: Path) -> None:
    make(tmp_path / "v1.llmc", "1")
    (tmp_path / "latest").symlink_to("v1.llmc")
    make(tmp_path / "latest", "2")
    assert (tmp_path / "latest").is_symlink()
    assert read(tmp_path / "v1.llmc") == "2"
    assert sorted(os.listdir(tmp_path)) == ["latest", "v1.llmc"]


def test_what_is_not_an_artifact_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    (tmp_path / "broken").symlink_to("nowhere")
    for name in ("file", "folder", "broken"):
        with pytest.raises(LlmcError, match="exists and is not an artifact"):
            make(tmp_path / name, "1")
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty", "1")
    assert read(tmp_path / "empty") == "1"


def left_behind(folder: Path, age: float) -> Path:
    """What a process that was killed so many seconds ago leaves."""
    path = folder / ".m.llmc.0123abcd.part"
    path.mkdir()
    (path / "weights.bin").write_bytes(b"half")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    left = left_behind(tmp_path, 1000)
    with new_folder(tmp_path / "other.llmc"):
        assert left.exists()
    with new_folder(tmp_path / "m.llmc"):
        assert not left.exists()


def test_what_was_moved_aside_by_a_killed_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is back where nothing took its place, should the next compile fail, too; else it goes."""
    output, aside = tmp_path / "m.llmc", tmp_path / ".m.llmc.0123abcd.old"
    make(output, "1")
    output.rename(aside)
    with new_folder(output):
        assert aside.exists()  # just now, perhaps by a process that lives
    monkeypatch.setattr(artifact, "_FRESH", -1.0)
    shutil.rmtree(output)
    with pytest.raises(RuntimeError), new_folder(output):
        raise RuntimeError
    assert read(output) == "1"
    shutil.copytree(output, aside)
    make(output, "2")
    assert not aside.exists()
    assert read(output) == "2"


def test_what_is_being_written_is_left_alone(tmp_path: Path) -> None:
    fresh = left_behind(tmp_path, 1)
    with new_folder(tmp_path / "m.llmc") as first:
        os.utime(first, (time.time() - 1000,) * 2)
        with new_folder(tmp_path / "m.llmc"):
            assert first.exists()
            assert fresh.exists()
