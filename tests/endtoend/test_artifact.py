"""What an artifact needs from the machine it runs on: nothing but libc."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_families import random_model, reference

import llmc

pytestmark = pytest.mark.xdist_group("small")
SYSTEM = {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2", "libdl.so.2"}


def needed(path: Path) -> set[str]:
    listing = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"NEEDED.*\[(.*)\]", listing))


@pytest.mark.skipif(not shutil.which("readelf"), reason="readelf is not installed")
def test_libraries(small: Path) -> None:
    assert needed(small / "module.so") <= SYSTEM - {"libdl.so.2"}
    assert needed(small / "bench") <= SYSTEM  # it opens module.so, which is libdl's work before glibc 2.34


@pytest.mark.skipif(not shutil.which("readelf"), reason="readelf is not installed")
def test_module_exports_the_c_interface_only(small: Path) -> None:
    listing = subprocess.run(
        ["readelf", "--dyn-syms", "-W", small / "module.so"], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split() for line in listing.splitlines()]
    exported = {r[7] for r in rows if len(r) > 7 and r[4] == "GLOBAL" and r[6] != "UND"}
    assert exported
    assert all(name.startswith("llmc_") for name in exported), exported


def test_files(small: Path, small_model: Path) -> None:
    assert {p.name for p in small.iterdir()} == {
        "bench", "llmc.h", "manifest.json", "module.so", "selftest.bin", "tokenizer.json", "weights.bin",
    }  # fmt: skip
    assert sum((small / name).stat().st_size for name in ("module.so", "bench")) <= 800_000
    assert (small / "tokenizer.json").read_bytes() == (small_model / "tokenizer.json").read_bytes()
    assert llmc.runtime.read_manifest(small).labels == ("bad", "so-so", "good")


def test_bench_runs_with_nothing_in_the_environment(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "moved.llmc")
    done = subprocess.run(
        [tmp_path / "moved.llmc" / "bench", "--json", "--duration", "0.05"],
        env={}, cwd="/", capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "small"


def test_runtime_imports_nothing_heavy(small: Path, python: Any) -> None:
    done = python(
        "import sys, llmc.runtime\n"
        "with llmc.runtime.load(sys.argv[1]) as model: model(input_ids=[[2, 3]])\n"
        "print(*{name.split('.')[0] for name in sys.modules})",
        small,
    )
    heavy = {
        "torch",
        "transformers",
        "tvm",
        "tvm_ffi",
        "sympy",
        "networkx",
        "onnx",
        "click",
        "rich",
        "jinja2",
    }
    assert not heavy & set(done.stdout.split())
    assert "numpy" in done.stdout.split()


def test_a_driver_compile_is_right(small: Path) -> None:
    labels = {0: "bad", 1: "so-so", 2: "good"}
    source = random_model("bert", "ForSequenceClassification", id2label=labels)
    ids = np.array([[5, 9, 3, 7], [4, 2, 1, 1]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 1).astype(np.int64)}
    with llmc.load(small) as model:
        np.testing.assert_allclose(model(**inputs)["logits"], reference(source, inputs)["logits"], atol=1e-4)
        assert model.selftest().passed
        assert model.task == "text-classification"
        assert dict(model.dims) == {"batch": (1, 8), "seq": (1, 64)}


def test_the_same_model_gives_the_same_files(small: Path, small_model: Path, tmp_path: Path) -> None:
    llmc.compile(small_model, tmp_path / "small.llmc", target="x86", max_batch=8)
    for path in small.iterdir():
        assert path.read_bytes() == (tmp_path / "small.llmc" / path.name).read_bytes(), path.name
