"""Which schedule of a product is the fastest: what is tried, in which order, and when one is believed to be better.

Each choice is tried alone against the default, the most promising again for longer, and those that helped are
joined, best first: choices hardly depend on each other, and trying the product of all would take hours. Nothing
here measures: `Measure` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from typing import Any, Protocol

import numpy as np

from llmc.targets.cpu.products.blocking import WIDTHS, ProductShape, Schedule
from llmc.targets.cpu.products.linear import rows_that_fit, tile_shape
from llmc.targets.target import Cpu

Array = np.ndarray[Any, Any]
Change = Mapping[str, int]  # fields of Schedule
Scored = tuple[float, Change]

FIRST, SECOND, LAST = 9, 21, 51  # rounds: of every choice, of the promising ones, of the winner
PROMISING = 5
MARGIN = 0.01  # a schedule must be faster by more than this
LOSS = 0.1  # and at no number of rows slower by more than this
_DRAWS = 1000
_HEIGHT = 14  # the code of taller tiles takes long to compile
_ROWS = (24, 96)
_BLOCKS = tuple(kb << 10 for kb in (12, 32, 48, 96))
_UNROLLS = (2, 8)
_AHEAD = (16, 160)
_GROUPS = tuple(kb << 10 for kb in (160, 320, 1280))


class Measure(Protocol):
    """Times schedules against the default."""

    def __call__(self, schedules: Sequence[Schedule], rounds: int) -> Array:
        """f64 `[schedule, round, number of rows]`: time over that of the default, which ran just before."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Args:
        schedule: the default unless another is faster beyond the noise.
        ratio, low, high: its time over the default's and the 95 % interval, 1 for the default.
        tried: how many others were measured; `complete` if time ran out for none.
    """

    schedule: Schedule
    ratio: float
    low: float
    high: float
    tried: int
    complete: bool


def takes(cpu: Cpu, schedule: Schedule) -> bool:
    """Whether a kernel can have this schedule.

    Its tile fits the registers, a block holds a few steps of k.
    """
    if schedule.width not in WIDTHS or schedule.height > rows_that_fit(
        cpu, tile_shape(cpu, schedule.width)[1]
    ):
        return False
    return schedule.block_bytes >= 8 * 4 * schedule.width and schedule.unroll <= 8 and schedule.rows <= 1024


def changes(shape: ProductShape, cpu: Cpu) -> list[Change]:
    """Single choices worth a try; those that make the same kernel come once."""
    default = Schedule.default(shape.n)
    seen, chosen = {_work(shape, cpu, default)}, []
    for change in _all_changes(shape, cpu, default.width):
        schedule = _changed(default, change)
        work = _work(shape, cpu, schedule)
        if takes(cpu, schedule) and work not in seen:
            seen.add(work)
            chosen.append(change)
    return chosen


def _all_changes(shape: ProductShape, cpu: Cpu, width: int) -> Iterator[Change]:
    for other in WIDTHS:
        if other != width and -shape.n % other <= shape.n // 8:  # padded columns cost as much as others
            yield {"width": other}
            yield {"width": other, "height": min(_HEIGHT, rows_that_fit(cpu, tile_shape(cpu, other)[1]))}
    height, vectors = tile_shape(cpu, width)
    for other in (min(_HEIGHT, rows_that_fit(cpu, vectors)), height * 3 // 4, height // 2):
        yield {"height": max(1, other)}
    yield from ({"rows": rows} for rows in _ROWS)
    yield from ({"block_bytes": size} for size in _BLOCKS)
    yield from ({"group_bytes": size} for size in _GROUPS)
    yield from ({"unroll": steps} for steps in _UNROLLS)
    yield from ({"ahead": lines} for lines in _AHEAD)


def _changed(schedule: Schedule, change: Change) -> Schedule:
    return Schedule(**{**asdict(schedule), **change})


def _work(shape: ProductShape, cpu: Cpu, schedule: Schedule) -> object:
    """What a schedule comes to."""
    return schedule.cut(shape.k), tile_shape(cpu, schedule.width, schedule.height), schedule.ahead


def find_schedule(
    shape: ProductShape,
    cpu: Cpu,
    measure: Measure,
    left: Callable[[], float],
    tell: Callable[[float], None] = lambda done: None,
    at_once: int = 4,
) -> Outcome:
    """The schedule to use for a product on `cpu`.

    Args:
        left: seconds left; once there are none, only what is best so far is confirmed.
        tell: called with the share of the search that is done.
        at_once: schedules to measure, and so to compile, together.
    """
    tries, scores = changes(shape, cpu), []
    race = _Race(Schedule.default(shape.n), cpu, measure, left)
    for i in range(0, len(tries), at_once):
        if left() <= 0:
            break
        scores += race.scores(tries[i : i + at_once], FIRST)
        tell(0.7 * len(scores) / len(tries))
    helped = _best(scores)[:PROMISING]
    if left() > 0:
        helped = _best(race.scores([change for _, change in helped], SECOND))
    tell(0.8)
    change, all_joined = race.joined(helped)
    tell(0.9)
    complete = len(scores) == len(tries) and all_joined
    return Outcome(*race.confirmed(change), len(scores), complete)


def _best(scores: Sequence[Scored]) -> list[Scored]:
    """Those faster than the default, fastest first."""
    return sorted((s for s in scores if s[0] < 1), key=itemgetter(0))


@dataclass(frozen=True)
class _Race:
    """Changes of the default, for `cpu`, measured against it while seconds are `left`."""

    default: Schedule
    cpu: Cpu
    measure: Measure
    left: Callable[[], float]

    def scores(self, some: Sequence[Change], rounds: int) -> list[Scored]:
        """The score of each; from the second time on, 1 at least for what could not win: see `wins`."""
        if not some:
            return []
        ratios = self.measure([self._schedule(change) for change in some], rounds)
        least = [1.0 if rounds > FIRST and not balanced(r) else 0.0 for r in ratios]
        return [(max(score(r), low), change) for r, low, change in zip(ratios, least, some, strict=True)]

    def joined(self, helped: Sequence[Scored]) -> tuple[Change | None, bool]:
        """The best change that the best one and others make together, and whether there was time to try all."""
        if not helped:
            return None, True
        best, change = helped[0]
        for _, other in helped[1:]:
            both = {**other, **change}
            if other.keys() & change.keys() or not takes(self.cpu, _changed(self.default, both)):
                continue
            if self.left() <= 0:
                return change, False
            here = self.scores([both], SECOND)[0][0]
            if here < best:
                best, change = here, both
        return change, True

    def confirmed(self, change: Change | None) -> tuple[Schedule, float, float, float]:
        """The best of many is best by luck too: it is measured anew, and the default stays unless it wins again."""
        if change is not None:
            ratios = self.measure([self._schedule(change)], LAST)[0]
            if wins(ratios):
                return self._schedule(change), score(ratios), *interval(ratios)
        return self.default, 1.0, 1.0, 1.0

    def _schedule(self, change: Change) -> Schedule:
        return replace(_changed(self.default, change), cpu=self.cpu.name)


def wins(ratios: Array) -> bool:
    """Whether ratios `[round, number of rows]` are below 1 beyond the noise.

    The upper end of the score's interval is below 1 - MARGIN, and no number of rows is slower by more than LOSS.
    """
    _, high = interval(ratios)
    return high < 1 - MARGIN and balanced(ratios)


def balanced(ratios: Array) -> bool:
    """Whether no number of rows is slower by more than LOSS."""
    return bool(np.all(np.median(ratios, axis=0) <= 1 + LOSS))


def score(ratios: Array) -> float:
    """The geometric mean over the numbers of rows, for one schedule serves all, of the median over the rounds."""
    return float(np.exp(np.mean(np.log(np.median(ratios, axis=-2)), axis=-1)))


def interval(ratios: Array) -> tuple[float, float]:
    """The 95 % bootstrap interval of the score: rounds are drawn again, with replacement, for each number of rows."""
    rounds, sizes = ratios.shape
    drawn = np.random.default_rng(0).integers(0, rounds, (_DRAWS, rounds, sizes))
    medians = np.median(np.take_along_axis(ratios[None], drawn, axis=1), axis=1)
    low, high = np.quantile(np.exp(np.mean(np.log(medians), axis=1)), (0.025, 0.975))
    return float(low), float(high)
