"""An artifact with schedules that a search found: the same answers, and it says what it has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmc
from llmc import driver
from llmc.cli import main
from llmc.cli.compile import print_tuning
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import constant, input_, make
from llmc.errors import LlmcError
from llmc.targets import store, tuning
from llmc.targets.cpu.products.blocking import Schedule


def two_products() -> Graph:
    rng = np.random.default_rng(1)
    x = input_("x", "f32", (symbol("m"), 40))
    first, second = (constant(rng.normal(size=size).astype(np.float32)) for size in ((96, 40), (48, 96)))
    hidden = make("linear", (x, first), epilogue=("gelu",))
    return Graph((x,), {"y": make("linear", (hidden, second))}, {"m": (1, 99)})


class Fake:
    """A `Trial` by which panels of 32 columns are faster for the first product, and nothing for the second."""

    def __init__(self, shape: Any, rows: Sequence[int], target: Any, cpu: Any, kept: Any) -> None:
        self.shape, self.rows, self.cpu = shape, rows, cpu

    def __call__(self, schedules: Sequence[Schedule], rounds: int) -> np.ndarray[Any, Any]:
        ratios = [0.8 if s.width == 32 and self.shape.n == 96 else 1.1 for s in schedules]
        return np.ones((1, rounds, len(self.rows))) * np.array(ratios)[:, None, None]


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Path, Path, driver.CompileReport]]:
    """A plain artifact, a tuned one, and the report of the latter; the cache stays in use."""
    folder = tmp_path_factory.mktemp("tuned")
    plain, tuned = folder / "plain.llmc", folder / "tuned.llmc"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(store.VARIABLE, str(folder / "cache"))
        patch.setattr(tuning, "Trial", Fake)
        driver.compile_graph(two_products(), plain)
        yield plain, tuned, driver.compile_graph(two_products(), tuned, tune=True)


def test_the_answers_are_the_same_and_the_schedules_recorded(
    pair: tuple[Path, Path, driver.CompileReport], capsys: pytest.CaptureFixture[str]
) -> None:
    plain, tuned, report = pair
    x = np.random.default_rng(2).normal(size=(77, 40)).astype(np.float32)
    expected = np.array(llmc.load(plain, threads=1)(x=x)["y"])
    for threads in (1, 2, 3):
        assert np.array_equal(np.array(llmc.load(tuned, threads=threads)(x=x)["y"]), expected)

    of_plain, of_tuned = (json.loads((p / "manifest.json").read_text())["products"] for p in (plain, tuned))
    assert [p["name"] for p in of_plain] == ["96 x 40 f32 + gelu", "48 x 96 f32"]
    assert of_plain[0] == {
        "name": "96 x 40 f32 + gelu",
        "calls": 1,
        "schedule": {
            "width": 48,
            "rows": 48,
            "block_bytes": 24576,
            "group_bytes": 655360,
            "unroll": 4,
            "ahead": 64,
        },
    }
    assert of_tuned[0]["schedule"]["width"] == 32
    assert (of_tuned[0]["tuned"]["ratio"], of_tuned[1]["tuned"]["ratio"]) == (0.8, 1.0)
    assert of_tuned[1]["schedule"] == of_plain[1]["schedule"]
    assert report.to_dict()["products"] == of_tuned

    assert main(["inspect", str(tuned)]) == 0
    shown = capsys.readouterr().out
    assert "96 x 40 f32 + gelu" in shown
    assert "width: 32" in shown
    assert "ratio: 0.8" in shown


def test_only_a_compile_that_asks_takes_what_was_found(
    pair: tuple[Path, Path, driver.CompileReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, tuned, _ = pair
    monkeypatch.setattr(tuning, "Trial", None)  # nothing is measured any more
    for name, options, like in (("a", {}, plain), ("b", {"tune": True, "tune_time": 0.0}, tuned)):
        driver.compile_graph(two_products(), tmp_path / name, name="graph", **options)  # type: ignore[arg-type]
        for file in ("module.so", "weights.bin"):
            assert (tmp_path / name / file).read_bytes() == (like / file).read_bytes(), (name, file)


def test_tuning_for_another_machine_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match="the kernels of cuda have one schedule"):
        driver.compile(tmp_path / "missing", tmp_path / "out", target="cuda", tune=True)


def test_the_table_of_a_compile(capsys: pytest.CaptureFixture[str]) -> None:
    product: dict[str, Any] = {"name": "96 x 40 f32", "calls": 2, "schedule": {"width": 32, "cpu": "avx512"}}
    found = {"ratio": 0.8, "interval": [0.79, 0.81], "tried": 12, "complete": True, "cpu": "one"}
    tuned = [found, {**found, "ratio": 1.0}, {**found, "ratio": 1.0, "complete": False}]
    print_tuning([product, *({**product, "tuned": t} for t in tuned)], "x86")
    shown = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-1].strip() for line in shown if line.strip().startswith("96")] == [
        "default: there was no time to search",
        "width 32",
        "default: nothing was faster",
        "default: nothing was faster in the time given",
    ]
    assert any("0.800 (0.790-0.810)" in line for line in shown)
    print_tuning([], "x86")
    assert capsys.readouterr().out.startswith("nothing was tuned")
