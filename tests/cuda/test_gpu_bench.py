"""bench/gpu.py without a GPU: what it finds wrong, what it says where nothing can run, what travels."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmc.compiler import interpret
from llmc.compiler.graph import Graph

pytestmark = pytest.mark.xdist_group("cuda")  # with the artifacts of test_artifact.py
BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules of bench/, by name."""
    monkeypatch.syspath_prepend(BENCH)
    names = ("gpu", "gpu_cpu", "gpu_models", "gpu_prepare", "gpu_table", "gpu_worker")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def run_on(bench: SimpleNamespace, folder: Path, seconds: float = 300.0) -> Any:
    return bench.gpu.Run(folder, SimpleNamespace(seconds=seconds, race_seconds=0.1, json=None, only=()))


@pytest.fixture
def prepared(
    bench: SimpleNamespace,
    compiled: Callable[..., Any],
    imported: Callable[[Path], Graph],
    small_bert: Path,
    token_cases: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Path:
    """A prepared folder whose only artifact is a small BERT, and the stand-in driver to run it."""
    made = compiled(small_bert)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    bench.gpu_prepare.make_folders(tmp_path)
    place = tmp_path / "models" / "small-fp32"
    place.symlink_to(made.artifact)
    graph = imported(small_bert)
    bench.gpu_prepare.write_cases(place / "cases.npz", [(graph, case) for case in token_cases])
    return tmp_path


def test_right_answers_pass(bench: SimpleNamespace, prepared: Path) -> None:
    run = run_on(bench, prepared)
    bench.gpu.checks(run)
    found = run.result["checks"]["models/small-fp32"]
    assert found["wrong"] == found["unsteady"] == found["selftest"]["failures"] == []
    assert 0 < found["error"] < 1e-4
    assert run.left > 100


def test_wrong_answers_are_found(bench: SimpleNamespace, prepared: Path) -> None:
    path = prepared / "models" / "small-fp32" / "cases.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays["2/out/logits"] = arrays["2/out/logits"] + np.float32(0.01)
    np.savez(path, **arrays)
    run = run_on(bench, prepared)
    bench.gpu.checks(run)
    (wrong,) = run.result["checks"]["models/small-fp32"]["wrong"]
    assert wrong.startswith("case 2, logits: off by 0.0")
    assert "case 2, logits" in "\n".join(bench.gpu_table.check_lines(run.result["checks"]))


def test_where_nothing_runs_no_time_is_left(
    bench: SimpleNamespace, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMC_EMULATED_FAIL", "cuInit:100")
    run = run_on(bench, prepared)
    bench.gpu.checks(run)
    assert "CUDA error 100" in run.result["checks"]["models/small-fp32"]["failed"]
    bench.gpu.act(run, "races")
    assert run.result["notes"] == ["no time was left for races"]


def test_without_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    command = [sys.executable, str(BENCH / "gpu.py"), str(tmp_path), "--only", "checks,races"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "r.json")], capture_output=True, text=True, env={"PATH": ""}
    )
    assert done.returncode == 1, done.stderr
    assert "THERE IS NO GPU HERE" in done.stdout
    assert json.loads((tmp_path / "r.json").read_text())["checks"] == {}


def test_reports_of_the_sanitizer(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in finds a race in one artifact."""
    for name in ("kernels/good", "kernels/racy", "models"):
        (tmp_path / name).mkdir(parents=True)
    program = tmp_path / "compute-sanitizer"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *racecheck*racy*) echo "========= Error: Race reported"; exit 9;; esac\n'
        'echo "========= ERROR SUMMARY: 0 errors"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    run = run_on(bench, tmp_path)
    bench.gpu.sanitizer(run)
    found = run.result["sanitizer"]
    assert found.pop("racecheck kernels/racy").startswith("========= Error: Race reported")
    assert set(found.values()) == {"ok"}
    assert len(found) == 7


def test_what_is_packed_is_unpacked(bench: SimpleNamespace, tmp_path: Path) -> None:
    bench.gpu_prepare.make_folders(tmp_path)
    for name in ("kernels/a", "models/demo-fp32", "cpu/demo-fp32", "models/base-size-fp16"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.bin").write_bytes(name.encode() * 100)
    bench.gpu_prepare.prepare_rest(tmp_path)
    bench.gpu_prepare.pack_all(tmp_path)
    place = bench.gpu.unpack(tmp_path / "packed")
    names = {str(path.relative_to(place)) for path in place.rglob("weights.bin")}
    assert names == {
        f"{n}/weights.bin"
        for n in ("kernels/a", "models/demo-fp32", "cpu/demo-fp32", "models/base-size-fp16")
    }
    assert (place / "models/demo-fp32/weights.bin").read_bytes() == b"models/demo-fp32" * 100
    assert (place / "demo" / "config.json").exists()
    code = "import llmc.runtime.model, sys; print(llmc.__file__); assert 'tvm' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(place / "site")}, capture_output=True, text=True
    )
    assert done.stdout.startswith(str(place)), done.stderr


def test_prepared_graphs(bench: SimpleNamespace) -> None:
    """Those of test_kernels.py: the kernels that matter most, and all shapes of a graph in one artifact."""
    from llmc.targets.cuda.lower import LOWERINGS

    graphs = bench.gpu_prepare.kernel_graphs()
    ops = {node.op for cases in graphs.values() for graph, _ in cases for node in graph.nodes}
    assert {"linear", "matmul", "mha", "attention", "qlinear", "layer_norm", "softmax"} <= ops & set(
        LOWERINGS
    )
    assert [len(graphs[name]) for name in ("products", "attentions", "integers", "stored", "blocks")] == [
        3,
        3,
        4,
        5,
        5,
    ]
    graph, inputs = graphs["integers"][2]
    assert interpret.run(graph, inputs)["rows"].shape[0] == 64


@pytest.mark.parametrize(
    ("found", "expected", "apart"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.2),
        ([np.nan], [np.nan], 0.0),
        ([np.nan], [1.0], np.inf),
        ([0.2], [0.1], 0.1),
    ],
)
def test_difference(bench: SimpleNamespace, found: list[float], expected: list[float], apart: float) -> None:
    assert bench.gpu_worker.difference(np.array(found), np.array(expected)) == pytest.approx(apart)


def test_limits(bench: SimpleNamespace) -> None:
    names = (
        "kernels/products",
        "kernels/encoder-0-int8",
        "models/demo-fp16",
        "kernels/integers-all",
        "models/demo-w4",
    )
    assert [bench.gpu_worker.limit(Path(name)) for name in names] == [2e-5, 2e-2, 5e-3, 0.0, 1e-4]


def test_tables(bench: SimpleNamespace) -> None:
    row = {
        "shape": "1x16",
        "seconds": {"torch-fp32": 0.001, "llmc-fp32": 0.0005},
        "failed": {"graph-fp32": "no"},
    }
    kernels = {"linear_1": {"seconds": 0.002, "flops": 4e9, "calls": 2}}
    result = {
        "machine": {"gpu": "G"},
        "notes": [],
        "checks": {},
        "sanitizer": {},
        "cpu": {},
        "races": {"toy": {"rows": [row]}, "lost": {"failed": "exit code 1"}},
        "profiles": {"toy-fp32 1x16": {"p50": 0.0004, "steps": 2, "kernels": kernels}},
    }
    text = "\n".join(bench.gpu_table.lines(result))
    assert "toy 1x16: graph-fp32: no" in text
    assert "lost: exit code 1" in text
    assert "2 x   1000 us    2.00 TFLOP/s  linear_1" in text
    (line,) = [line for line in text.splitlines() if line.startswith("toy 1x16  ")][:1]
    assert line.split()[2:] == ["1000", "-", "-", "-", "500"]
