"""bench/peers.py against stand-ins: what is compared, what is refused, what is printed."""

import argparse
import importlib
import json
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from llmc.errors import LlmcError

BENCH = Path(__file__).resolve().parents[2] / "bench"
FAKES = ("pytorch", "openvino", "llmc", "llmc x1")


@pytest.fixture
def bench(monkeypatch):
    """The modules of bench/, by name."""
    monkeypatch.syspath_prepend(BENCH)
    names = ("peers", "contest", "peaks", "isa", "results", "spin", "tables")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


class FakePeaks:
    """Two loops that take no time: 2 GFLOP per run of fma512 on two threads."""

    names = ("fma512", "stream")

    def run(self, name, threads):
        return 0.0

    def work(self, name, threads):
        return 1e9 * threads

    def of(self, precision, variant=""):
        return "fma512"


def racers(value=1.0):
    calls = {name: lambda: np.ones(4, np.float32) for name in FAKES}
    return calls | {"llmc": lambda: np.full(4, value, np.float32)}


@pytest.fixture
def result(bench, monkeypatch):
    """A result with one row raced, one skipped, and one on disturbed cores."""
    for module in (bench.contest, bench.spin):
        monkeypatch.setattr(module, "settle", lambda calls: dict.fromkeys(calls, 0.0))
    setting = SimpleNamespace(precision="fp32", threads=2)
    budget = bench.contest.Budget(0.0, 2, 10.0)
    row = bench.contest.measure(racers(), np.ones(4), FakePeaks(), setting, budget, 1e6)
    place = {"model": "toy", "precision": "fp32", "threads": 2, "batch": 1, "seq": 8}
    calls = {name: racers()["llmc"] for name in ("llmc", "llmc x1")}
    return {
        "machine": {"cpu": "Some CPU", "family": 6, "model": 1, "cores": 2, "features": ["avx2"]},
        "isa": "all",
        "held": "held",
        "versions": {"torch": "1.0"},
        "rows": [place | row | {"variant": "avx512", "loop": "fma512"}, place | {"skipped": "too long"}],
        "absent": {"toy, torch.compile": "no g++"},
        "spin": [place | bench.spin.disturb(calls, budget)],
    }


def test_options(bench, capsys):
    assert bench.peers.parse_shapes("1x128,8x64") == [(1, 128), (8, 64)]
    for wrong in ("1x", "x", "8", "1x2x3", "0x5", "-1x5", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="1x128,8x64"):
            bench.peers.parse_shapes(wrong)
    quick = bench.peers.read_options(["--quick", "--threads", "1"])
    assert (quick.models, quick.threads, quick.rounds) == (["minilm", "tiny"], [1], 1)
    assert len(bench.peers.read_options([]).shapes) == 15
    for wrong in (
        ["--threads", "0"],
        ["--precision", "fp8"],
        ["--rounds", "0"],
        ["--json", "/no/where.json"],
    ):
        with pytest.raises(SystemExit):
            bench.peers.read_options(wrong)


def test_racers_that_disagree_do_not_race(bench):
    for wrong in (1.01, np.nan):
        with pytest.raises(LlmcError, match="llmc and pytorch disagree"):
            bench.contest.agree(racers(wrong), np.ones(4), "fp32")
    assert bench.contest.agree(racers(1.01), np.ones(4), "int8")[0]["llmc"]["cosine"] > 0.999
    wrong = racers() | {"openvino": lambda: np.zeros(4, np.float32)}
    assert "difference 1.00" in bench.contest.agree(wrong, np.ones(4), "fp32")[1]["openvino"]
    with pytest.raises(LlmcError, match="cosine -1"):
        bench.contest.agree(racers(-1.0), np.ones(4), "int8")


def test_a_race_is_measured_and_judged(result):
    row = result["rows"][0]
    assert row["turns"] == 2 * 15
    assert set(row["llmc_over"]) == {"pytorch", "openvino"}
    assert row["best"] in row["llmc_over"]
    assert len(row["rounds_over_best"]) == 2
    value, low, high = row["llmc_over"][row["best"]]
    assert low <= value <= high
    assert {"scaling", "machine_scaling"} <= set(row)
    assert set(result["spin"][0]["busy"]["over_one"]) == {"llmc"}


def test_another_of_our_own_racers_has_a_row_of_its_own(bench, monkeypatch):
    monkeypatch.setattr(bench.contest, "settle", lambda calls: dict.fromkeys(calls, 0.0))
    setting, budget = SimpleNamespace(precision="fp32", threads=2), bench.contest.Budget(0.0, 1, 10.0)
    calls = {"llmc-int8x3": lambda: np.ones(4, np.float32), **racers()}
    row = bench.contest.measure(calls, np.ones(4), FakePeaks(), setting, budget, 1e6)
    assert set(row["llmc_over"]) == {"pytorch", "openvino"}  # it is no peer
    parts = bench.contest.of_parts(row, "llmc-int8x3")
    assert parts["llmc_over"] == row["others_over"]["llmc-int8x3"]
    assert parts["median_seconds"]["llmc"] == row["median_seconds"]["llmc-int8x3"]
    assert parts["best"] == row["best"]
    assert "scaling" not in parts
    assert bench.contest.of_parts(row, "llmc-static") == {}


def test_tables_and_json(bench, result, tmp_path, capsys):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result))
    bench.peers.write(bench.results.read_result(path), bench.peers.read_options([]))
    out = capsys.readouterr().out
    for text in ("toy, fp32, 2 threads", "llmc / best", "1x8", "too long", "no g++", "Some CPU", "spins"):
        assert text in out
    text = bench.tables.markdown(result)
    assert text.startswith("| model | precision | batch x seq | 2 threads: llmc / best peer |")
    assert "| toy | fp32 | 1x8 |" in text
    assert len(bench.results.join([result, result])["rows"]) == 4
    with pytest.raises(LlmcError, match="differ in isa"):
        bench.results.join([result, result | {"isa": "avx2"}])
    path.write_text("[]")
    with pytest.raises(LlmcError, match="no result"):
        bench.results.read_result(path)


def test_plot(bench, result, tmp_path):
    importlib.import_module("plot").draw(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_long_races_are_foreseen(bench):
    budget = bench.contest.Budget(seconds=3.0, rounds=3, limit=100.0)
    assert budget.foreseen(0.001, 8) < 10
    assert budget.foreseen(1.0, 8) == 3 * 8 * 8


def test_loops_of_a_processor(bench):
    available = bench.peaks.available
    assert available("all", frozenset({"avx2", "fma"})) == ("fma256", "madd256", "stream")
    wide = frozenset({"avx2", "fma", "avx512f", "avx512_vnni"})
    assert available("all", wide) == ("fma512", "vnni", "stream")
    assert available("avx2", wide) == ("fma256", "madd256", "stream")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the loops are for x86-64")
def test_peaks_are_measured(bench, tmp_path):
    peaks = bench.peaks.Peaks(tmp_path, "avx2")
    assert all(peaks.run(name, 2) > 0 and peaks.work(name, 2) > 0 for name in peaks.names)
    library = bench.peaks.build(BENCH / "cpuid.c", tmp_path)._name
    hidden = (  # NumPy looks at CPUID when it is loaded, as ONNX Runtime does
        "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).hide_wide_vectors() == 0)\n"
        "import numpy as np; print(np._core._multiarray_umath.__cpu_features__['AVX512F'])"
    )
    command = [sys.executable, "-c", hidden, library]
    can, wide = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert can == "False" or wide == "False"
