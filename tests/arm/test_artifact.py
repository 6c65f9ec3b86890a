"""An ARM artifact: opened on x86, and started under qemu on CPUs that lack what it needs."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest

import llmc
from llmc.cli import main
from llmc.errors import LlmcError
from llmc.runtime.manifest import read_manifest

SYSROOT = Path("/usr/aarch64-linux-gnu")


def start(*command):
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600)


def test_the_manifest_names_the_machine(float_pair):
    assert [read_manifest(path).machine for path in float_pair] == ["x86_64", "aarch64"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="this machine runs it")
@pytest.mark.parametrize("command", [["run", "--selftest"], ["bench"], ["inspect"]])
def test_opened_on_x86(float_pair, capsys, command):
    artifact = str(float_pair[1])
    code = main([command[0], artifact, *command[1:]])
    out, err = capsys.readouterr()
    if command == ["inspect"]:  # needs no code to run
        assert (code, err) == (0, "")
        return
    assert (code, out) == (1, "")
    assert err.startswith("error: the artifact is for aarch64 and this machine is x86_64\n")
    assert "Traceback" not in err


@pytest.mark.skipif(platform.machine() != "x86_64", reason="this machine runs it")
def test_loaded_on_x86(float_pair):
    with pytest.raises(LlmcError, match="for aarch64 and this machine is x86_64"):
        llmc.load(float_pair[1])


def test_a_float_artifact_carries_no_dot_product_code(float_pair, int8_pair):
    names = [[v.name for v in read_manifest(pair[1]).variants] for pair in (float_pair, int8_pair)]
    assert names == [["neon"], ["dotprod", "neon"]]


@pytest.mark.qemu
def test_the_runtime_picks_the_code_for_the_cpu(int8_pair):
    program = int8_pair[1] / "run"
    for cpu, variant in (("cortex-a72", "neon"), ("max", "dotprod")):
        result = start("qemu-aarch64", "-cpu", cpu, program)
        assert result.stdout.splitlines()[0].endswith(f"code for {variant}")


@pytest.mark.qemu
def test_a_cpu_without_dot_products_is_told(int8_pair, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 70), np.float32))
    arguments = ["--variant", "dotprod", f"x={tmp_path}/x.npy", "-o", tmp_path]
    result = start("qemu-aarch64", "-cpu", "cortex-a72", int8_pair[1] / "run", *arguments)
    assert result.returncode == 1
    assert "lacks dot product, which variant dotprod of the artifact needs" in result.stderr


@pytest.mark.qemu
@pytest.mark.skipif(not SYSROOT.is_dir(), reason="libc6-arm64-cross is not installed")
def test_bench_loads_the_module(int8_pair):
    options = ["--json", "--duration", "0.1", "--warmup", "1", "--batch", "1", "--threads", "2"]
    result = start("qemu-aarch64", "-L", SYSROOT, int8_pair[1] / "bench", *options)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["variant"] in ("dotprod", "neon")
