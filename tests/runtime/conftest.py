"""The artifacts of small_artifacts.py as fixtures, for the tests of the runtime."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_artifacts import (
    ADAPTED,
    BUILD_ID,
    FOLDED,
    HERE,
    TABLE,
    TALLY,
    WORDS,
    TallyModel,
    checksums,
    compile_bench,
    compile_c,
    compile_module,
    compute,
    manifest_fields,
    sha256,
    weights_payload,
    write_long,
    write_manifest,
    write_tokenizer,
    write_weights,
    write_windowed,
    write_words,
)

from llmc.runtime.selftest import Call, write_selftest
from llmc.runtime.sources import (
    HEADER,
)


@pytest.fixture(scope="session")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`words` of up to 400 tokens, whose state has a window of 32."""
    return write_windowed(tmp_path_factory.mktemp("artifact") / "windowed.llmc", 32)


@pytest.fixture(scope="session")
def shell() -> Callable[..., Any]:
    """`shell(program, arguments...)`: what `subprocess.run` gives, with text."""

    def run(*command: object, **options: Any) -> Any:
        return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, **options)

    return run


@pytest.fixture(scope="session")
def build() -> SimpleNamespace:
    """What small_artifacts.py has, under one name."""
    return SimpleNamespace(
        compile_c=compile_c,
        compile_module=compile_module,
        write_weights=write_weights,
        weights_payload=weights_payload,
        write_manifest=write_manifest,
        manifest_fields=manifest_fields,
        sha256=sha256,
        checksums=checksums,
        tiny_c=HERE / "tiny.c",
        tally=TALLY,
        tally_model=TallyModel,
        words=WORDS,
        write_windowed=write_windowed,
        write_long=write_long,
        table=TABLE,
        build_id=BUILD_ID,
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole artifact; do not change it (see `copy_of_tiny`)."""
    folder = tmp_path_factory.mktemp("artifact") / "tiny.llmc"
    folder.mkdir()
    module = compile_module(folder / "module.so")
    compile_bench(module)
    shutil.copy(HEADER, folder)
    write_weights(folder / "weights.bin", weights_payload())
    write_tokenizer(folder / "tokenizer.json")
    ids, mask = np.array([[1, 2, 3]]), np.array([[1, 0, 1]])
    cases = [
        [Call("forward", {"input_ids": ids}, compute(ids))],
        [Call("forward", {"input_ids": ids, "attention_mask": mask}, compute(ids, mask))],
    ]
    write_selftest(folder / "selftest.bin", BUILD_ID, cases)
    write_manifest(folder)
    return folder


@pytest.fixture(scope="session")
def tally(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of tally.c: states and three functions; do not change it."""
    folder = tmp_path_factory.mktemp("artifact") / "tally.llmc"
    folder.mkdir()
    module = compile_module(folder / "module.so", program="tally.c")
    compile_bench(module)
    shutil.copy(HEADER, folder)
    write_weights(folder / "weights.bin", bytes(64), TALLY["build_id"])
    ids, more, model = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[7], [8]]), TallyModel(2)
    cases = [
        [
            Call("step", {"ids": ids}, model.step(ids)),
            Call("step", {"ids": more}, model.step(more)),
            Call("peek", {"scale": np.array(2, np.float32)}, model.peek(2)),
        ],
        [Call("square", {"ids": ids}, {"squares": ids * ids})],
    ]
    write_selftest(folder / "selftest.bin", TALLY["build_id"], cases)
    write_manifest(folder, **TALLY)
    return folder


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of words.c, which generates; do not change it."""
    return write_words(tmp_path_factory.mktemp("artifact") / "words.llmc")


@pytest.fixture(scope="session")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a state that keeps its shape."""
    return write_words(tmp_path_factory.mktemp("artifact") / "folded.llmc", "-DRECURRENT", **FOLDED)


@pytest.fixture(scope="session")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`words` that runs for one session at a time."""
    return write_words(tmp_path_factory.mktemp("artifact") / "lonely.llmc", "-DSINGLE")


@pytest.fixture(scope="session")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`words` with two adapters."""
    return write_words(tmp_path_factory.mktemp("artifact") / "adapted.llmc", "-DADAPTERS", **ADAPTED)


@pytest.fixture(scope="session")
def dull(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`words` that is wrong about a third of all tokens."""
    return write_words(tmp_path_factory.mktemp("artifact") / "dull.llmc", "-DDULL")


@pytest.fixture(scope="module")
def model(words: Path) -> Iterator[Any]:
    """`words`, opened."""
    from llmc.runtime import load

    with load(words, threads=2) as model:
        yield model


@pytest.fixture(scope="module")
def recurrent(folded: Path) -> Iterator[Any]:
    """`folded`, opened."""
    from llmc.runtime import load

    with load(folded, threads=1) as model:
        yield model


@pytest.fixture
def copy_of_tiny(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy.llmc"))


@pytest.fixture
def expected() -> Callable[..., dict[str, np.ndarray]]:
    """What tiny should give."""
    return compute
