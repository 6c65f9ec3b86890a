"""docs/passes.md: the pass it teaches, run as it says."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

PASS = "./my_pass.py:TanhGelu"


@pytest.fixture
def my_pass(block, tmp_path):
    """The tutorial's file, in the folder where `shell` runs."""
    file = tmp_path / "my_pass.py"
    file.write_text(block("passes", "my_pass.py"))
    return file


@pytest.fixture
def imported(my_pass, shell, classifier_folder, tmp_path):
    """The classifier's graph as text, so that a command need not import the model again."""
    assert shell("opt", classifier_folder, "-O0", "-o", "imported.txt").returncode == 0
    return tmp_path / "imported.txt"


def test_the_pass_runs_and_fuse_follows(my_pass, shell, classifier_folder, tmp_path):
    pipeline = f"{PASS}{{min_width=64}},fuse"
    result = shell("opt", classifier_folder, "--passes", pipeline, "--time-passes", "-o", "after.txt")
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[0].startswith(f"{PASS}{{min_width=64}}")
    assert result.stderr.splitlines()[0].endswith("by_tanh 1")
    assert '"gelu_tanh"' in (tmp_path / "after.txt").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{width=1}", "did you mean min_width?"),
        ("{min_width=wide}", "takes int"),
        ("{min_width=-1}", "min_width must not be negative"),
    ],
)
def test_wrong_options(imported, shell, classifier_folder, options, message):
    result = shell("opt", imported, "--weights", classifier_folder, "--passes", PASS + options)
    assert result.returncode == 1
    assert message in result.stderr


def test_the_promise_holds_and_a_false_one_is_caught(my_pass, imported, shell, classifier_folder):
    command = (
        "opt",
        imported,
        "--weights",
        classifier_folder,
        "--passes",
        PASS,
        "--verify-each",
        "-o",
        "after.txt",
    )
    result = shell(*command)
    assert result.returncode == 0, result.stderr
    assert "promised close(0.01)" in result.stderr
    my_pass.write_text(my_pass.read_text().replace("close(1e-2)", "close(1e-7)"))
    result = shell(*command)
    assert result.returncode == 1
    assert "promises close(1e-07) and breaks it" in result.stderr


def test_what_the_tables_say_of_printing(imported, shell, classifier_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("LLMC_DEBUG", "3")
    monkeypatch.setenv("LLMC_DUMP", str(tmp_path / "dump"))
    options = ("--weights", classifier_folder, "--print-after", PASS, "-o", "after.txt")
    result = shell("opt", imported, "--passes", PASS + "{min_width=4096}", *options)
    assert result.returncode == 0, result.stderr
    assert "declined: only 64 columns" in result.stderr
    assert f"# after {PASS}" in result.stderr
    assert sorted(p.name for p in (tmp_path / "dump").iterdir()) == ["00_input.txt", "01_TanhGelu.txt"]


def test_the_pass_that_asks_for_samples(imported, shell, block, classifier_folder, tmp_path):
    (tmp_path / "largest.py").write_text(block("passes", "largest.py"))
    (tmp_path / "data.jsonl").write_text('{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1]}\n')
    command = ("opt", imported, "--weights", classifier_folder, "--add-pass", "./largest.py:Largest@final")
    result = shell(*command, "--calib", "data.jsonl", "-o", "after.txt")
    assert result.returncode == 0, result.stderr
    found = [line.split() for line in result.stdout.splitlines()]
    assert (
        len(found) == 6
    )  # queries, keys and values are one product; output, two of the block, pooler, classifier
    assert all(0 < float(value) < 99 for value, _ in (words[:2] for words in found))
    result = shell(*command)
    assert result.returncode == 1
    assert "a pass of the pipeline needs calibration data" in result.stderr


def test_text_of_a_model_needs_its_weights(imported, shell):
    assert shell("opt", imported, "--passes", "cse").returncode == 0
    imported.with_suffix(".npz").unlink()
    result = shell("opt", imported, "--passes", "cse")
    assert result.returncode == 1
    assert "--weights FOLDER" in result.stderr


def test_use_from_python(my_pass, block, tmp_path):
    code = block("passes", "use_it.py")
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == block("passes", "use_it.out")


def test_the_pass_of_the_folders_readme(root, shell, tmp_path):
    found = re.search(r"```python\n(.*?)```", (root / "passes" / "README.md").read_text(), re.DOTALL)
    assert found is not None
    (tmp_path / "my_pass.py").write_text(found[1])
    graph = """dims
%0 = input() {name="x", dtype="f32", shape=(2,)} : f32[2]  # x
%1 = abs(%0) : f32[2]  # x
%2 = abs(%1) : f32[2]  # x
return {"y": %2}
"""
    (tmp_path / "graph.txt").write_text(graph)
    result = shell("opt", "graph.txt", "--passes", "./my_pass.py:DropAbs")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("abs(") == 1
