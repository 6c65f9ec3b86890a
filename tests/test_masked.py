"""`pytest --mask-features`: what tests and the processes they start are told about the processor."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import instruction_sets
import pytest
from masked import feature_mask

from llmc.runtime.sources import FOLDER, MODULE_SOURCES
from llmc.targets import TARGETS, host, toolchain
from llmc.targets.cpu.variants import AVX2, AVX512, AVX512AMX

TELL = """
import json, sys
from llmc.targets import TARGETS, host
from llmc.runtime import sources
names = [cpu.name for cpu in TARGETS["x86"].cpus if host.runs_here(cpu)]
files = [str(path) for path in (*sources.MODULE_SOURCES, *sources.RUN_SOURCES) if path.name == "cpu.c"]
print(json.dumps([names, sorted(host.host_flags()), files]))
"""
FEATURES = """
#include <stdio.h>
#include "module.h"
#include "model.h"
int main(void) { printf("%u", llmc_cpu_features()); return 0; }
"""


def told(mask: feature_mask.Mask, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a Python process says that a test starts under the mask."""
    monkeypatch.setenv(feature_mask.VARIABLE, json.dumps({"flags": mask.flags, "cpu": mask.cpu}))
    monkeypatch.setenv("PYTHONPATH", str(feature_mask.HERE))
    done = subprocess.run([sys.executable, "-c", TELL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_processes_that_tests_start_are_told_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, flags, files = told(feature_mask.mask(["avx512", "amx", "avx_vnni"], tmp_path), monkeypatch)
    assert names == [AVX2.name]
    assert not [flag for flag in flags if re.match("avx512[fbcdv]|avx512_vnni|avx_vnni$|amx", flag)]
    assert files == [str(tmp_path / "cpu.c")] * 2
    assert told(feature_mask.mask(["fma"], tmp_path), monkeypatch)[0] == []


@pytest.mark.parametrize(("names", "kept"), [(["avx512", "amx", "avx_vnni"], [AVX2]), (["fma"], [])])
def test_the_c_runtime_is_told_the_same(names: list[str], kept: list[Any], tmp_path: Path) -> None:
    mask = feature_mask.mask(names, tmp_path)
    (tmp_path / "main.c").write_text(FEATURES)
    program = tmp_path / "features"
    flags = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{FOLDER}")
    sources = [tmp_path / "main.c", Path(mask.cpu)]
    toolchain.build(program, sources, FOLDER, flags, ("-lm", "-lpthread"), TARGETS["x86"].zig)
    found = int(subprocess.run([program], capture_output=True, text=True, check=True).stdout)
    assert [cpu for cpu in TARGETS["x86"].cpus if found & cpu.features == cpu.features] == kept


@pytest.mark.parametrize("names", [["avx513"], ["avx512", ""], [""]])
def test_an_unknown_feature_is_refused(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such feature: .*known: .*amx_int8, .*avx2, .*avx512f"):
        feature_mask.mask(names, tmp_path)


def test_what_is_lacking_is_said_in_linuxs_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "host_flags", lambda: frozenset(host.FLAGS[0x001]))
    monkeypatch.setattr(instruction_sets, "note", lambda *_: None)
    assert instruction_sets.lacking(AVX2) == ""
    assert instruction_sets.lacking(AVX512) == "avx512bw, avx512cd, avx512dq, avx512f, avx512vl"
    assert "amx_int8" in instruction_sets.lacking(AVX512AMX)
    assert instruction_sets.choose(["avx512", "avx2vnni", "avx2"]) == ["avx2"]
    with pytest.raises(AssertionError, match="has none of avx512"):
        instruction_sets.choose(["avx512"])


def test_nothing_is_masked_unless_asked(pytestconfig: pytest.Config) -> None:
    (cpu,) = (path for path in MODULE_SOURCES if path.name == "cpu.c")
    asked = bool(pytestconfig.getoption("--mask-features"))
    assert (cpu.parent != FOLDER) == asked == (feature_mask.VARIABLE in os.environ)
