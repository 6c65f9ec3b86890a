"""Without the extra `compile`: what works, and what every other command says. Skipped where it is installed.

`.ci/wheel` runs it in venvs that hold the wheel and the extra `text`.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("sympy"):
    pytest.skip("the extra `compile` is installed", allow_module_level=True)

import llmc
from llmc.cli import main

DEMO = Path(llmc.__file__).parent / "demo" / "model"


def test_the_import_takes_a_tenth_of_a_second_at_most() -> None:
    code = "import time; begun = time.perf_counter(); import llmc; print(time.perf_counter() - begun)"
    times = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5)]
    assert min(times) < 0.1, times


@pytest.mark.parametrize(
    "arguments",
    [
        ("compile", DEMO),
        ("opt", DEMO),
        ("passes",),
        ("targets",),
        ("demo",),
        ("inspect", "model.onnx"),
        ("inspect", "model.pt2"),
        ("inspect", "-x", "extension.py", DEMO),
    ],
    ids=lambda arguments: " ".join(map(str, arguments[:2])),
)
def test_what_compiles_names_the_extra(
    arguments: tuple[object, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model.onnx", "model.pt2", "extension.py"):
        (tmp_path / name).write_bytes(b"\x08\x0a")
    assert main(list(map(str, arguments))) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-2].startswith("error: this needs the package "), said
    assert said[-1] == "  hint:  pip install 'llmc[compile]'"
    assert not list(tmp_path.glob("*.llmc"))


@pytest.mark.parametrize(
    "name", ["compile", "compile_graph", "compile_module", "exportable", "load_extension"]
)
def test_so_does_the_interface_of_python(name: str) -> None:
    with pytest.raises(llmc.LlmcError, match=r"this needs the package .*\n.*pip install 'llmc\[compile\]'"):
        getattr(llmc, name)


def test_a_model_folder_can_be_inspected(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(DEMO)]) == 0
    assert "BertForSequenceClassification" in capsys.readouterr().out
