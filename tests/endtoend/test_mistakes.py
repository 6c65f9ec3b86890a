"""Bad input through the command line: one sentence, exit code 1 (2 for wrong usage), and nothing left behind."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import llmc
from llmc import LlmcError
from llmc.compiler.frontends.huggingface import load
from llmc.driver import compile_graph

pytestmark = pytest.mark.xdist_group("small")


def refused(result: Any, *words: str) -> None:
    """A failed command that said why in one sentence, the place, and advice."""
    assert result.code == 1, (result.code, result.out, result.err)
    message = result.err[result.err.index("error: ") :]
    assert message.startswith("error: ")
    assert "Traceback" not in result.err
    assert "internal error" not in result.err
    assert len(message.splitlines()) <= 8, message
    for word in words:
        assert word in message, message


def content(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture
def broken(small_model: Path, tmp_path: Path) -> Path:
    """A copy of the small model, to be damaged."""
    return Path(shutil.copytree(small_model, tmp_path / "model"))


@pytest.fixture
def place(small: Path, tmp_path: Path) -> Path:
    """A folder with an artifact in it."""
    (tmp_path / "place").mkdir()
    shutil.copytree(small, tmp_path / "place" / "m.llmc")
    return tmp_path / "place"


# --- models


def remove(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def cut(name: str, size: int) -> Any:
    return lambda folder: os.truncate(folder / name, size)


def write(name: str, data: bytes) -> Any:
    return lambda folder: (folder / name).write_bytes(data)


def edit_config(**fields: Any) -> Any:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))

    return edit


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove("config.json"), ["config.json"]),
        (remove("model.safetensors"), ["weights"]),
        (cut("model.safetensors", 1000), ["safetensors"]),
        (cut("model.safetensors", 5), ["safetensors"]),
        (write("model.safetensors", b"\xff" * 100), ["safetensors"]),
        (write("config.json", b"{"), ["config.json"]),
        (write("config.json", b"[]"), ["config.json"]),
        (edit_config(model_type="blooom"), ["'blooom' is not supported", "did you mean bloom"]),
        (edit_config(architectures=["BertForNothing"]), ["'BertForNothing' is not supported"]),
        (edit_config(hidden_size=48), ["hint"]),
        (edit_config(num_attention_heads=5), []),
        (edit_config(hidden_size="x"), []),
        (write("tokenizer.json", b"{}"), ["tokenizer.json"]),
    ],
    ids=[
        "no config", "no weights", "truncated", "header cut", "garbage", "config cut", "config a list", "family",
        "head", "shapes", "heads", "text for a number", "tokenizer",
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_used(
    damage: Any, words: list[str], broken: Path, place: Path, cli: Any
) -> None:
    damage(broken)
    before = content(place)
    refused(cli("compile", broken, "-o", place / "m.llmc"), *words)
    refused(cli("compile", broken, "-o", place / "new.llmc"), *words)
    assert content(place) == before
    assert os.listdir(place) == ["m.llmc"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--target", "vax"], 1, "unknown target 'vax'"),
        (["--task", "poetry"], 1, "no task 'poetry'"),
        (["--passes", "fold,nothing"], 1, "nothing"),
        (["--max-seq", "65"], 1, "max_seq 65 is more than the model's 64 positions"),
        (["--max-batch", "0"], 2, "--max-batch"),
        (["-O", "4"], 2, "-O"),
        (["--keep"], 2, "--keep"),
    ],
)
def test_options(options: list[str], code: int, words: str, small_model: Path, place: Path, cli: Any) -> None:
    result = cli("compile", small_model, "-o", place / "new.llmc", *options)
    assert result.code == code, result.err
    assert words in result.err
    assert "Traceback" not in result.err
    assert os.listdir(place) == ["m.llmc"]


def test_level_and_compiler_of_the_python_interface(small_model: Path, tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match="there is no optimisation level 7"):
        llmc.compile(small_model, tmp_path / "m.llmc", level=7)
    graph = load(small_model, max_batch=2).graph
    with pytest.raises(LlmcError, match="there is no C compiler '/nowhere/cc'"):
        compile_graph(graph, tmp_path / "m.llmc", level=0, cc="/nowhere/cc")
    with pytest.raises(LlmcError, match=r"the C compiler failed on module\.so"):
        compile_graph(graph, tmp_path / "m.llmc", level=0, cc="false")
    assert os.listdir(tmp_path) == []


# --- the place of the output


def test_output_that_is_no_artifact(small_model: Path, tmp_path: Path, cli: Any) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    before = content(tmp_path)
    for name in ("file", "folder"):
        refused(cli("compile", small_model, "-o", tmp_path / name), "exists and is not an artifact")
    refused(cli("compile", small_model, "-o", tmp_path / "no" / "m.llmc"), "folder does not exist")
    refused(cli("compile", small_model, "-o", tmp_path / "file" / "m.llmc"), "folder does not exist")
    refused(cli("compile", small_model, "-o", tmp_path / ("x" * 300)), "File name too long")
    assert content(tmp_path) == before


def test_unwritable_place(small_model: Path, cli: Any, tmp_path: Path) -> None:
    locked = Path("/proc/self")  # nobody, root included, makes files there
    refused(
        cli("compile", small_model, "-o", locked / "m.llmc"), "cannot write the artifact", "/proc/self/m.llmc"
    )


def test_output_of_a_run_that_cannot_be_written(small: Path, cli: Any) -> None:
    refused(cli("run", small, "--text", "a", "--output", "/proc/self/out.npz"), "/proc/self")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_full_disk(full_disk: Path, small_model: Path, cli: Any) -> None:
    refused(cli("compile", small_model, "-o", full_disk / "m.llmc"), "o space left", str(full_disk))
    assert os.listdir(full_disk) == []


def test_full_disk_of_temporary_files(
    full_disk: Path, small_model: Path, place: Path, start_cli: Any
) -> None:
    before = content(place)
    (full_disk / "filler").write_bytes(bytes(180_000))
    process = start_cli("compile", small_model, "-o", place / "m.llmc", TMPDIR=full_disk)
    with process:
        out, err = process.communicate()
    refused(SimpleNamespace(code=process.returncode, out=out, err=err), "o space left", str(full_disk))
    assert content(place) == before
    assert os.listdir(place) == ["m.llmc"]


# --- interrupts


def test_an_interrupt_at_any_stage_leaves_the_old_artifact(small_model: Path, place: Path) -> None:
    graph = load(small_model, max_batch=2).graph
    before, stages = content(place), []

    def interrupt(after: int) -> Any:
        seen: list[str] = []

        def progress(stage: str, _: float) -> None:
            seen.append(stage)
            if len(seen) > after:
                stages.append(stage)
                raise KeyboardInterrupt

        return progress

    for number in (0, 2, 4):
        with pytest.raises(KeyboardInterrupt):
            compile_graph(graph, place / "m.llmc", level=0, progress=interrupt(number))
        assert content(place) == before
        assert os.listdir(place) == ["m.llmc"]
    assert stages == ["import the model", "make kernels", "self-test"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["import the model", "write weights"])
def test_control_c(stage: str, small_model: Path, place: Path, start_cli: Any) -> None:
    before = content(place)
    with start_cli("compile", small_model, "-o", place / "m.llmc") as process:
        for line in process.stderr:
            if stage in line:
                break
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(300) == 130, rest
    assert rest.splitlines()[-1] == "interrupted"
    assert "Traceback" not in rest
    assert content(place) == before
    assert os.listdir(place) == ["m.llmc"]


# --- artifacts


def test_weights_of_another_build(
    small: Path, small_model: Path, copy_of_small: Path, tmp_path: Path, cli: Any
) -> None:
    compile_graph(load(small_model, max_batch=2).graph, tmp_path / "other.llmc", level=0)
    (copy_of_small / "weights.bin").unlink()
    shutil.copy(tmp_path / "other.llmc" / "weights.bin", copy_of_small)
    refused(cli("run", copy_of_small, "--text", "a"), "weights.bin", "another build")


@pytest.mark.parametrize("name", ["module.so", "weights.bin", "manifest.json", "tokenizer.json"])
@pytest.mark.parametrize("change", ["truncated", "edited", "absent"])
def test_damaged(name: str, change: str, copy_of_small: Path, cli: Any) -> None:
    file = copy_of_small / name
    data = file.read_bytes()
    file.unlink()
    if change == "edited":
        file.write_bytes(data[:40] + b"?" + data[41:])
    elif change == "truncated":
        file.write_bytes(data[: len(data) // 2])
    refused(
        cli("run", copy_of_small, "--text", "a"),
        name if (name, change) != ("manifest.json", "absent") else "",
    )


def test_wrong_inputs(small: Path, tmp_path: Path, cli: Any) -> None:
    arrays = {
        "good": np.array([[2, 3, 4]]),
        "long": np.full((1, 65), 2),
        "many": np.full((9, 3), 2),
        "empty": np.zeros((1, 0), np.int64),
        "flat": np.array([2, 3]),
        "float": np.array([[2.0, 3.0]], np.float32),
        "beyond": np.array([[2, 100]]),
        "negative": np.array([[2, -1]]),
        "short": np.array([[1, 1]]),
        "mask": np.array([[1, 7]]),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)

    def run(**inputs: str) -> Any:
        given = [a for k, v in inputs.items() for a in ("--input", f"{k}={tmp_path / v}.npy")]
        return cli("run", small, *given)

    assert run(input_ids="good").code == 0
    refused(run(input_ids="long"), "seq is 65", "within 1..64")
    refused(run(input_ids="many"), "batch is 9", "within 1..8")
    refused(run(input_ids="empty"), "seq is 0", "within 1..64")
    refused(run(input_ids="flat"), "input_ids", "axes")
    refused(run(input_ids="float"), "input_ids is float32, must be int64")
    refused(run(input_ids="beyond"), "input_ids[0,1] is 100, must be within 0..99")
    refused(run(input_ids="negative"), "input_ids[0,1] is -1, must be within 0..99")
    refused(
        run(input_ids="good", attention_mask="short"), "seq is 2 in axis 1 of input attention_mask, but 3"
    )
    refused(run(input_ids="short", attention_mask="mask"), "attention_mask[0,1] is 7, must be within 0..1")
    refused(run(attention_mask="short"), "input_ids is missing")
    refused(run(input_ids="good", ids="good"), "ids")
    refused(run(input_ids="nowhere"), "was not found")


def test_a_text_too_long(small: Path, cli: Any) -> None:
    assert cli("run", small, "--text", "a " * 100).code == 0  # cut, as tokenizers do
    with llmc.load(small) as model, pytest.raises(LlmcError, match="64"):
        model.run_text("a " * 100, truncate=False)


# --- processors


@pytest.mark.parametrize("target", ["x86-avx2", "rpi5", "cuda"])
def test_products_in_parts_on_a_target_without_amx(small_model: Path, target: str, cli: Any) -> None:
    result = cli("compile", small_model, "--matmul", "int8x3", "--target", target, "-o", "m.llmc")
    refused(result, "is for processors with AMX", f"--target {target}", "--target x86-avx512")


@pytest.mark.parametrize(
    ("other", "words"),
    [(["--tune"], "searches for kernels of fma"), (["--quant", "int8"], "is for float32")],
)
def test_products_in_parts_with_what_excludes_them(
    small_model: Path, other: list[str], words: str, cli: Any
) -> None:
    result = cli("compile", small_model, "--matmul", "int8x3", "--target", "x86", *other, "-o", "m.llmc")
    refused(result, words, "use one of the two")
    assert not Path("m.llmc").exists()


def test_variant_that_is_not_there(small: Path, cli: Any) -> None:
    refused(cli("run", small, "--text", "a", "--variant", "sse9"), "has no variant 'sse9'", "avx512, avx2")


def test_a_processor_without_the_feature(
    small_model: Path, tmp_path: Path, cli: Any, monkeypatch: Any
) -> None:
    """An artifact whose only variant asks for a bit that no processor has."""
    from llmc import driver
    from llmc.compiler.program import Variant
    from llmc.targets.cpu import backend

    monkeypatch.setattr(backend, "_variant", lambda cpu: Variant(cpu.name, 1 << 30 | 1, 1))
    monkeypatch.setattr(driver, "check", lambda folder, target, optimised: None)
    compile_graph(load(small_model, max_batch=2).graph, tmp_path / "m.llmc", level=0)
    refused(cli("run", tmp_path / "m.llmc", "--selftest"), "this processor, or its operating system, lacks")
    done = subprocess.run([tmp_path / "m.llmc" / "bench"], env={}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "lacks" in done.stderr
