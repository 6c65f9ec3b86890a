"""Files of users: what runs is what they say."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from llmc.compiler.modules import run_file


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
