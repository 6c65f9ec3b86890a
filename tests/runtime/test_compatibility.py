"""docs/compatibility.md: what old artifacts and old programs get."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from llmc import LlmcError
from llmc.runtime import load, read_manifest, verify
from llmc.runtime.manifest import seal
from llmc.runtime.sources import FOLDER, HEADER

ROOT = Path(__file__).parents[2]
OLD_MODULE = """
static const struct { int version; } api = {8};
const void *llmc_get_api(void) { return &api; }
"""


def run(*command, code=0):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stderr if code else result.stdout


@pytest.fixture
def old_format(copy_of_tiny):
    """What llmc wrote before there were functions."""
    fields = json.loads((copy_of_tiny / "manifest.json").read_text())
    (function,), _ = fields.pop("functions"), fields.pop("states")
    fields |= {"format": 1, "inputs": function["inputs"], "outputs": function["outputs"]}
    (copy_of_tiny / "manifest.json").write_text(json.dumps(seal(fields)))
    return copy_of_tiny


@pytest.fixture
def old_module(copy_of_tiny, build):
    """A module.so of version 8 behind a manifest of this format."""
    source = copy_of_tiny / "old.c"
    source.write_text(OLD_MODULE)
    (copy_of_tiny / "module.so").unlink()
    build.compile_c(copy_of_tiny / "module.so", "-shared", str(source))
    source.unlink()
    build.write_manifest(copy_of_tiny)
    return copy_of_tiny


@pytest.mark.parametrize("use", [load, verify, read_manifest])
def test_format_1_is_refused(old_format, use):
    with pytest.raises(LlmcError) as caught:
        use(old_format)
    assert "artifact format 1 is not supported, only 2" in str(caught.value)
    assert "an older llmc wrote it: compile the model again" in str(caught.value)


def test_a_later_format_is_refused(copy_of_tiny):
    fields = json.loads((copy_of_tiny / "manifest.json").read_text())
    (copy_of_tiny / "manifest.json").write_text(json.dumps(seal({**fields, "format": 3})))
    with pytest.raises(LlmcError, match="format 3 is not supported, only 2") as caught:
        load(copy_of_tiny)
    assert "update llmc" in str(caught.value)


def test_an_artifact_runs_with_its_own_bench(old_format):
    """`bench` reads of the manifest nothing but hashes."""
    assert "latency" in run(old_format / "bench", "--duration", "0.05")


def test_python_refuses_an_old_module(old_module):
    with pytest.raises(LlmcError, match=r"the module speaks version 8 of llmc\.h, this runtime version 9"):
        load(old_module)


def test_bench_refuses_an_old_module(tiny, old_module):
    text = run(tiny / "bench", "--vs", old_module, "--duration", "0.05", code=1)
    assert "module.so speaks version 8 of llmc.h, this program version 9" in text
    assert "compile the model again" in text


@pytest.mark.parametrize("side", ["old module", "old program"])
def test_a_program_that_loads_modules(tiny, old_module, build, tmp_path, side):
    """examples/c/describe.c, built with the header of this version and of the last."""
    header = HEADER.read_text()
    assert "#define LLMC_VERSION 9" in header
    old = header.replace("#define LLMC_VERSION 9", "#define LLMC_VERSION 8")
    (tmp_path / "llmc.h").write_text(header if side == "old module" else old)
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed")
    source = ROOT / "examples" / "c" / "describe.c"
    run("cc", "-std=c99", f"-I{tmp_path}", source, "-ldl", "-o", tmp_path / "describe")
    text = run(tmp_path / "describe", old_module if side == "old module" else tiny, code=1)
    assert "has another interface than this program" in text


def test_the_document_has_the_numbers():
    text = (ROOT / "docs" / "compatibility.md").read_text()
    module = (FOLDER / "module.h").read_text()
    for number, name in (
        (re.search(r"LLMC_VERSION (\d+)", HEADER.read_text()), "`LLMC_VERSION`"),
        (re.search(r"LLMC_MODULE_ABI (\d+)u", module), "`LLMC_MODULE_ABI`"),
    ):
        assert number is not None
        line = next(row for row in text.splitlines() if row.startswith(f"| {name}"))
        assert line.endswith(f"| {number[1]} |")
