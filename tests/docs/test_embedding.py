"""docs/embedding.md: its programs are those of examples/c, and they compile strictly and run."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmc

STRICT = ["cc", "-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic"]
IDS = ["5", "6", "7", "42"]

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="cc is not installed")


def run(*command: object, **options: Any) -> Any:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, **options)


@pytest.fixture(scope="module")
def build(root: Path, classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Compile one of the examples as its first comment says."""

    def compile_example(name: str, flags: Sequence[str]) -> Path:
        output = tmp_path_factory.mktemp("example") / name
        source = root / "examples" / "c" / f"{name}.c"
        result = run(*STRICT, f"-I{classifier}", source, *flags, "-o", output)
        assert result.returncode == 0, result.stderr
        return output

    linked = [f"-L{classifier}", "-l:module.so", f"-Wl,-rpath,{classifier}", "-lm"]
    flags = {"classify": linked, "describe": ["-ldl"]}
    return lambda name: compile_example(name, flags[name])


@pytest.fixture(scope="module")
def classify(build: Callable[[str], Path]) -> Path:
    return build("classify")


def probabilities(text: str) -> list[float]:
    return [float(line.split()[1]) for line in text.splitlines()]


def test_classify_gives_what_python_gives(classify, classifier):
    result = run(classify, classifier, *IDS)
    assert result.returncode == 0, result.stderr
    logits = llmc.load(classifier)(input_ids=np.array([IDS], np.int64))["logits"][0].astype(np.float64)
    np.testing.assert_allclose(probabilities(result.stdout), np.exp(logits) / np.exp(logits).sum(), atol=1e-6)


def test_outputs_are_pasted_from_a_real_run(classify, build, classifier, block):
    assert run(classify, classifier, "5", "6", "7").stdout == block("embedding", "classify.out")
    assert run(build("describe"), classifier).stdout == block("embedding", "describe.out")


def test_classify_reads_standard_input(classify, classifier):
    assert (
        run(classify, classifier, "-", input="5 6\n7 42\n").stdout == run(classify, classifier, *IDS).stdout
    )


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["5", "100"], "input_ids[0,1] is 100, must be within 0..99"),
        (["5", "six"], "a token id is not a number"),
        (["1"] * 65, "64"),
    ],
)
def test_classify_refuses_with_a_sentence(classify, classifier, ids, message):
    result = run(classify, classifier, *ids)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_classify_without_an_artifact(classify, tmp_path):
    result = run(classify, tmp_path, "5")
    assert result.returncode == 1
    assert "weights.bin" in result.stderr


def test_classify_is_clean_under_valgrind(classify, classifier):
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    valgrind = ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=all"]
    result = run(*valgrind, classify, classifier, *IDS)
    assert result.returncode == 0, result.stderr
    assert len(probabilities(result.stdout)) == 2
    assert run(*valgrind, classify, classifier, "1000").returncode == 1


def test_describe_loads_an_artifact_by_name(build, classifier):
    result = run(build("describe"), classifier)
    assert result.returncode == 0, result.stderr
    assert "input input_ids [batch, seq]\ninput attention_mask [batch, seq] optional\n" in result.stdout
    assert "output logits [batch, 2]\n" in result.stdout


def test_module_exports_the_interface_only(classifier):
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    names = [
        line.split()[-1]
        for line in run("nm", "-D", "--defined-only", classifier / "module.so").stdout.splitlines()
    ]
    assert names
    assert [name for name in names if not name.startswith("llmc_")] == []


@pytest.mark.parametrize("name", ["classify.c", "describe.c"])
def test_the_document_names_the_examples(root, name):
    assert f"examples/c/{name}" in (root / "docs" / "embedding.md").read_text()
    assert (root / "examples" / "c" / name).is_file()
