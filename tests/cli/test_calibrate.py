"""Calibration on the command line: killed and gone on with, gathered in parts and merged, to an artifact."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler import interpret, kept_statistics
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Source, Weight
from llmc.compiler.graph_file import write_graph
from llmc.compiler.ops import constant, input_, make
from llmc.options import Order

WIDTH, ROWS = 64, 40
_KILLED = """
import os, signal, sys
from llmc.compiler import kept_statistics
from llmc.compiler.kept_statistics import Record
kept_statistics.SECONDS, kept_statistics._SHARE, see = 0.0, 0, Record._see

def killed(self, sample):
    if self._count == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    see(self, sample)

Record._see = killed
from llmc.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples are run without native code, which takes longer to make than they to run."""

    @contextmanager
    def observer(watched: Graph, compile_graph: Callable[..., Any]) -> Iterator[Any]:
        yield lambda sample: list(interpret.run(watched, sample).values())

    for module in ("llmc.quantisation", "llmc.optimise"):
        monkeypatch.setattr(f"{module}.observer", observer)


def weight(seed: int, name: str, *shape: int) -> Any:
    return constant(Weight(np.random.default_rng(seed).normal(size=shape).astype(np.float32) / 8, name))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A norm with a large column, and two products."""
    x = input_("x", "f32", (symbol("batch"), ROWS, WIDTH))
    gain = np.ones(WIDTH, np.float32)
    gain[5] = 40
    norm = make(
        "layer_norm", (x, constant(Weight(gain, "gain")), weight(1, "shift", WIDTH)), Source("norm"), eps=1e-5
    )
    y = make("linear", (norm, weight(2, "first.weight", 32, WIDTH)), Source("first"), epilogue=())
    z = make(
        "linear", (make("relu", (y,)), weight(3, "second.weight", 48, 32)), Source("second"), epilogue=()
    )
    write_graph(tmp_path / "model.txt", Graph((x,), {"z": z}, {"batch": (1, 8)}))
    return tmp_path / "model.txt"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """All samples, and the first and the others in files of their own."""
    x = np.random.default_rng(4).normal(size=(20, ROWS, WIDTH)).astype(np.float32)
    x *= np.linspace(0.5, 2, 20, dtype=np.float32)[:, None, None]
    for name, rows in (("all", x), ("part1", x[:9]), ("part2", x[9:])):
        np.savez(tmp_path / f"{name}.npz", x=rows)
    return tmp_path


def written(path: Path) -> dict[str, bytes]:
    """Of an artifact its files, of a graph both."""
    files = path.iterdir() if path.is_dir() else (path, path.with_suffix(".npz"))
    return {file.suffix if not path.is_dir() else file.name: file.read_bytes() for file in files}


def test_a_killed_run_goes_on_to_the_same_bytes(cli: Any, model: Path, data: Path, tmp_path: Path) -> None:
    command = ["opt", str(model), "--passes", "gptq", "--calib", str(data / "all.npz")]
    assert cli(*command, "-o", tmp_path / "whole.txt").code == 0
    kept = ["--calib-stats", str(tmp_path / "kept")]
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, *command, *kept], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["walk1.npz"]
    result = cli(*command, *kept, "-o", tmp_path / "again.txt")
    assert (result.code, result.err) == (0, "calibration: walk 1: 5 samples were there\n")
    assert written(tmp_path / "again.txt") == written(tmp_path / "whole.txt")
    result = cli(*command, *kept, "-q", "-o", tmp_path / "third.txt")
    assert (result.code, result.err) == (0, "")
    assert written(tmp_path / "third.txt") == written(tmp_path / "whole.txt")


def levels_of(path: Path) -> dict[str, Any]:
    """The integers of a graph's weights, by name."""
    with np.load(path) as stored:
        arrays = {n.rpartition(".")[0]: stored[n] for n in stored.files if not n.endswith(".json")}
    return {name: array for name, array in arrays.items() if array.dtype == np.uint8}


def test_parts_are_merged_without_data(cli: Any, model: Path, data: Path, tmp_path: Path) -> None:
    command = ["opt", model, "--passes", "gptq{bits=8}"]
    for part in ("part1", "part2"):
        kept = ["--calib", data / f"{part}.npz", "--calib-stats", tmp_path / part, "-o", tmp_path / "x.txt"]
        assert cli(*command, *kept).code == 0
    for name, (a, b) in {"ab": ("part1", "part2"), "ba": ("part2", "part1")}.items():
        merged = ["--calib-merge", tmp_path / a, "--calib-merge", tmp_path / b]
        result = cli(*command, *merged, "-o", tmp_path / f"{name}.txt")
        said = "calibration: walk 1: 20 samples of 2 parts are merged\n"
        assert (result.code, result.err) == (0, said)
    assert written(tmp_path / "ab.txt") == written(tmp_path / "ba.txt")
    assert cli(*command, "--calib", data / "all.npz", "-o", tmp_path / "whole.txt").code == 0
    ours, theirs = (levels_of(tmp_path / f"{name}.npz") for name in ("ab", "whole"))
    levels = [(ours[name], theirs[name]) for name in ours]
    assert levels
    for mine, other in levels:
        assert np.mean(mine != other) < 0.01  # a value between two levels may take the other
        assert np.abs(mine.astype(int) - other).max() <= 1


def calibrate(cli: Any, model: Path, part: Path, *more: Any, code: int = 0) -> Any:
    own = ["--calib", part, "--calib-stats", part.with_suffix(""), "--target", "x86-avx512"]
    result = cli("calibrate", model, "--quant", "int8-static", *own, *more, "--json")
    assert result.code == code, result.err
    return json.loads(result.out)


def test_gptq_waits_for_parts(cli: Any, model: Path, data: Path, tmp_path: Path) -> None:
    """In a pass, whose errors are the pipeline's: awq changes what gptq looks at."""
    asked = [
        "calibrate",
        model,
        "--quant",
        "w4",
        "--add-pass",
        "awq{bits=4}@quantise",
        "--json",
        "--parts",
        2,
    ]
    for part in ("part1", "part2"):
        result = cli(*asked, "--calib", data / f"{part}.npz", "--calib-stats", tmp_path / part)
        assert result.code == 0, result.err
        found = json.loads(result.out)
        assert [walk["kind"] for walk in found["walks"]] == ["moments"]
        assert found["waits"].startswith("calibration: there are not all parts yet\n  found: 1 of 2")
    merged = ["--calib-merge", tmp_path / "part2"]
    result = cli(*asked, "--calib", data / "part1.npz", "--calib-stats", tmp_path / "part1", *merged)
    assert result.code == 0, result.err
    assert json.loads(result.out)["waits"].startswith("calibration: a part has nothing of walk 2 yet")


def scales(manifest: Path) -> tuple[str, list[float]]:
    """The pipeline of an artifact without the scales, and these."""
    text = json.loads(manifest.read_text())["pipeline"]
    found = re.search(r"scales=\[([^\]]*)\]", text)
    assert found is not None
    return text.replace(found[1], ""), [float(x) for x in found[1].split(",")]


def test_ranges_of_parts_are_gathered_in_rounds(cli: Any, model: Path, data: Path, tmp_path: Path) -> None:
    """What is divided depends on all parts, ranges on what is divided, and which serve all rows on the ranges."""
    one, two = data / "part1.npz", data / "part2.npz"
    a, b = tmp_path / "part1", tmp_path / "part2"
    for part in (one, two):
        found = calibrate(cli, model, part, "--parts", 2)
        assert [walk["kind"] for walk in found["walks"]] == ["columns"]
        assert "not all parts yet" in found["waits"]
    found = calibrate(cli, model, one, "--calib-merge", b)
    assert [(w["kind"], w["there"], w["merged"]) for w in found["walks"]] == [
        ("columns", 9, 11),
        ("magnitudes", 0, 0),
    ]
    assert f"nothing of walk 2 yet\n  at:    {b}" in found["waits"]
    found = calibrate(cli, model, two, "--calib-merge", a)
    assert [w["kind"] for w in found["walks"]] == ["columns", "magnitudes", "noise"]
    assert f"nothing of walk 3 yet\n  at:    {a}" in found["waits"]
    found = calibrate(cli, model, one, "--calib-merge", b)
    assert found["waits"] == ""
    assert [w["there"] + w["added"] + w["merged"] for w in found["walks"]] == [20] * 3

    asked = ["compile", model, "--quant", "int8-static", "--target", "x86-avx512", "-q"]
    result = cli(*asked, "--calib-merge", a, "--calib-merge", b, "-o", tmp_path / "merged.llmc")
    assert (result.code, result.err) == (0, "")
    assert cli(*asked, "--calib", data / "all.npz", "-o", tmp_path / "whole.llmc").code == 0
    (ours, left), (theirs, right) = (
        scales(tmp_path / f"{n}.llmc" / "manifest.json") for n in ("merged", "whole")
    )
    assert 'smooth{factors=["5:' in ours
    assert ours == theirs
    np.testing.assert_allclose(left, right, rtol=2e-3)  # two bins of 4096

    result = cli(*asked, "--calib-merge", a, "-o", tmp_path / "x.llmc")
    assert result.code == 1
    assert "walk 3 of a part is by what walk 2 found in other samples" in result.err


def test_an_interrupted_compile_goes_on_to_the_same_artifact(
    cli: Any, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["compile", model, "--quant", "int8-static", "--calib", data / "all.npz"]
    assert cli(*asked, "-q", "-o", tmp_path / "whole.llmc").code == 0
    see, count = kept_statistics.Record._see, 0

    def interrupted(self: Any, sample: Any) -> None:
        nonlocal count
        count += 1
        if count == 27:
            raise KeyboardInterrupt
        see(self, sample)

    kept = ["--calib-stats", tmp_path / "kept"]
    with monkeypatch.context() as within:
        within.setattr(kept_statistics, "SECONDS", 0.0)
        within.setattr(kept_statistics, "_SHARE", 0)
        within.setattr(kept_statistics.Record, "_see", interrupted)
        assert cli(*asked, *kept, "-o", tmp_path / "again.llmc").code == 130
    assert not (tmp_path / "again.llmc").exists()
    result = cli(*asked, *kept, "-o", tmp_path / "again.llmc")
    assert result.code == 0
    said = [line for line in result.err.splitlines() if line.startswith("calibration:")]
    assert said == [f"calibration: walk {i}: {n} samples were there" for i, n in ((1, 20), (2, 6))]
    assert written(tmp_path / "again.llmc") == written(tmp_path / "whole.llmc")
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == [f"walk{i}.npz" for i in (1, 2, 3)]


REFUSED: dict[str, tuple[list[str], str]] = {
    "nothing to gather": (["--quant", "w4", "--calib-stats", "S"], "no samples to gather statistics of"),
    "no folder": (["--quant", "w4", "--calib-merge", "none"], "no such folder of statistics"),
    "no use": (
        ["--quant", "int8", "--calib-merge", "."],
        "of use to int8-static, w8, w4, w4a8 and --prune only",
    ),
    "nothing there": (["--quant", "w4", "--calib-merge", "."], "there are no statistics"),
    "a budget": (
        ["--max-drop", "1%", "--data", "d.npz", "--calib", "auto", "--calib-stats", "S"],
        "a budget calibrates many models",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(
    name: str, cli: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "place")
    (tmp_path / "place" / "d.npz").write_bytes(b"")
    options, problem = REFUSED[name]
    result = cli("compile", model, *options, "-o", tmp_path / "x.llmc")
    assert result.code == 1
    assert problem in result.err


def test_other_options_are_refused(cli: Any, model: Path, data: Path, tmp_path: Path) -> None:
    kept = ["--calib", data / "part1.npz", "--calib-stats", tmp_path / "kept"]
    command = ["opt", model, *kept, "-o", tmp_path / "x.txt"]
    assert cli(*command, "--passes", "gptq").code == 0
    result = cli(*command, "--passes", "smooth")
    assert result.code == 1
    assert "found: moments, where columns are gathered" in result.err
    assert cli("calibrate", model, "--quant", "w4", "--calib", data / "part1.npz").code == 1


def test_there_is_nothing_plain_to_compare_with(tmp_path: Path) -> None:
    """A pass that stays wants samples of the plain model, of which there are no statistics."""
    options: Any = {"quant": "w4", "calib_merge": [tmp_path], "add_passes": "awq@quantise", "target": "x86"}
    assert Order("m.llmc", None, options).plain() is None
    assert Order("m.llmc", None, {**options, "add_passes": "fold@quantise"}).plain() is not None
