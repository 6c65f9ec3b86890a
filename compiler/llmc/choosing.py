"""The joint choice: one option for each layer, of least time or bytes within bounds, by scipy.optimize.milp (HiGHS)."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from llmc import kept_imports
from llmc.bounds import FrontPoint, LayerChoice
from llmc.candidates import FLOAT, Candidate, Layer
from llmc.compiler.graph import Graph
from llmc.costs import Cost, Costs, Figures
from llmc.options import Order
from llmc.sensitivity import Loss, Measure, Rows
from llmc.targets import store

GRID = 36  # divergences of a front
_STEP = 1.6  # of each to the next
_SOLVE = 20.0  # seconds of one choice
RUIN = 1.0  # a divergence at which nothing is left of the answers: such choices are not worth a compile


@dataclass(frozen=True)
class Option:
    """What a candidate does to one layer.

    Args:
        divergence: of the answers, with this layer alone changed; infinite where they are no numbers.
        bytes, seconds: more than the float layer has; negative where it is less.
    """

    divergence: float
    bytes: int
    seconds: float

    @property
    def gains(self) -> bool:
        """Whether there is less of something."""
        return self.bytes < 0 or self.seconds < 0


@dataclass(frozen=True)
class Limits:
    """Bounds of a choice; infinite where there is none. `size` is of weights alone."""

    divergence: float = math.inf
    size: float = math.inf
    seconds: float = math.inf


@dataclass(frozen=True)
class Point:
    """A choice, and what is foretold of it."""

    choice: Mapping[Layer, Candidate]
    divergence: float
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Table:
    """Every layer's options, beside the costs of the float model."""

    base: Cost
    options: Mapping[Layer, Mapping[Candidate, Option]]
    weights: Mapping[str, float] = field(default_factory=lambda: {"bytes": 1.0, "seconds": 1.0})

    def point(self, choice: Mapping[Layer, Candidate]) -> Point:
        """A choice, with sums of what its options do."""
        taken = [self.options[layer][candidate] for layer, candidate in choice.items()]
        return Point(
            choice,
            sum(option.divergence for option in taken),
            self.base.bytes + sum(option.bytes for option in taken),
            self.base.seconds + sum(option.seconds for option in taken),
        )

    def best(self, limits: Limits, aim: Mapping[str, float] | None = None) -> Point | None:
        """The choice of least weighted sum; None if nothing is within the limits.

        Args:
            aim: weights of "divergence", "bytes" and "seconds", each as a share of what the float model has and, of
                divergence, of all that can be; None: those of the table.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp

        rows = [(layer, c, o) for layer, own in self.options.items() for c, o in own.items() if _usable(o)]
        if not rows:
            point = self.point({})
            return point if _within(point, limits) else None
        values = {
            "divergence": np.array([o.divergence for _, _, o in rows]),
            "bytes": np.array([float(o.bytes) for _, _, o in rows]),
            "seconds": np.array([o.seconds for _, _, o in rows]),
        }
        whole = {
            "divergence": float(values["divergence"].sum()) or 1.0,
            "bytes": float(self.base.bytes) or 1.0,
            "seconds": self.base.seconds or 1.0,
        }
        shares = {name: value / whole[name] for name, value in values.items()}
        aim = aim or self.weights
        # of equals the one that diverges less
        cost = sum(w * shares[name] for name, w in aim.items()) + 1e-6 * shares["divergence"]
        one = np.array([[float(mine is layer) for mine, _, _ in rows] for layer in self.options])
        constraints = [LinearConstraint(one, -np.inf, 1.0)]
        for name, limit, start in (
            ("divergence", min(limits.divergence, RUIN), 0.0),
            ("bytes", limits.size, self.base.bytes),
            ("seconds", limits.seconds, self.base.seconds),
        ):
            if math.isfinite(limit):
                constraints.append(
                    LinearConstraint(shares[name][None], -np.inf, (limit - start) / whole[name])
                )
        with _silent():
            found = milp(
                np.asarray(cost),
                integrality=np.ones(len(rows)),
                bounds=Bounds(0, 1),
                constraints=constraints,
                options={"time_limit": _SOLVE},
            )
        if found.x is None:
            return None
        point = self.point({mine: c for (mine, c, _), x in zip(rows, found.x, strict=True) if x > 0.5})
        return point if _within(point, limits) else None

    def front(self, limits: Limits) -> list[Point]:
        """Choices of more and more divergence, each of less of what is aimed at than the one before, within the limits
        of bytes and seconds."""
        most = self.best(limits)
        if most is None:
            return []
        found = [most]
        for step in range(1, GRID):
            within = Limits(most.divergence / _STEP**step, limits.size, limits.seconds)
            point = self.best(within)
            if point is None or point.choice == found[-1].choice:
                continue
            found.append(point)
        if (none := self.point({})) and _within(none, limits) and found[-1].choice:
            found.append(none)
        return found[::-1]


def alike(table: Table, limits: Limits, cost: Callable[[Mapping[Layer, Candidate]], Cost]) -> list[Point]:
    """Choices of one candidate for all layers that it is for, those within the limits.

    Args:
        cost: of a choice as a whole: what layers share, sums of each alone count twice.
    """
    found = []
    for name in dict.fromkeys(c.name for own in table.options.values() for c in own):
        choice = {
            layer: c
            for layer, own in table.options.items()
            for c, option in own.items()
            if c.name == name and option.divergence < RUIN
        }
        whole = cost(choice)
        point = replace(table.point(choice), bytes=whole.bytes, seconds=whole.seconds)
        if _within(point, limits):
            found.append(point)
    return found


def counts_of(point: Point, every: Sequence[Layer]) -> Mapping[str, int]:
    """How many layers have what."""
    names = [c.name if (c := point.choice.get(layer)) else FLOAT for layer in every]
    return {name: names.count(name) for name in dict.fromkeys(names)}


@contextmanager
def _silent() -> Iterator[None]:
    """HiGHS has a line of its own for standard output, whatever it is told; what is there is for JSON."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _usable(option: Option) -> bool:
    return option.divergence < RUIN and option.gains


def _within(point: Point, limits: Limits) -> bool:
    slack = 1 + 1e-9
    return (
        point.divergence <= limits.divergence * slack + 1e-15
        and point.bytes <= limits.size * slack
        and point.seconds <= limits.seconds * slack
    )


def why_float(options: Mapping[Candidate, Option], bound: float, usual: Candidate | None = None) -> str:
    """Why a layer stayed float.

    Args:
        options: those that are not float.
        bound: the divergence of all layers together in what was chosen.
        usual: what most other layers have.
    """
    if not options:
        return "nothing that was measured applies to it"
    numbers = {c: o for c, o in options.items() if o.divergence < RUIN}
    if not numbers:
        names = ", ".join(c.name for c in options)
        return f"fragile: nothing is left of the answers by {names}"
    gaining = {c: o for c, o in numbers.items() if o.gains}
    if not gaining:
        return f"gains nothing: {_told(*_least(numbers))}"
    best = _least(gaining)
    for candidate, option in ((usual, gaining.get(usual)), best) if usual else (best,):
        if option is not None and option.divergence > bound:
            alone = f"{candidate.name} alone diverges by {option.divergence:.2g}" if candidate else ""
            return f"fragile: {alone}, all that were chosen by {bound:.2g}"
    return f"others gain more for what they lose: {_told(*best)}, diverges by {best[1].divergence:.2g}"


def front_points(
    front: Sequence[Point], chosen: int, every: Sequence[Layer], tried: Mapping[int, Loss]
) -> list[FrontPoint]:
    """The points of a front as a report has them."""
    return [
        FrontPoint(p.divergence, p.bytes, p.seconds, counts_of(p, every), tried.get(i), i == chosen)
        for i, p in enumerate(front)
    ]


def layer_choices(
    point: Point, every: Sequence[Layer], options: Mapping[Layer, Mapping[Candidate, Option]]
) -> list[LayerChoice]:
    """What becomes of each layer, and why of those that stay float."""
    found, chosen = [], [c for c in point.choice.values() if not c.floats]
    usual = max(chosen, key=chosen.count, default=None)
    for layer in every:
        candidate, own = point.choice.get(layer), options[layer]
        others = {c: o for c, o in own.items() if not c.floats}
        why = "" if candidate and not candidate.floats else why_float(others, point.divergence, usual)
        name, option = (candidate.name, own[candidate]) if candidate else (FLOAT, Option(0.0, 0, 0.0))
        found.append(LayerChoice(layer.name, name, option.divergence, option.bytes, option.seconds, why))
    return found


def _least(options: Mapping[Candidate, Option]) -> tuple[Candidate, Option]:
    return min(options.items(), key=lambda item: item[1].divergence)


def _told(candidate: Candidate, option: Option) -> str:
    return f"{candidate.name} {option.bytes / 1e3:+.1f} kB, {option.seconds * 1e6:+.1f} us"


# --- what an earlier search has measured


@dataclass
class Kept:
    """Measurements by layer and candidate, in the folder of what llmc keeps, named by all that they depend on."""

    kept: store.Store
    name: str
    values: dict[str, list[list[float]]] = field(default_factory=dict)

    @staticmethod
    def of(graph: Graph, rows: Rows, measure: Measure, order: Order, costs: Costs) -> Kept:
        content = hashlib.sha256()
        for sample in rows.samples:
            for name in sorted(sample):
                content.update(name.encode() + np.ascontiguousarray(sample[name]).tobytes())
        asked = json.dumps(
            [order.target.name, costs.variant, dict(costs.sizes), measure.name, dict(costs.table)]
        )
        name = store.key(str(graph), content.hexdigest(), asked, kept_imports.sources())
        found = Kept(store.Store(store.folder("budget")), f"{name}.json")
        data = found.kept.get(found.name)
        return found if data is None else replace(found, values=json.loads(data))

    def get(self, layer: Layer, candidate: Candidate) -> tuple[Option, ...] | None:
        found = self.values.get(_label(layer, candidate))
        return found if found is None else tuple(Option(d, int(b), s) for d, b, s in found)

    def put(self, layer: Layer, candidate: Candidate, options: tuple[Option, ...]) -> None:
        self.values[_label(layer, candidate)] = [[o.divergence, o.bytes, o.seconds] for o in options]
        if len(self.values) % 16 == 0:  # what an interrupt leaves is taken up again
            self.write()

    def write(self) -> None:
        self.kept.put(self.name, json.dumps(self.values).encode())


def kept_figures(what: Sequence[str], make: Callable[[], Figures]) -> Figures:
    """The times of kernels by what they depend on, measured once."""
    place = store.Store(store.folder("budget"))
    name = f"{store.key(*what, kept_imports.sources(), *platform.uname())}.times.json"
    found: Figures = json.loads(place.made(name, lambda: json.dumps(dict(make())).encode()))
    return found


def _label(layer: Layer, candidate: Candidate) -> str:
    return f"{layer.kind} {layer.name} {candidate.passes},{candidate.after}"
