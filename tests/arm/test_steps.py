"""Texts under qemu: models that generate have the functions and states of x86 there, and make the same bits of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import instruction_sets
import pytest
import steps

import llmc
from llmc.runtime import sources as c
from llmc.targets import toolchain

pytestmark = pytest.mark.qemu
HERE = Path(__file__).parent


CPUS = {"none": ("max",), "int8": ("max", "cortex-a72")}  # with the dot product and without


@pytest.mark.slow
@pytest.mark.parametrize("quant", CPUS)
@pytest.mark.parametrize("name", steps.MODELS)
def test_the_bits_are_those_of_x86(name: str, quant: str, tmp_path: Path) -> None:
    with instruction_sets.code_of_this_processor():
        artifact = steps.compiled(name, tmp_path / "x86.llmc", target="x86-avx2", quant=quant)
    with llmc.load(artifact, threads=1) as model:
        here = steps.steps(model, name)
    assert len({token for token, _ in here}) == steps.TOKENS
    steps.compiled(name, tmp_path / "arm.llmc", target="arm", emit="static", quant=quant)
    steps.assert_alike(artifact, tmp_path / "arm.llmc")
    program = linked(tmp_path / "arm.llmc", tmp_path / "steps")
    for cpu in CPUS[quant]:
        assert said(program, tmp_path / "arm.llmc", name, cpu) == here


def linked(artifact: Path, program: Path) -> Path:
    """steps.c with the model, for ARM."""
    files, musl = [HERE / "steps.c", artifact / "libmodel.a"], "aarch64-linux-musl"
    toolchain.build(program, files, artifact, c.RUN_FLAGS, c.MODULE_LIBRARIES, musl)
    return program


def said(program: Path, artifact: Path, name: str, cpu: str) -> steps.Steps:
    """What the program prints."""
    command = ["qemu-aarch64", "-cpu", cpu, program, artifact, *steps.arguments(name)]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [_read(line.split()) for line in done.stdout.splitlines()]


def _read(words: list[str]) -> tuple[int, dict[int, float]]:
    pairs = zip(words[1::2], words[2::2], strict=True)
    return int(words[0]), {int(token): float.fromhex(value) for token, value in pairs}
