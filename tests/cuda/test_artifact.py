"""CUDA artifacts from end to end without a GPU: nvcc assembles them, a stand-in driver runs them on the CPU."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmc
from llmc.compiler import interpret
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.module import Module
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.driver import compile_graph
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES
from llmc.passes.quantise import QUANTISATIONS
from llmc.passes.quantise.int16 import with_kernels
from llmc.runtime.selftest import read_selftest
from llmc.runtime.sources import FOLDER
from llmc.selfcheck import answers, record
from llmc.targets.cuda import build, nvcc
from llmc.targets.cuda.backend import BACKEND
from llmc.targets.cuda.variants import GPUS
from llmc.targets.store import Store, folder

pytestmark = pytest.mark.xdist_group("cuda")  # compiling for the stand-in driver takes long: once is enough
KERNEL = 'extern "C" __global__'


def reference(graph: Graph, quant: str) -> Graph:
    """The graph an artifact was compiled from, after its lossy passes."""
    passes = Pipeline.parse(",".join(p for p in (LEVELS[3], QUANTISATIONS[quant]) if p), PASSES)
    return with_kernels(passes, BACKEND.integer_rows).run(graph)[0]


@pytest.mark.parametrize(
    ("quant", "limit"),
    [
        ("none", 1e-4),
        ("fp16", 5e-3),
        ("int8", 1e-4),
        ("w8", 1e-4),
        ("w4", 1e-4),
        ("w4a8", 1e-4),
        ("bf16", 1e-4),
    ],
)
def test_answers(
    compiled: Callable[..., Any],
    imported: Callable[[Path], Graph],
    small_bert: Path,
    token_cases: list[dict[str, Any]],
    quant: str,
    limit: float,
) -> None:
    graph = reference(imported(small_bert), quant)
    for case, got in zip(token_cases, compiled(small_bert, quant).run(token_cases), strict=True):
        for name, expected in interpret.run(graph, case).items():
            assert np.abs(got[name] - expected).max() <= limit * np.abs(expected).max(), (
                name,
                expected.shape,
            )


def test_a_self_test_allows_for_activations_in_half(tmp_path: Path) -> None:
    """Of products on tensor cores: 5e-3 of the largest answer; elsewhere activations stay float."""
    x = input_("x", "f32", (symbol("batch"), 16))
    outputs = {"y": make("linear", (x, constant(np.full((8, 16), 3, np.float16))))}
    module = Module.of(Graph((x,), outputs, {"batch": (1, 4)}))
    cases = answers(module)
    on_gpu = record(tmp_path, module, cases, cases, "0" * 64, halves=True)
    assert len(read_selftest(tmp_path / "selftest.bin")[1]) == len(cases)
    largest = max(np.abs(call.outputs["y"]).max() for case in cases for call in case)
    assert largest > 1
    assert on_gpu == {"rtol": 1e-3, "atol": pytest.approx(5e-3 * largest)}
    elsewhere = record(tmp_path, module, cases, cases, "0" * 64)
    assert elsewhere == {"rtol": 1e-3, "atol": pytest.approx(max(5e-4, 1e-4 * largest))}


@pytest.mark.parametrize("option", [{"share": "256"}, {"prune": "0.3"}])
def test_compressed_weights_are_stored_whole(
    option: dict[str, str], small_distilbert: Path, tmp_path: Path, needs_nvcc: None
) -> None:
    report = llmc.compile(small_distilbert, tmp_path / "m.llmc", target="cuda-sm_80", max_seq=64, **option)
    assert report.pipeline.endswith(',unpack{keep=["bfloat16","blockwise"]}')


def test_stored_weights_stay_small(compiled: Callable[..., Any], small_bert: Path) -> None:
    """Levels of 4 and 8 bits, halves: of each one copy, nothing plain beside it. Rows of 48 are padded to 64."""
    whole, *sizes = (
        (compiled(small_bert, quant).artifact / "weights.bin").stat().st_size
        for quant in ("none", "bf16", "w8", "w4")
    )
    assert [round(size / whole, 1) for size in sizes] == [0.7, 0.4, 0.3]


def test_distilbert(
    compiled: Callable[..., Any],
    imported: Callable[[Path], Graph],
    small_distilbert: Path,
    token_cases: list[dict[str, Any]],
) -> None:
    graph = reference(imported(small_distilbert), "none")
    for case, got in zip(token_cases, compiled(small_distilbert).run(token_cases), strict=True):
        for name, expected in interpret.run(graph, case).items():
            assert np.abs(got[name] - expected).max() <= 1e-4 * np.abs(expected).max(), name


def failure(made: Any, **environment: str) -> str:
    """What loading and running an artifact prints when it fails."""
    code = (
        "import sys, llmc, numpy as np\n"
        "try:\n"
        "    model = llmc.load(sys.argv[1])\n"
        "    for n in (3, 40):\n"
        "        model(input_ids=np.ones((1, n), np.int64))\n"
        "except llmc.LlmcError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(made.artifact)],
        env={**os.environ, **made.environment, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"LD_LIBRARY_PATH": ""}, "no NVIDIA driver found: libcuda.so.1"),
        ({"LLMC_EMULATED_NONE": "1"}, "the driver sees no NVIDIA GPU"),
        ({"LLMC_EMULATED_FAIL": "cuInit:100"}, r"could not start: .*CUDA error 100"),
        ({"LLMC_EMULATED_FAIL": "cuModuleLoadData:209"}, "has code for sm_80, but Stand-in is sm_61"),
        ({"LLMC_EMULATED_FAIL": "cuMemAlloc_v2:2"}, "take the weights: out of memory"),
        ({"LLMC_EMULATED_FAIL": "cuLaunchKernel:700"}, "launch a kernel: an illegal memory access"),
        ({"LLMC_EMULATED_FAIL": "cuMemcpyDtoHAsync_v2:700"}, "give an output"),
        ({"LLMC_EMULATED_FAIL": "cuStreamSynchronize:700"}, "illegal memory access"),
        ({}, ""),
    ],
)
def test_failures_are_sentences(
    compiled: Callable[..., Any], small_bert: Path, environment: dict[str, str], sentence: str
) -> None:
    if shutil.which("nvidia-smi") and "LD_LIBRARY_PATH" in environment:
        pytest.skip("this machine has a driver")
    text = failure(compiled(small_bert), **environment)
    assert re.search(sentence, text), text
    assert bool(text) == bool(sentence)


def test_the_hosts_libc_is_not_looked_for(
    gpu_lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zig asks `cc` for it unless a target is named, and gives up if it cannot open a folder of the answer."""
    cc = tmp_path / "cc"
    cc.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\nexit 1\n")
    cc.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    gpu_lab.stand_in(tmp_path / "libraries")
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize("source", [FOLDER / "cuda.c", Path(__file__).parent / "libcuda.c"])
def test_strict_c(tmp_path: Path, source: Path) -> None:
    cc = shutil.which("cc")
    if cc is None:
        pytest.skip("cc is not installed")
    strict = ("-std=c99", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-pedantic", "-Werror", "-O2")
    subprocess.run([cc, *strict, "-c", str(source), "-o", str(tmp_path / "x.o")], check=True)


@pytest.mark.slow
def test_every_architecture_is_assembled(compiled: Callable[..., Any], small_bert: Path) -> None:
    """The kernels of all precisions in one source, each once."""
    kernels: dict[str, str] = {}
    for quant in ("none", "fp16", "int8", "w8", "w4", "w4a8", "bf16"):
        definitions = compiled(small_bert, quant).source.split(KERNEL)[1:]
        kernels |= {text[: text.index("{")]: text for text in definitions if "{" in text}  # others declare
    for family in (
        "linear_half_",
        "qlinear_",
        "attention_",
        "linear_stored_",
        "rows_stored_",
        "int8_blockwise_",
    ):
        assert any(f" {family}" in head for head in kernels)
    source = build.PREAMBLE + "".join(KERNEL + text for text in kernels.values())
    assert len(nvcc.fatbin(source, tuple(GPUS), Store(None))) > 10_000


def installed(name: str) -> Path:
    """The program of the package nvidia-cuda-NAME; skips where that is not installed."""
    try:
        files = importlib.metadata.files(f"nvidia-cuda-{name}") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"nvidia-cuda-{name} is not installed: it is made for x86-64 only")
    return next(Path(str(f.locate())) for f in files if f.name == name)


def test_zeros_with_a_sign_are_assembled(needs_nvcc: None, tmp_path: Path) -> None:
    """Remainders and quotients by floor, as quantised ONNX files have them: a literal has no address in CUDA."""
    a, b = (input_(name, "f32", (symbol("n"),)) for name in "ab")
    graph = Graph((a, b), {"rest": make("mod", (a, b)), "whole": make("floordiv", (a, b))}, {"n": (1, 8)})
    compile_graph(graph, tmp_path / "m.llmc", target="cuda-sm_80")
    assert (tmp_path / "m.llmc").is_dir()


@pytest.mark.parametrize(
    ("quant", "kernel", "instruction"),
    [
        ("fp16", "linear_half", "HMMA"),
        ("int8", "qlinear", "IDP.4A.S8.S8"),
        ("w4", "linear_stored", "LDG.E.128.CONSTANT"),
    ],
)
def test_products_use_the_right_instructions(
    compiled: Callable[..., Any], small_bert: Path, tmp_path: Path, quant: str, kernel: str, instruction: str
) -> None:
    """Tensor cores for halves, four products of bytes at once for int8, reads of 16 bytes of stored weights.

    In the machine code of every product.
    """
    dump, disassembler = installed("cuobjdump"), installed("nvdisasm")
    code = nvcc.fatbin(compiled(small_bert, quant).source, ("sm_80",), Store(folder()))  # the artifact's
    (tmp_path / "k.fatbin").write_bytes(code)
    path = f"{disassembler.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [dump, "-sass", "k.fatbin"],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    functions = {part.split(None, 1)[0]: part for part in done.stdout.split("Function : ")[1:]}
    products = {name: code for name, code in functions.items() if name.startswith(kernel)}
    assert products
    assert all(instruction in code for code in products.values())


def test_without_nvcc(monkeypatch: pytest.MonkeyPatch, small_bert: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(LlmcError, match="nvcc is not on the PATH"):
        llmc.compile(small_bert, tmp_path / "x.llmc", target="cuda")
    assert not list(tmp_path.iterdir())


def test_an_unknown_architecture(small_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match="unknown target 'cuda-sm_81'") as error:
        llmc.compile(small_bert, tmp_path / "x.llmc", target="cuda-sm_81")
    assert "did you mean cuda-sm_8" in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(("quant", "limit"), [("none", 1e-4), ("fp16", 5e-3), ("int8", 2e-2)])
def test_minilm(
    compiled: Callable[..., Any],
    imported: Callable[[Path], Graph],
    minilm: Path,
    quant: str,
    limit: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """int8: the products are exact, but a row sum's last bit may move an activation to the next level.

    So norms are those in float64 here: their own steps, to the last bit, are those of CPUs, and a GPU sums otherwise.
    """
    monkeypatch.setattr(interpret, "makes_levels", lambda graph: False)
    made, graph = compiled(minilm, quant), reference(imported(minilm), quant)
    rng = np.random.default_rng(2)
    case = {"input_ids": rng.integers(1000, 20000, (2, 12)), "attention_mask": np.ones((2, 12), np.int64)}
    (got,) = made.run([case])
    for name, expected in interpret.run(graph, case).items():
        assert np.abs(got[name] - expected).max() <= limit * np.abs(expected).max(), name
