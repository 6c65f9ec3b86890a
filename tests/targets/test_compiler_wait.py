"""The C compiler: what is told where it takes long."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llmc.errors import LlmcError
from llmc.targets import toolchain


def arrange(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """A compiler that is this Python code."""
    monkeypatch.setattr(toolchain, "_PATIENCE", 0.2)
    monkeypatch.setattr(toolchain, "compiler", lambda target, cc: [sys.executable, "-c", code])


def test_a_compiler_that_takes_long_is_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """zig makes a C library first, which was silent for minutes."""
    arrange(monkeypatch, "import time; time.sleep(1)")
    told: list[str] = []
    with toolchain.telling(told.append):
        toolchain.build(tmp_path / "run", [], tmp_path, [], [], "aarch64-linux-musl")
        toolchain.build(tmp_path / "run", [], tmp_path, [], [], "aarch64-linux-musl", cc="clang")
    assert told == ["making run: zig first builds the C library of aarch64-linux-musl, once, for minutes"]


def test_a_compiler_that_is_quick_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arrange(monkeypatch, "raise SystemExit('no such header')")
    monkeypatch.setattr(toolchain, "_PATIENCE", 60.0)
    told: list[str] = []
    with (
        toolchain.telling(told.append),
        pytest.raises(LlmcError, match="the C compiler failed on run") as caught,
    ):
        toolchain.build(tmp_path / "run", [], tmp_path, [], [], "aarch64-linux-musl")
    assert caught.value.found == "no such header"
    assert told == []
