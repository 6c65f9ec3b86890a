"""The executable `bench` and Model.benchmark: the same report twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace

import pytest

from llmc import LlmcError
from llmc.runtime import compare, load, reports
from llmc.runtime.sources import FOLDER

BRIEF = ("--duration", "0.05")


def bench(folder, *arguments, code=0):
    """stdout, or stderr if it should fail; the environment is empty."""
    result = subprocess.run(
        [folder / "bench", *map(str, arguments)], env={}, cwd="/", capture_output=True, text=True, timeout=300
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stderr if code else result.stdout


@pytest.fixture(scope="module")
def model(tiny):
    with load(tiny, threads=2) as model:
        yield model


def check_report(report, threads):
    assert (report["name"], report["threads"], report["sizes"]) == ("tiny", threads, {"batch": 3, "seq": 50})
    latency = report["latency"]
    assert (
        0
        < latency["min"]
        <= latency["p50"]
        <= latency["p90"]
        <= latency["p95"]
        <= latency["p99"]
        <= latency["max"]
    )
    assert latency["mean_low"] <= latency["mean"] <= latency["mean_high"]
    assert report["runs_per_second"] == pytest.approx(1 / latency["mean"], rel=1e-6)
    assert report["flops"] == 2 * 3 * 50 * 3
    assert report["peak_memory_bytes"] > 500_000
    assert 0 < report["load_seconds"] < 60
    assert report["warmup_runs"] > 0


def check_steps(report):
    assert [(s["kernel"], s["source"]) for s in report["steps"]] == [
        ("gather", "embeddings"),
        ("sum", "pooler"),
        ("ramp", "positions"),
    ]
    assert all(s["seconds"] > 0 and s["bytes"] == 8 * 450 for s in report["steps"])
    assert report["peak_flops_per_second"] > 1e7
    assert report["peak_bytes_per_second"] > 1e8


def test_json(tiny):
    report = json.loads(bench(tiny, "--json", "--batch", 3, "--seq", 50, "--threads", 2, "--profile", *BRIEF))
    check_report(report, threads=2)
    check_steps(report)
    assert report["artifact"] == str(tiny)


def test_python(tiny, model):
    report = model.benchmark(batch=3, seq=50, duration=0.05, profile=True)
    check_report(report.to_dict(), threads=2)
    check_steps(report.to_dict())
    printed = json.loads(bench(tiny, "--json", "--profile", *BRIEF))
    assert set(report.to_dict()) == set(printed)
    assert set(report.to_dict()["latency"]) == set(printed["latency"])
    assert set(report.to_dict()["steps"][0]) == set(printed["steps"][0])
    assert model.benchmark(batch=3, seq=50, duration=0.05, threads=1).threads == 1


def test_tables(tiny, model):
    for text in (bench(tiny, "--profile", *BRIEF), str(model.benchmark(duration=0.05, profile=True))):
        assert text.startswith("tiny: batch 1, seq 128, ")
        for word in ("p50", "95 % interval", "runs/s", "warm-up", "peak memory", "gather  embeddings"):
            assert word in text


def test_shares_above_the_peak_are_explained(tiny, model):
    """In both programs, by the same words, and only where there are any."""
    made = model.benchmark(duration=0.05, profile=True)
    fast = replace(made, peak_flops_per_second=1.0, peak_bytes_per_second=1.0)
    assert reports._ABOVE_FLOPS in str(fast).splitlines()
    assert reports._ABOVE_BYTES in str(fast).splitlines()
    slow = replace(made, peak_flops_per_second=1e20, peak_bytes_per_second=1e20)
    assert "above 100 %" not in str(slow)
    words = (FOLDER / "bench_print.c").read_text().replace("%%", "%")
    assert f'"{reports._ABOVE_FLOPS}\\n"' in words
    assert f'"{reports._ABOVE_BYTES}\\n"' in words
    for text in (bench(tiny, "--profile", *BRIEF), str(made)):
        rows = [line.split() for line in text.splitlines() if " GF/s " in line]
        arithmetic, traffic = (max(int(row[place]) for row in rows) for place in (6, 10))
        assert arithmetic <= 100 or reports._ABOVE_FLOPS in text
        assert traffic <= 100 or reports._ABOVE_BYTES in text


def test_compare(tiny, model):
    pair = json.loads(bench(tiny, "--vs", tiny, "--json", "--threads", 1, *BRIEF))
    assert pair["ratio"]["low"] <= pair["ratio"]["ratio"] <= pair["ratio"]["high"]
    assert pair["ratio"]["n"] == pair["a"]["latency"]["n"] == pair["b"]["latency"]["n"]
    assert "interleaved pairs" in bench(tiny, "--vs", tiny, *BRIEF)
    with load(tiny, threads=1) as other:
        report = compare(model, other, duration=0.05, batch=4)
    assert report.low <= report.ratio <= report.high
    assert report.a.n == report.b.n
    assert "interleaved pairs" in str(report)


def test_compare_tells_apart(tiny, tmp_path, build):
    """A model that repeats its main step 20 times takes longer."""
    build.compile_module(tmp_path / "module.so", "-DREPEAT=20")
    build.write_weights(tmp_path / "weights.bin", build.weights_payload())
    build.write_manifest(tmp_path)
    with load(tmp_path, threads=1) as slow, load(tiny, threads=1) as fast:
        assert compare(slow, fast, duration=0.2, batch=8).low > 2


def test_warmup(tiny):
    assert json.loads(bench(tiny, "--json", "--warmup", 7, *BRIEF))["warmup_runs"] == 7
    assert json.loads(bench(tiny, "--json", "--warmup", 0, *BRIEF))["warmup_runs"] == 0


def test_help(tiny):
    text = bench(tiny, "--help")
    for option in ("--batch", "--dim", "--threads", "--profile", "--vs", "--json", "--variant"):
        assert option in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--foo"], 2, "no such option, or its value is missing: --foo"),
        (["--foo", "1"], 2, "no such option: --foo"),
        (["x"], 2, "not an option: x"),
        (["--batch"], 2, "its value is missing"),
        (["--batch", "0"], 2, "not a number that fits here: 0"),
        (["--batch", "1x"], 2, "not a number that fits here: 1x"),
        (["--dim", "seq"], 2, "not NAME=N: seq"),
        (["--dim", "wid=3"], 2, "the model has no such size: wid=3"),
        (["--duration", "nan"], 2, "not a number of seconds: nan"),
        (["--threads", "5000"], 2, "not a number that fits here: 5000"),
        (["--seq", "513"], 1, "seq is 513, must be within 1..512"),
        (["--variant", "x"], 1, "the artifact has no variant 'x'"),
        (["--vs", "/nonexistent"], 1, "cannot read manifest.json"),
    ],
)
def test_refuses(tiny, arguments, code, message):
    assert message in bench(tiny, *arguments, code=code)


def test_damaged_module(copy_of_tiny):
    with (copy_of_tiny / "module.so").open("ab") as file:
        file.write(b"x")
    assert "module.so is damaged or of another build" in bench(copy_of_tiny, code=1)


def test_damaged_other(tiny, copy_of_tiny):
    with (copy_of_tiny / "module.so").open("ab") as file:
        file.write(b"x")
    assert "module.so is damaged" in bench(tiny, "--vs", copy_of_tiny, code=1)
    (copy_of_tiny / "manifest.json").write_text('{"files": {"module.so"')
    assert "the manifest has no sha256 of module.so" in bench(tiny, "--vs", copy_of_tiny, code=1)


def test_moved_folder(tiny, tmp_path):
    """It finds its files wherever it lies, also through a link."""
    folder = shutil.copytree(tiny, tmp_path / "with space ü.llmc")
    assert json.loads(bench(folder, "--json", *BRIEF))["artifact"] == str(folder)
    (tmp_path / "bench").symlink_to(folder / "bench")
    assert json.loads(bench(tmp_path, "--json", *BRIEF))["artifact"] == str(folder)


def test_full_disk(tiny):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with open("/dev/full", "w") as full:
        assert subprocess.run([tiny / "bench", *BRIEF], stdout=full).returncode == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 3}, "the model has no dim 'width'"),
        ({"batch": 0}, "batch is 0, must be an int above 0"),
        ({"batch": 65}, "batch is 65, must be within 1..64"),
        ({"duration": -1}, "duration is -1"),
        ({"warmup": -1}, "warmup is -1"),
        ({"max_runs": 0}, "max_runs is 0"),
    ],
)
def test_python_refuses(model, options, message):
    with pytest.raises(LlmcError) as caught:
        model.benchmark(**options)
    assert message in str(caught.value)


@pytest.fixture(scope="module")
def stateful(tally):
    with load(tally, threads=1) as model:
        yield model


def test_function_and_past(tally, stateful):
    """Each run begins at the same length, in C and in Python."""
    arguments = ("--json", "--batch", 2, "--seq", 4, "--profile", *BRIEF)
    report = json.loads(bench(tally, "--function", "step", "--past", 30, *arguments))
    assert (report["function"], report["sizes"]) == ("step", {"batch": 2, "seq": 4, "past": 30})
    assert report["flops"] == 2 * 3 * 2
    assert [s["bytes"] for s in report["steps"]] == [8 * 2 * 34] * 6
    again = stateful.benchmark(batch=2, seq=4, past=30, duration=0.05, profile=True).to_dict()
    assert (again["function"], again["sizes"], again["flops"]) == ("step", report["sizes"], report["flops"])
    assert set(again) == set(report)
    peek = json.loads(bench(tally, "--function", "peek", "--past", 5, "--json", *BRIEF))
    assert (peek["function"], peek["sizes"]["past"]) == ("peek", 5)
    assert stateful.benchmark(function="square", duration=0.05).sizes["past"] == 0
    assert bench(tally, "--function", "peek", *BRIEF).startswith("tally peek: batch 1, ")
    assert str(stateful.benchmark(function="peek", duration=0.05)).startswith("tally peek: batch 1, ")


def test_compare_functions(tally, stateful):
    pair = json.loads(bench(tally, "--vs", tally, "--function", "peek", "--past", 9, "--json", *BRIEF))
    assert pair["a"]["function"] == pair["b"]["function"] == "peek"
    assert compare(stateful, stateful, function="square", duration=0.05).a.n >= 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--function", "stp"], 1, "the model has no function 'stp'"),
        (["--function", "stp"], 1, "did you mean step? it has step, peek, square"),
        (["--past", "-1"], 2, "not a number that fits here: -1"),
        (["--past", "41"], 1, "past is 41, must be within 0..40"),
        (["--past", "40"], 1, "past is 40 in the session and would be 48 after this call"),
    ],
)
def test_refuses_functions(tally, arguments, code, message):
    assert message in bench(tally, *arguments, *BRIEF, code=code)


def test_refuses_functions_in_python(stateful, model, tiny):
    for options, message in (
        ({"function": "stp"}, "did you mean step?"),
        ({"past": -1}, "past is -1, must be an int, at least 0"),
        ({"past": 40}, "past is 40 in the session and would be 48 after this call"),
    ):
        with pytest.raises(LlmcError) as caught:
            stateful.benchmark(**options)
        assert message in str(caught.value)
    assert "the model has no state that grows: --past" in bench(tiny, "--past", 3, code=2)
