"""`llmc verify`: every file, then the self-test."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from llmc import LlmcError
from llmc.cli import main
from llmc.runtime import verify
from llmc.runtime.manifest import seal
from llmc.runtime.selftest import Call, write_selftest


@pytest.fixture
def command(capsys):
    """`command(arguments...)`: exit code, stdout and stderr of `llmc verify`."""

    def call(*arguments):
        code = main(["verify", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def flip(path):
    data = path.read_bytes()
    path.unlink()  # a module may be mapped
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_nothing_differs(tiny, command):
    result = verify(tiny)
    assert result.passed
    assert result.ran
    assert set(result.files) == {p.name for p in tiny.iterdir()} - {"manifest.json"}
    assert (result.differing, result.extra) == ((), ())
    code, out, err = command(tiny)
    assert (code, err) == (0, "")
    assert out.count("as compiled") == len(result.files)
    assert "self-test passed: 2 cases" in out


@pytest.mark.parametrize(
    "name", ["bench", "llmc.h", "module.so", "selftest.bin", "tokenizer.json", "weights.bin"]
)
def test_each_damaged_file_is_named(copy_of_tiny, command, name):
    flip(copy_of_tiny / name)
    assert verify(copy_of_tiny).differing == (name,)
    code, out, err = command(copy_of_tiny)
    assert code == 1
    assert "self-test not run: a file differs" in out
    assert err.startswith("error: 1 of 6 files differs from what was compiled\n")
    assert f"found: {name}: sha256 " in err


def test_all_that_differ_are_named(copy_of_tiny, command):
    (copy_of_tiny / "bench").unlink()
    (copy_of_tiny / "llmc.h").unlink()
    (copy_of_tiny / "llmc.h").mkdir()
    with (copy_of_tiny / "weights.bin").open("ab") as file:
        file.write(b"x")
    (copy_of_tiny / "notes.txt").write_text("mine")
    size = (copy_of_tiny / "weights.bin").stat().st_size
    result = verify(copy_of_tiny)
    assert not result.passed
    assert {n: result.files[n] for n in result.differing} == {
        "bench": "missing",
        "llmc.h": "not a file",
        "weights.bin": f"{size} bytes, the manifest says {size - 1}",
    }
    assert result.extra == ("notes.txt",)
    code, out, err = command(copy_of_tiny)
    assert (code, "3 of 6 files differ" in err) == (1, True)
    assert "not in the manifest, unused" in out


def test_a_file_more_is_no_fault(copy_of_tiny, command):
    (copy_of_tiny / "notes.txt").write_text("mine")
    code, out, _ = command(copy_of_tiny)
    assert code == 0
    assert "notes.txt" in out


def test_json(copy_of_tiny, command):
    flip(copy_of_tiny / "weights.bin")
    code, out, _ = command(copy_of_tiny, "--json")
    facts = json.loads(out)
    assert (code, facts["passed"], facts["selftest"]["ran"]) == (1, False, False)
    assert [name for name, found in facts["files"].items() if found] == ["weights.bin"]


def test_only_files(copy_of_tiny, command, build):
    """Code is not loaded: here it is none."""
    (copy_of_tiny / "module.so").unlink()
    (copy_of_tiny / "module.so").write_bytes(b"nothing")
    build.write_manifest(copy_of_tiny)
    assert command(copy_of_tiny, "--files")[0] == 0
    code, out, err = command(copy_of_tiny)
    assert code == 1
    assert "self-test failed: cannot load the module" in out
    assert err.startswith("error: the self-test failed\n")


def test_a_failing_selftest(copy_of_tiny, build, command):
    """Files of one kind that do not belong together: all hashes are right."""
    ids = np.array([[1, 2, 3]])
    wrong = {name: np.zeros(shape, np.float32) for name, shape in
             (("hidden", (1, 3, 3)), ("sums", (1, 3)), ("ramp", (7,)))}  # fmt: skip
    write_selftest(
        copy_of_tiny / "selftest.bin", build.build_id, [[Call("forward", {"input_ids": ids}, wrong)]]
    )
    build.write_manifest(copy_of_tiny)
    result = verify(copy_of_tiny)
    assert (result.ran, result.passed, result.differing) == (True, False, ())
    assert command(copy_of_tiny)[0] == 1


def test_weights_of_other_values(copy_of_tiny, build):
    """The manifest was written anew for them; the module's own checksums were not."""
    build.write_weights(copy_of_tiny / "weights.bin", bytes(128))
    build.write_manifest(copy_of_tiny)
    result = verify(copy_of_tiny)
    assert result.differing == ()
    assert not result.passed
    assert "weights.bin is damaged" in result.selftest


def test_for_another_machine(copy_of_tiny, command):
    """What can be checked here is checked."""
    fields = json.loads((copy_of_tiny / "manifest.json").read_text())
    (copy_of_tiny / "manifest.json").write_text(json.dumps(seal({**fields, "machine": "riscv64"})))
    code, out, _ = command(copy_of_tiny)
    assert code == 0
    assert "self-test not run: the artifact is for riscv64" in out
    flip(copy_of_tiny / "weights.bin")
    assert command(copy_of_tiny)[0] == 1


def test_without_a_manifest(copy_of_tiny, command):
    shutil.copy(copy_of_tiny / "llmc.h", copy_of_tiny / "manifest.json")
    with pytest.raises(LlmcError, match=r"manifest\.json is not JSON"):
        verify(copy_of_tiny)
    assert command(copy_of_tiny)[0] == 1
