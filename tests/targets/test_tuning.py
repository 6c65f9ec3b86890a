"""The search for schedules: what is tried, when a win is believed, what is kept. Times are made up."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.dims import Bounds, symbol
from llmc.compiler.graph import Graph
from llmc.compiler.ops import constant, input_, make
from llmc.errors import LlmcError
from llmc.targets import TARGETS, store, tuning
from llmc.targets.cpu.backend import BACKEND
from llmc.targets.cpu.products.blocking import ProductShape, Schedule
from llmc.targets.cpu.variants import AVX2, AVX512, NEON
from llmc.targets.host import Processor, find_target, processor
from llmc.targets.tuning.records import Records
from llmc.targets.tuning.search import LAST, Outcome, changes, find_schedule, interval, takes, wins
from llmc.targets.tuning.trial import Trial

Array = np.ndarray[Any, Any]
SHAPE = ProductShape(384, 1536, "f32", ("bias",))
DEFAULT = Schedule.default(384)
ROWS = (1, 8, 512)
HERE = Processor("a processor (6 207)", ("avx512", "avx2"), 48 << 10, 2 << 20)
FOUND = Outcome(Schedule(64, 96, height=5, cpu="avx512"), 0.9, 0.88, 0.92, 16, True)


def noisy(middle: float, spread: float, rounds: int = LAST, sizes: int = 3) -> Array:
    return middle + spread * np.random.default_rng(1).normal(size=(rounds, sizes))


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        (noisy(0.97, 0.01), True),
        (noisy(0.97, 0.3), False),  # within the noise
        (noisy(0.995, 0.001), False),  # certain, and not worth it
        (noisy(1.03, 0.01), False),
        (noisy(0.9, 0.01) + np.array([0, 0, 0.25]), False),  # slower for many rows
        (
            np.where(np.arange(LAST)[:, None] % 5 == 0, 9.0, noisy(0.95, 0.01)),
            True,
        ),  # another process had the core
    ],
)
def test_when_a_win_is_believed(ratios: Array, expected: bool) -> None:
    assert wins(ratios) == expected


def test_the_interval_holds_the_score() -> None:
    low, high = interval(noisy(0.9, 0.05))
    assert 0.87 < low < 0.9 < high < 0.93


@pytest.mark.parametrize("cpu", [AVX512, AVX2, NEON], ids=lambda cpu: str(cpu.name))
@pytest.mark.parametrize("shape", [SHAPE, ProductShape(30, 7, "f32", ()), ProductShape(312, 1200, "f16", ())])
def test_what_is_tried_suits_the_kernel(shape: ProductShape, cpu: Any) -> None:
    schedules = [
        Schedule(**{"width": Schedule.default(shape.n).width, **change}) for change in changes(shape, cpu)
    ]
    assert len(set(schedules)) == len(schedules)
    assert Schedule.default(shape.n) not in schedules
    assert all(takes(cpu, schedule) for schedule in schedules)
    widths = {schedule.width for schedule in schedules} - {Schedule.default(shape.n).width}
    assert all(-shape.n % width <= shape.n // 8 for width in widths)


def test_too_tall_a_tile_is_not_taken() -> None:
    assert takes(AVX512, Schedule(48, height=9))
    assert not takes(AVX512, Schedule(48, height=10))
    assert not takes(AVX2, Schedule(48, height=7))


class Made:
    """Ratios from a rule: (schedule, rounds) -> one for all numbers of rows."""

    def __init__(self, rule: Callable[[Schedule, int], float]) -> None:
        self.rule, self.calls = rule, 0

    def __call__(self, schedules: Sequence[Schedule], rounds: int) -> Array:
        self.calls += 1
        return np.stack([noisy(self.rule(s, rounds), 1e-3, rounds) for s in schedules])


def found(rule: Callable[[Schedule, int], float], seconds: Sequence[float] = (1.0,)) -> Outcome:
    clock = itertools.chain(seconds, itertools.repeat(seconds[-1]))
    return find_schedule(SHAPE, AVX512, Made(rule), lambda: next(clock))


def test_choices_that_help_are_joined() -> None:
    outcome = found(lambda s, rounds: (0.9 if s.width == 64 else 1.0) * (0.95 if s.rows == 96 else 1.01))
    assert outcome.schedule == Schedule(64, 96, cpu="avx512")
    assert outcome.ratio == pytest.approx(0.855, abs=0.01)
    assert outcome.low < outcome.ratio < outcome.high
    assert (outcome.tried, outcome.complete) == (len(changes(SHAPE, AVX512)), True)


def test_choices_that_do_not_go_together_are_not_joined() -> None:
    outcome = found(
        lambda s, rounds: 1.2 if (s.width, s.rows) == (64, 96) else 0.9 if s.width == 64 else 0.95
    )
    assert (outcome.schedule.width, outcome.schedule.rows) != (64, 96)
    assert outcome.ratio == pytest.approx(0.9, abs=0.01)


def test_what_is_best_on_average_and_slow_for_few_rows_gives_way() -> None:
    def measure(schedules: Sequence[Schedule], rounds: int) -> Array:
        by_rows = [
            (1.2, 0.5, 0.5) if s.width == 64 else (1, 0.9, 0.9) if s.rows == 96 else (1, 1, 1)
            for s in schedules
        ]
        return np.stack([noisy(0.0, 1e-3, rounds) + np.array(ratios) for ratios in by_rows])

    outcome = find_schedule(SHAPE, AVX512, measure, lambda: 1.0)
    assert outcome.schedule == Schedule(48, 96, cpu="avx512")


@pytest.mark.parametrize("rule", [lambda s, rounds: 1.05, lambda s, rounds: 1.0 if rounds == LAST else 0.8])
def test_the_default_stays_unless_something_wins_twice(rule: Callable[[Schedule, int], float]) -> None:
    assert found(rule) == Outcome(DEFAULT, 1.0, 1.0, 1.0, len(changes(SHAPE, AVX512)), True)


def test_when_time_is_up_the_best_so_far_is_confirmed() -> None:
    outcome = found(lambda s, rounds: 0.9 if s.width == 64 else 0.95 if s.rows == 96 else 1.0, (1.0, 0.0))
    assert (outcome.schedule, outcome.complete) == (Schedule(64, cpu="avx512"), False)
    assert 0 < outcome.tried < len(changes(SHAPE, AVX512))
    assert found(lambda s, rounds: 0.5, (0.0,)) == Outcome(DEFAULT, 1.0, 1.0, 1.0, 0, False)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "tuned", HERE, AVX512)


def test_what_is_kept_is_found(records: Records) -> None:
    assert records.get(SHAPE, ROWS, 1.0) is None
    records.put(SHAPE, ROWS, 9.0, FOUND)
    assert records.get(SHAPE, ROWS, 1e9) == FOUND
    plain = Outcome(DEFAULT, 1.0, 1.0, 1.0, 16, True)
    records.put(SHAPE, ROWS, 9.0, plain)
    assert records.get(SHAPE, ROWS, 1.0) == plain
    assert len(list(records.place.iterdir())) == 1  # type: ignore[union-attr]


def test_another_processor_product_or_number_of_rows_is_another_entry(records: Records) -> None:
    records.put(SHAPE, ROWS, 9.0, FOUND)
    assert records.get(replace(SHAPE, epilogue=()), ROWS, 1.0) is None
    assert records.get(SHAPE, (1, 2), 1.0) is None
    assert replace(records, processor=replace(HERE, l2=1 << 20)).get(SHAPE, ROWS, 1.0) is None
    assert replace(records, processor=replace(HERE, name="another")).get(SHAPE, ROWS, 1.0) is None
    assert replace(records, cpu=AVX2).get(SHAPE, ROWS, 1.0) is None


def test_a_search_cut_short_is_found_by_those_who_have_no_more_time(records: Records) -> None:
    records.put(SHAPE, ROWS, 9.0, replace(FOUND, complete=False))
    assert records.get(SHAPE, ROWS, 8.0) is not None
    assert records.get(SHAPE, ROWS, 10.0) is None


def _without(key: str) -> Callable[[Any], Any]:
    return lambda entry: {k: v for k, v in entry.items() if k != key}


def _schedule(**changed: Any) -> Callable[[Any], Any]:
    def change(entry: Any) -> Any:
        entry["found"]["schedule"] |= changed
        return entry

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: [],
        lambda entry: None,
        _without("found"),
        _without("cpu"),
        lambda entry: {**entry, "code": "of another llmc"},
        lambda entry: {**entry, "found": "?"},
        lambda entry: {**entry, "found": {**entry["found"], "ratio": -1}},
        lambda entry: {**entry, "found": {**entry["found"], "schedule": [1]}},
        _schedule(width=40),
        _schedule(width="64"),
        _schedule(height=99),
        _schedule(rows=0),
        _schedule(cpu="avx2"),
        _schedule(color=3),
    ],
)
def test_a_damaged_or_foreign_file_counts_as_missing_and_is_rewritten(
    damage: Callable[[Any], Any], records: Records
) -> None:
    records.put(SHAPE, ROWS, 9.0, FOUND)
    (file,) = records.place.iterdir()  # type: ignore[union-attr]
    file.write_text(json.dumps(damage(json.loads(file.read_text()))))
    assert records.get(SHAPE, ROWS, 1.0) is None
    records.put(SHAPE, ROWS, 9.0, FOUND)
    assert records.get(SHAPE, ROWS, 1.0) == FOUND


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_json_counts_as_missing(text: bytes, records: Records) -> None:
    records.put(SHAPE, ROWS, 9.0, FOUND)
    (file,) = records.place.iterdir()  # type: ignore[union-attr]
    file.write_bytes(text)
    assert records.get(SHAPE, ROWS, 1.0) is None


def test_nothing_is_kept_where_nothing_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in (None, tmp_path / "file" / "tuned"):
        records = Records(place, HERE, AVX512)
        records.put(SHAPE, ROWS, 9.0, FOUND)
        assert records.get(SHAPE, ROWS, 1.0) is None


def graph() -> Graph:
    """The same product twice, for rows m and for 3 rows."""
    rng = np.random.default_rng(1)
    x, y = input_("x", "f32", (symbol("m"), 24)), input_("y", "f32", (3, 24))
    weights = [constant(rng.normal(size=(32, 24)).astype(np.float32)) for _ in range(2)]
    outputs = {n: make("linear", (i, w)) for n, i, w in zip("ab", (x, y), weights, strict=True)}
    return Graph((x, y), outputs, {"m": (2, 40)})


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """`tune(seconds)` of that graph, with times by which tiles of one vector win; the rows it measured are noted."""
    monkeypatch.setenv(store.VARIABLE, str(tmp_path))

    class Fake(Made):
        rows: Sequence[int] = ()

        def __init__(
            self, shape: ProductShape, rows: Sequence[int], target: Any, cpu: Any, kept: Any
        ) -> None:
            super().__init__(lambda s, rounds: 0.8 if s.width == 16 else 1.0)
            self.shape, self.cpu = shape, cpu
            Fake.rows = rows

    def run(seconds: float) -> Any:
        told: list[tuple[str, float]] = []
        program, Fake.rows = graph(), ()
        target = find_target("native").serving(["linear"])
        tuned = tuning.tune(
            BACKEND.lower(program),
            program.dims,
            target,
            store.Store(None),
            seconds,
            lambda *a: told.append(a),
        )
        return tuned, Fake.rows, told

    monkeypatch.setattr(tuning, "Trial", Fake)
    return run


def test_a_product_is_tuned_once_and_then_found(tune: Callable[..., Any]) -> None:
    tuned, rows, told = tune(9.0)
    ((shape, first),) = tuned.items()
    assert str(shape) == "32 x 24 f32"
    assert (first.outcome.schedule.width, first.cached) == (16, False)
    assert rows == (2, 3, 8, 32, 40)  # ROWS within the bounds
    assert {stage for stage, _ in told} == {"tune 32 x 24 f32 (1 of 1)"}
    assert [done for _, done in told] == sorted(done for _, done in told)
    (again,), rows, told = (list(tune(0.0)[0].values()), *tune(0.0)[1:])
    assert (again.outcome, again.cached, rows, told) == (first.outcome, True, (), [])


def test_large_products_run_for_few_rows() -> None:
    dims = {"m": Bounds(1, 9999)}
    assert tuning._rows(replace(SHAPE, n=30522), symbol("m"), dims) == {1, 8, 32}
    assert tuning._rows(replace(SHAPE, n=1 << 20, k=1 << 20), symbol("m") + 4, dims) == {5}


def test_without_time_and_cache_nothing_is_tuned(
    tune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tune(0.0) == ({}, (), [])
    monkeypatch.setenv(store.VARIABLE, "off")
    assert len(tune(9.0)[0]) == 1
    assert tune(0.0) == ({}, (), [])


def test_tuning_needs_the_machine() -> None:
    with pytest.raises(LlmcError, match="on the machine they are for") as error:
        tuning.measured_variant(replace(TARGETS["x86"], cpus=(replace(AVX2, machine="pdp11"),)))
    assert error.value.at == "--tune"
    with pytest.raises(LlmcError):
        tuning.measured_variant(TARGETS["cuda"])


def test_this_processor_is_known() -> None:
    assert processor() == processor()
    assert processor().name


def test_a_trial_runs_the_kernels(tmp_path: Path) -> None:
    """By a clock that ticks alike for all: no schedule is faster than another."""
    target = find_target("native").serving(["linear"])
    cpu = tuning.measured_variant(target)
    ticks = itertools.count(step=1_000_000)
    shape = ProductShape(32, 40, "f16", ("bias", "residual"))
    trial = Trial(shape, (1, 5), target, cpu, store.Store(None), lambda: next(ticks))
    ratios = trial([Schedule(16, 5, 64 * 8, height=2), Schedule(16, height=2, cpu=cpu.name)], 3)
    assert np.array_equal(ratios, np.ones((2, 3, 2)))
