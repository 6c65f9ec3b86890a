"""Fixtures of the command line's tests."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import llmc
from llmc.cli import main
from llmc.demo import model_folder


@pytest.fixture
def demo_folder():
    """The model that ships with llmc."""
    return model_folder()


class Result:
    """What one run printed and its exit code."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def cli(capsys):
    """Run `llmc ARGUMENTS` in this process."""

    def run(*arguments):
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return run


@pytest.fixture
def runner():
    """click's own runner, for standard input."""
    return CliRunner()


class FakeReport:
    """A benchmark report as the command line sees it."""

    def __init__(self, facts):
        self.facts = facts

    def to_dict(self):
        return self.facts

    def __str__(self):
        return "p50 1.00 ms"


class FakeModel:
    """A model with one output, `y = x + 1`, that records how it was asked."""

    task, labels, asked, generates = "text-classification", ("negative", "positive"), None, False
    dims = {"height": (1, 2048), "width": (1, 2048)}  # noqa: RUF012

    def __init__(self, path, threads, variant):
        self.path, self.threads, self.variant = Path(path), threads, variant

    def __call__(self, **arrays):
        return {"y": arrays["x"] + np.float32(1)}

    @contextmanager
    def session(self):
        yield self

    def run(self, arrays, function=None):
        assert function is None
        return self(**arrays)

    def benchmark(self, **options):
        FakeModel.asked = options
        return FakeReport({"threads": self.threads, **options})


@pytest.fixture
def fake_artifact(tmp_path, monkeypatch):
    """A folder that looks like an artifact, and `llmc.load` that gives a FakeModel for it."""
    folder = tmp_path / "fake.llmc"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    monkeypatch.setattr(
        llmc,
        "load",
        lambda path, threads=None, variant=None, check_weights=True: FakeModel(path, threads, variant),
        raising=False,
    )
    return folder
