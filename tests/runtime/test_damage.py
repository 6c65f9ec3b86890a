"""Damaged artifacts: always a clear error or a right run, never a signal."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from llmc import LlmcError
from llmc.runtime import load
from llmc.runtime.manifest import read_manifest, seal


@pytest.mark.parametrize("kind", ["files", "manifest"])
def test_mutations(copy_of_tiny, build, kind):
    result = subprocess.run(
        [sys.executable, build.tiny_c.with_name("mutate.py"), copy_of_tiny, kind, "1000"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, f"{result.returncode}\n{result.stderr}"
    outcomes = json.loads(result.stdout)
    assert sum(outcomes.values()) == 1000
    assert outcomes["refused"] > 700
    assert outcomes["ran"] > 10


def change(folder, *place, to):
    fields = json.loads((folder / "manifest.json").read_text())
    parent = fields
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = to
    (folder / "manifest.json").write_text(json.dumps(seal(fields)))


FORWARD = ("functions", 0)
STATE = {"name": "s", "dtype": "f32", "shape": ["seq"], "grows": 0}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("format",), 3, "artifact format 3 is not supported, only 2"),
        (("format",), 1, "artifact format 1 is not supported, only 2"),
        (("format",), "1", "field format must be an integer"),
        (("name",), None, "field name must be a text"),
        (("build_id",), "ABC", "field build_id must be 64 hexadecimal digits"),
        (("functions",), [], "field functions must be at least one function"),
        ((*FORWARD, "name"), "x", "field functions does not describe module.so"),
        ((*FORWARD, "inputs", 0, "dtype"), "f128", "field functions[0].inputs[0].dtype must be one of f32"),
        ((*FORWARD, "inputs", 0, "dtype"), "i32", "field functions does not describe module.so"),
        ((*FORWARD, "inputs", 0, "shape", 1), [], "field functions[0].inputs[0].shape[1] must be an integer"),
        ((*FORWARD, "outputs", 1, "name"), "hidden", "field functions[0].outputs must be different names"),
        (("states",), [STATE], "field states does not describe module.so"),
        (("states",), [STATE, STATE], "field states must be different names"),
        (("states",), [{**STATE, "grows": 1}], "field states[0].grows must be an integer within 0..0"),
        (("states",), [{**STATE, "shape": "seq"}], "field states[0].shape must be an array"),
        (("dims", "seq"), [5, 2], "field dims.seq[1] must be an integer within 5.."),
        (("dims", "seq"), [1, 600], "field dims does not describe module.so"),
        (
            ("files", "../x"),
            {"bytes": 0, "sha256": "0" * 64},
            "field files.../x must be a plain file name as key",
        ),
        (("files",), {}, "field files must be an entry for module.so"),
        (("files", "llmc.h", "bytes"), 3, "llmc.h is damaged or of another build"),
        (("files", "llmc.h", "sha256"), "0" * 64, "llmc.h is damaged or of another build"),
        (("files", "more"), {"bytes": 0, "sha256": "0" * 64}, "cannot read more: No such file"),
        (("tokenizer",), {"file": "x"}, "field tokenizer.file must be one of"),
        (("selftest", "rtol"), -1, "field selftest.rtol must be a number, at least 0"),
        (("labels", 1), "\ud800", "field labels[1] must be valid Unicode"),
        (("sizes", "parameters"), True, "field sizes.parameters must be an integer"),
    ],
)
def test_field(copy_of_tiny, place, value, message):
    change(copy_of_tiny, *place, to=value)
    with pytest.raises(LlmcError) as caught:
        load(copy_of_tiny)
    assert message in str(caught.value)
    assert str(copy_of_tiny) in caught.value.at


def test_unknown_fields_are_ignored(copy_of_tiny):
    change(copy_of_tiny, "later", to={"x": [1]})
    load(copy_of_tiny).close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "manifest.json is not JSON"),
        ("[" * 100_000, "manifest.json is not JSON"),
        ("[]", "field (all) must be an object"),
        ('{"format": NaN}', "NaN is not a JSON number"),
        ('{"format": 2, "sha256": "%s"}' % ("0" * 64), "manifest.json was edited or damaged"),
    ],
)
def test_text(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(LlmcError) as caught:
        read_manifest(tmp_path)
    assert message in str(caught.value)


def test_missing_folder(tmp_path):
    with pytest.raises(LlmcError, match=r"cannot read manifest\.json: No such file"):
        load(tmp_path / "nothing.llmc")


def test_wrong_library(copy_of_tiny, build):
    """A module of another kind, with the right hashes."""
    (copy_of_tiny / "module.so").unlink()
    (copy_of_tiny / "module.so").write_bytes(b"\x7fELF" + bytes(100))
    build.write_manifest(copy_of_tiny)
    with pytest.raises(LlmcError, match="cannot load the module"):
        load(copy_of_tiny)
    source = copy_of_tiny / "other.c"
    source.write_text("int other(void) { return 1; }\n")
    (copy_of_tiny / "module.so").unlink()
    build.compile_c(copy_of_tiny / "module.so", "-shared", str(source))
    build.write_manifest(copy_of_tiny)
    with pytest.raises(LlmcError, match="undefined symbol: llmc_get_api"):
        load(copy_of_tiny)
