"""An artifact within bounds: what is fragile stays, bounds that cannot be met are told, and nothing is written then."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmc
from llmc import costs
from llmc.bounds import Budget, BudgetReport
from llmc.budget import compile_within
from llmc.choosing import Limits, Point, Table
from llmc.cli.within import page
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.graph_file import write_graph
from llmc.compiler.ops import constant, input_, make
from llmc.errors import LlmcError
from llmc.sensitivity import Evaluator

WIDTH, FRAGILE = 96, "layer.1"
TARGET: dict[str, Any] = {"target": "x86-avx2"}


def network(width: int = WIDTH) -> Graph:
    """Three products, of which the second has a column that is 1,000 times as large as the others."""
    rng = np.random.default_rng(0)
    x = input_("x", "f32", (symbol("batch"), width))
    y: Node = x
    for number in range(3):
        w = rng.normal(size=(width, width)).astype(np.float32) / np.sqrt(np.float32(width))
        if number == 0:
            w[7] /= 1000
        if number == 1:
            w[:, 7] *= 1000
        y = make("linear", (y, constant(w, f"w{number}")), Source(f"layer.{number}"), epilogue=())
    return Graph((x,), {"y": y}, {"batch": (1, 16)})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "network.txt"
    write_graph(path, network())
    return path


def samples(path: Path, rows: int = 60, width: int = WIDTH) -> Path:
    np.savez(path, x=np.random.default_rng(1).normal(size=(rows, width)).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples(tmp_path_factory.mktemp("data") / "rows.npz")


def choices(report: BudgetReport) -> dict[str, str]:
    return {layer.layer: layer.choice for layer in report.layers}


@pytest.fixture(scope="module")
def found(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BudgetReport]:
    output = tmp_path_factory.mktemp("out") / "m.llmc"
    return output, compile_within(model, output, data, Budget(max_drop=0.001, minimise="size"), **TARGET)


def test_the_fragile_layer_is_found(found: tuple[Path, BudgetReport]) -> None:
    output, report = found
    own = choices(report)
    assert own["w1"] in ("fp32", "fp16", "share 256"), "values that are floats"
    assert own["w0"] in ("int8", "w8")
    assert own["w2"] in ("int8", "w8")
    assert 0 < report.held.mean <= 0.001
    assert not report.unmet
    assert report.native
    assert report.size == sum(file.stat().st_size for file in output.iterdir()) < report.float_size
    assert sorted(file.name for file in output.parent.iterdir()) == ["m.llmc"], "nothing is left beside it"
    assert report.rows == {"measured": 16, "chosen by": 22, "held back": 22}
    assert any(point.chosen for point in report.front)


def test_its_text_repeats_it(found: tuple[Path, BudgetReport], model: Path, tmp_path: Path) -> None:
    output, report = found
    llmc.compile(model, tmp_path / "again.llmc", add_passes=[f"{report.text}@quantise"], **TARGET)
    for name in ("weights.bin", "module.so", "manifest.json"):
        assert (tmp_path / "again.llmc" / name).read_bytes() == (output / name).read_bytes()


def test_a_page_has_the_front(found: tuple[Path, BudgetReport]) -> None:
    drawn = page(found[1])
    assert drawn.count("<circle") == 2 * len(found[1].front)
    assert "is noise" in drawn


def test_what_was_measured_is_not_measured_again(
    found: tuple[Path, BudgetReport], model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluator, "divergence", lambda *a: pytest.fail("it is kept"))
    again = compile_within(
        model, tmp_path / "m.llmc", data, Budget(max_drop=0.001, minimise="size"), **TARGET
    )
    assert again.text == found[1].text


def test_without_time_nothing_is_measured(model: Path, tmp_path: Path) -> None:
    """The best that is known then: the model as it is."""
    rows, ticks = samples(tmp_path / "others.npz", 50), count(step=100)
    budget = Budget(max_drop=0.001, time=10)
    report = compile_within(
        model, tmp_path / "m.llmc", rows, budget, clock=lambda: float(next(ticks)), **TARGET
    )
    assert set(choices(report).values()) == {"fp32"}
    assert report.skipped > 20
    assert report.text == ""
    assert (tmp_path / "m.llmc").exists()


def test_a_budget_that_cannot_be_met(model: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.llmc"
    with pytest.raises(LlmcError, match="the budget cannot be met") as caught:
        compile_within(model, output, data, Budget(max_drop=0.001, max_size=1000), **TARGET)
    assert "--max-size" in str(caught.value.at)
    assert "at best" in str(caught.value.found)
    assert list(tmp_path.iterdir()) == []
    asked = Budget(max_drop=0.001, max_size=1000, best_effort=True)
    report = compile_within(model, output, data, asked, **TARGET)
    assert report.unmet
    assert output.exists()


def test_the_least_loss_within_a_size(model: Path, data: Path, tmp_path: Path, found: Any) -> None:
    bound = (found[1].size + found[1].float_size) // 2
    report = compile_within(model, tmp_path / "m.llmc", data, Budget(max_size=bound), **TARGET)
    assert report.size <= bound
    assert choices(report)["w1"] in ("fp32", "fp16", "share 256")


def test_one_candidate_throughout_is_tried_too(
    model: Path, data: Path, tmp_path: Path, found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What diverges less, all layers together, is taken; where the artifact is too large after all, not again."""
    asked = []

    def float_again(table: Table, limits: Limits, cost: Any) -> list[Point]:
        asked.append(limits)
        return [table.point({})]

    monkeypatch.setattr("llmc.budget.alike", float_again)
    bound = (found[1].size + found[1].float_size) // 2
    report = compile_within(model, tmp_path / "m.llmc", data, Budget(max_size=bound), **TARGET)
    assert report.size <= bound
    assert len(asked) == report.tries >= 2
    roomy = compile_within(model, tmp_path / "n.llmc", data, Budget(max_size=1e9), **TARGET)
    assert (roomy.tries, roomy.text) == (1, "")


def written(output: Path) -> int:
    return sum(file.stat().st_size for file in output.iterdir())


def test_code_decides_where_there_is_little_else(tmp_path: Path) -> None:
    """Others of as few bytes of weights have less code: they are compiled too, and what is told is what lies there."""
    write_graph(tmp_path / "network.txt", network(48))
    model, rows = tmp_path / "network.txt", samples(tmp_path / "rows.npz", width=48)
    sizes = {}
    for mode in ("none", "w4", "w4a8"):
        llmc.compile(model, tmp_path / f"{mode}.llmc", quant=mode, **TARGET)
        sizes[mode] = written(tmp_path / f"{mode}.llmc")
    bound = sizes["w4a8"] + 1000  # passes of each layer are longer texts in the manifest
    assert bound < sizes["w4"] < sizes["none"]

    report = compile_within(model, tmp_path / "m.llmc", rows, Budget(max_size=bound), **TARGET)
    assert report.size == written(tmp_path / "m.llmc") <= bound
    assert not report.unmet

    asked = Budget(max_size=sizes["w4a8"] - 9000, best_effort=True)
    report = compile_within(model, tmp_path / "n.llmc", rows, asked, **TARGET)
    assert report.unmet
    assert report.size == written(tmp_path / "n.llmc") <= bound, "the nearest, and it is what was written"


# --- mistakes, told before anything is compiled


def refused(model: Path, data: Path, tmp_path: Path, budget: Budget, **options: Any) -> LlmcError:
    with pytest.raises(LlmcError) as caught:
        compile_within(model, tmp_path / "m.llmc", data, budget, **{**TARGET, **options})
    assert not (tmp_path / "m.llmc").exists()
    return caught.value


def test_too_few_rows(model: Path, tmp_path: Path) -> None:
    error = refused(model, samples(tmp_path / "few.npz", 40), tmp_path, Budget(max_drop=0.01))
    assert "too few rows to tell a loss of 1.00%: 48 are needed" in str(error)
    assert "16 to measure by, 16 to choose by and 16 held back" in str(error)


def test_no_data(model: Path, tmp_path: Path) -> None:
    assert "there is no such data" in str(
        refused(model, tmp_path / "no.npz", tmp_path, Budget(max_drop=0.01))
    )
    error = refused(model, samples(tmp_path / "none.npz", 0), tmp_path, Budget(max_drop=0.01))
    assert "sample" in str(error) or "empty" in str(error)


def test_data_of_another_model(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", z=np.zeros((60, 3), np.float32))
    assert "z" in str(refused(model, tmp_path / "other.npz", tmp_path, Budget(max_drop=0.01)))


@pytest.mark.parametrize("row", range(0, 60, 23))
def test_rows_that_are_no_numbers(model: Path, tmp_path: Path, row: int) -> None:
    """In whatever part of the data: nothing can be said of what such a row loses."""
    values = np.load(samples(tmp_path / "rows.npz"))["x"].copy()
    values[row, 5] = np.nan
    np.savez(tmp_path / "rows.npz", x=values)
    error = refused(model, tmp_path / "rows.npz", tmp_path, Budget(max_drop=0.01, minimise="size"))
    assert "the float model's answer is not finite" in str(error)
    assert (error.at, error.found) == (f"row {row + 1} of the data", "NaN in 'y'")


def test_what_the_budget_is_to_choose(model: Path, data: Path, tmp_path: Path) -> None:
    error = refused(model, data, tmp_path, Budget(max_drop=0.01), quant="int8", prune=("0.3",))
    assert "--quant, --prune" in str(error.at)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a budget has a bound"),
        ({"max_drop": -1.0}, "--max-drop is -1"),
        ({"minimise": "x", "max_drop": 1}, "no 'x'"),
    ],
)
def test_bounds_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LlmcError, match=message):
        Budget(**options)


def test_no_figures_for_the_target(model: Path, data: Path, tmp_path: Path) -> None:
    error = refused(model, data, tmp_path, Budget(max_drop=0.01), target="rpi4")
    assert "no figures of the time" in str(error)


def test_kernels_timed_here(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: tuple[Path, BudgetReport]
) -> None:
    """By other figures other choices: int8 that takes longer than anything is for bytes alone."""
    table = {**costs.figures()["avx2"], "qlinear": [1e-6, 0.0, 0.0, 0.0]}
    monkeypatch.setattr("llmc.budget.measured", lambda graphs, *a: [len(list(graphs)), table][1])
    budget = Budget(max_drop=0.001, minimise="latency", measure=True)
    report = compile_within(model, tmp_path / "m.llmc", data, budget, **TARGET)
    assert report.variant.endswith(", timed here")
    assert "int8" not in choices(report).values()
    assert "int8" in choices(found[1]).values()


def test_with_samples_weights_are_rounded_by_them(model: Path, data: Path, tmp_path: Path) -> None:
    budget = Budget(max_drop=0.02, minimise="size")
    report = compile_within(model, tmp_path / "m.llmc", data, budget, calib=data, **TARGET)
    assert "gptq{bits=4" in report.text
    assert not report.unmet
