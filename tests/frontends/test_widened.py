"""Large checkpoints of 16-bit floats: the same model by files that are mapped, of which nothing is left behind."""

from __future__ import annotations

import errno
import mmap
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from built_folders import want_same
from random_families import random_model
from safetensors.torch import load_file, save_file

from llmc import kept_imports
from llmc.compiler.frontends import dispatch, plain_folder, resident, scratch, widened
from llmc.compiler.frontends.quiet import quiet
from llmc.compiler.module_text import text_of
from llmc.compiler.text import weights_of
from llmc.errors import LlmcError

needs_proc = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="pages leave memory on Linux only"
)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where large files go; every checkpoint is large."""
    folder = tmp_path / "disk"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(widened.tempfile, "tempdir", None)
    monkeypatch.setattr(widened, "LARGE", 1)
    return folder


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was widened."""
    seen: list[Path] = []
    write = widened.write

    def watched(file: Path, to: Path) -> None:
        seen.append(file)
        write(file, to)

    monkeypatch.setattr(widened, "write", watched)
    return seen


@pytest.fixture
def halves(tmp_path: Path) -> tuple[Path, Any]:
    """A folder in several files of bfloat16, and its model."""
    model = random_model("bert", "ForMaskedLM", num_hidden_layers=1).to(torch.bfloat16)
    folder = tmp_path / "halves"
    with quiet():
        model.save_pretrained(folder, max_shard_size="8KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder, model


def is_mapped(array: Any) -> bool:
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


def test_every_tensor_is_there(tmp_path: Path) -> None:
    held = {
        "bf16": torch.randn(3, 5).to(torch.bfloat16),
        "f16": torch.tensor([1e-7, 65504.0, float("inf")]).to(torch.float16),
        "f32": torch.randn(2, 2),
        "i64": torch.arange(3),
        "bool": torch.tensor([True, False, True]),
        "none": torch.zeros(0, 4, dtype=torch.bfloat16),
        "one": torch.tensor(0.1, dtype=torch.bfloat16),
    }
    save_file(held, tmp_path / "a.safetensors")
    widened.write(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    found = load_file(tmp_path / "b.safetensors")
    assert set(found) == set(held)
    for name, value in held.items():
        wide = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
        assert found[name].dtype == wide.dtype
        assert torch.equal(found[name], wide)


def test_it_is_the_same_model(
    halves: tuple[Path, Any], disk: Path, written: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = halves
    want_same(folder, model)
    assert sorted(written) == sorted(folder.glob("*.safetensors"))
    assert list(disk.iterdir()) == []
    mapped = dispatch.load(folder)
    monkeypatch.setattr(widened, "LARGE", 1 << 40)
    assert text_of(dispatch.load(folder).module) == text_of(
        mapped.module
    )  # weights are named by what they hold
    assert mapped.name == "halves"


def test_weights_of_other_parts_stay(halves: tuple[Path, Any], disk: Path) -> None:
    """A module of sentence-transformers has a model.safetensors of its own."""
    part = halves[0] / "2_Dense"
    part.mkdir()
    save_file({"linear.weight": torch.eye(2)}, part / "model.safetensors")
    with plain_folder.plain(plain_folder.origin(halves[0])) as plain:
        assert plain.path != halves[0]
        assert torch.equal(
            load_file(plain.path / "2_Dense" / "model.safetensors")["linear.weight"], torch.eye(2)
        )
        files = [*plain.path.glob("*.safetensors")]
        assert sorted(f.name for f in files) == sorted(f.name for f in halves[0].glob("*.safetensors"))
        assert not any(file.is_symlink() for file in files)


def test_what_is_kept_is_mapped_too(
    halves: tuple[Path, Any], disk: Path, written: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMC_CACHE", str(tmp_path / "cache"))
    first = kept_imports.load(halves[0])
    count = len(written)
    monkeypatch.setattr(dispatch, "load", None)
    second = kept_imports.load(halves[0])
    assert text_of(second.module) == text_of(first.module)
    assert len(written) == 2 * count
    assert list(disk.iterdir()) == []
    (graph,) = second.module.functions.values()
    arrays = [weight.array for weight in weights_of(graph).values()]
    assert any(is_mapped(array) for array in arrays)


def test_little_and_wide_floats_stay_where_they_are(
    halves: tuple[Path, Any], written: list[Path], tmp_path: Path
) -> None:
    assert not widened.wants(halves[0].glob("*.safetensors"))
    folder = tmp_path / "wide"
    with quiet():
        halves[1].float().save_pretrained(folder)
    widened.LARGE, large = 1, widened.LARGE
    try:
        assert not widened.wants(folder.glob("*.safetensors"))
    finally:
        widened.LARGE = large


def test_a_disk_without_room(halves: tuple[Path, Any], disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, model = halves

    def full(file: Path, to: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(widened, "write", full)
    with pytest.raises(LlmcError, match="cannot write the weights as float32: No space left") as caught:
        dispatch.load(folder)
    assert "TMPDIR" in str(caught.value)
    assert list(disk.iterdir()) == []
    usage = type("Usage", (), {"free": 0})
    monkeypatch.setattr(widened.shutil, "disk_usage", lambda path: usage)
    want_same(folder, model)  # in memory, as ever


def resident_bytes(folder: Path) -> int:
    """Of files of the folder in this process' memory."""
    lines, found, ours = Path("/proc/self/smaps").read_text().splitlines(), 0, False
    for line in lines:
        if "-" in line.partition(" ")[0]:
            ours = str(folder) in line
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1]) << 10
    return found


def is_watched(folder: Path) -> bool:
    return any(thread.name == f"resident {folder.resolve()}" for thread in threading.enumerate())


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[tuple[Path, Any]]:
    """A folder, and 16 MB of a file in it, mapped so that what is written stays this process' own."""
    with (tmp_path / "large").open("w+b") as file:
        file.write(os.urandom(1 << 20) * 16)
        file.flush()
        yield tmp_path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


@needs_proc
def test_pages_leave_memory_and_nothing_is_lost(
    pages: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "MOST", 0)
    folder, mapped = pages
    before = bytes(mapped)
    mapped[5000:5004] = b"mine"
    assert resident_bytes(folder) > len(before) // 2
    with resident.watched(folder):
        os.sync()  # pages that are not on the disk yet cannot leave
        (folder / "large").unlink()
        until = time.monotonic() + 60
        while resident_bytes(folder) > len(before) // 2 and time.monotonic() < until:
            time.sleep(0.05)
        assert resident_bytes(folder) <= len(before) // 2
        assert bytes(mapped) == before[:5000] + b"mine" + before[5004:]
    assert is_watched(folder)  # as long as it is mapped
    mapped.close()
    until = time.monotonic() + 60
    while is_watched(folder) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_watched(folder)


TRIMMED = """
import re
from pathlib import Path
from llmc.compiler.frontends import resident
def own():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
pieces = [bytes(4000) for _ in range(50_000)]
last, before = pieces.pop(), own()
del pieces
kept = own()
resident.trim()
print(before - kept, kept - own())
"""


@needs_proc
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc gives back by itself")
def test_freed_memory_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", TRIMMED], capture_output=True, text=True, check=True)
    by_itself, by_trim = map(int, done.stdout.split())
    assert by_itself < 50_000_000
    assert by_trim > 100_000_000


@needs_proc
def test_large_checkpoints_are_watched_where_they_lie(
    pages: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 is not widened; SmolLM2's checkpoint was in memory beside the weights when these were tried."""
    folder, mapped = pages
    (folder / "large").rename(folder / "model.safetensors")
    monkeypatch.setattr(plain_folder.widened, "wants", lambda files: False)
    with plain_folder._mapped(folder, folder) as found:
        assert found == folder
        assert not is_watched(folder)
    monkeypatch.setattr(plain_folder, "_LARGE", 1 << 20)
    with plain_folder._mapped(folder, folder):
        assert is_watched(folder)
    mapped.close()


KILLED = """
import os, signal, sys
from pathlib import Path
from llmc.compiler.frontends import scratch
with scratch.folder(Path(sys.argv[1])) as place:
    (place / "model").mkdir()
    (place / "model" / "model.safetensors").write_bytes(bytes(9))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_process_leaves_that_is_killed_is_removed(tmp_path: Path) -> None:
    """Nothing else is: folders in use, those without a lock, and what a link leads to."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert (left / "model" / "model.safetensors").exists()
    other = tmp_path / f"{scratch.PREFIX}other"
    other.mkdir()
    (other / "theirs").write_bytes(b"1")
    link = tmp_path / f"{scratch.PREFIX}link"
    link.symlink_to(other)
    with scratch.folder(tmp_path) as mine:
        assert not left.exists()
        (mine / "file").write_bytes(b"1")
        scratch.sweep(tmp_path)
        with scratch.folder(tmp_path) as second:
            assert {*tmp_path.iterdir()} == {mine, second, other, link}
        assert (mine / "file").exists()
    assert {*tmp_path.iterdir()} == {other, link}
    assert (other / "theirs").exists()


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(scratch.fcntl, "flock", none)
    with scratch.folder(tmp_path) as mine:
        scratch.sweep(tmp_path)
        assert mine.exists()
    assert list(tmp_path.iterdir()) == []
