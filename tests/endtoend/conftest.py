"""Artifacts of real compiles, each made once, and the command line in this process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import instruction_sets
import numpy as np
import pytest
import torch
import transformers
from random_families import random_model
from tokenizers import Tokenizer, models, pre_tokenizers

import llmc
from llmc.cli import main

CLI = [sys.executable, "-c", "import sys; from llmc.cli import main; sys.exit(main())"]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT text classifier with a tokenizer whose words are the letters a to h."""
    folder = tmp_path_factory.mktemp("models") / "small"
    labels = {0: "bad", 1: "so-so", 2: "good"}
    random_model("bert", "ForSequenceClassification", id2label=labels).save_pretrained(folder)
    words = {"[UNK]": 0, "[PAD]": 1, **{word: 2 + i for i, word in enumerate("abcdefgh")}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def small(small_model: Path, shared: Callable[..., Path]) -> Path:
    """The artifact of `small_model` with every variant; do not change it (see `copy_of_small`)."""

    def make(path: Path) -> None:
        llmc.compile(small_model, path, target="x86", max_batch=8)
        assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing half written beside it"

    return shared("small.llmc", make)


@pytest.fixture
def copy_of_small(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "copy.llmc"))


@pytest.fixture(scope="session")
def minilm_artifact(minilm: Path, shared: Callable[..., Path]) -> Path:
    """all-MiniLM-L6-v2 with every variant."""
    return shared("minilm.llmc", partial(llmc.compile, minilm, target="x86"))


@pytest.fixture(scope="session")
def variants() -> Callable[[Path], list[str]]:
    """`variants(artifact)`: those that this processor runs, best first; the runtime takes the first."""

    def runnable(path: Path) -> list[str]:
        with llmc.load(path) as model:
            names = instruction_sets.choose(v.name for v in model.manifest.variants)
            assert model.variant == names[0]
            return names

    return runnable


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`cli(*arguments)` runs `llmc ARGUMENTS` in this process: code, out, err."""

    def run(*arguments: object) -> SimpleNamespace:
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture(scope="session")
def python() -> Callable[..., Any]:
    """`python(code, *arguments, check=True)`: the finished process of `python -c`."""

    def run(code: str, *arguments: object, check: bool = True, **options: Any) -> Any:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, **options)
        assert not check or done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def start_cli() -> Callable[..., Any]:
    """`start_cli(*arguments, **environment)`: `llmc ARGUMENTS` as a process group of its own."""

    def start(*arguments: object, **variables: object) -> Any:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", **{k: str(v) for k, v in variables.items()}}
        return subprocess.Popen(
            [*CLI, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    return start


def same_bits(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k].view(np.uint32), b[k].view(np.uint32)) for k in a)


@pytest.fixture(scope="session")
def bits_agree() -> Callable[[Sequence[dict[str, Any]]], bool]:
    """Whether all runs gave the same f32 outputs, bit for bit."""
    return lambda runs: all(same_bits(runs[0], other) for other in runs[1:])
