"""The joint choice is the best there is, within its limits; what stays float has a reason."""

from __future__ import annotations

import math
from itertools import pairwise, product

import numpy as np
import pytest

from llmc.candidates import Candidate, Layer
from llmc.choosing import Limits, Option, Point, Table, alike, why_float
from llmc.compiler.ops import input_
from llmc.costs import Cost

INT8, W4, FP16 = (Candidate(name, "share") for name in ("int8", "w4", "fp16"))
NODE = input_("x", "f32", (1,))


def layer(name: str) -> Layer:
    return Layer(name, "weight", NODE, 4096)


def table(seed: int = 0, count: int = 5, **aim: float) -> Table:
    """Random options of some layers."""
    rng = np.random.default_rng(seed)
    options = {
        layer(f"layer.{i}"): {
            c: Option(float(rng.exponential(d)), -int(b * rng.uniform(0.5, 1)), float(-s * rng.uniform(0, 1)))
            for c, d, b, s in ((INT8, 0.01, 750, 6e-5), (W4, 0.05, 875, -2e-5), (FP16, 1e-4, 500, 0.0))
        }
        for i in range(count)
    }
    return Table(Cost(1000 * count, 1e-4 * count), options, aim or {"bytes": 1.0, "seconds": 1.0})


def every(found: Table) -> list[Point]:
    """All choices there are."""
    own = [[None, *options] for options in found.options.values()]
    return [
        found.point({x: c for x, c in zip(found.options, choice, strict=True) if c is not None})
        for choice in product(*own)
    ]


def value(found: Table, point: Point) -> float:
    shares = {"bytes": point.bytes / found.base.bytes, "seconds": point.seconds / found.base.seconds}
    return sum(w * shares[name] for name, w in found.weights.items())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("aim", [{"bytes": 1.0}, {"seconds": 1.0}, {"bytes": 1.0, "seconds": 1.0}])
def test_no_choice_is_better(seed: int, aim: dict[str, float]) -> None:
    found = table(seed, **aim)
    for limits in (Limits(), Limits(0.05), Limits(0.1, size=2500), Limits(seconds=4e-4, size=4000)):
        allowed = [
            value(found, p)
            for p in every(found)
            if p.divergence <= limits.divergence and p.bytes <= limits.size and p.seconds <= limits.seconds
        ]
        best = found.best(limits)
        if not allowed:
            assert best is None
            continue
        assert best is not None
        assert value(found, best) <= min(allowed) + 1e-4
        assert best.bytes <= limits.size


def test_the_least_divergence_within_a_size() -> None:
    found = table()
    best = found.best(Limits(size=2500), {"divergence": 1.0})
    assert best is not None
    assert best.divergence == pytest.approx(min(p.divergence for p in every(found) if p.bytes <= 2500))


def test_one_candidate_throughout() -> None:
    """By what all together cost, where that is within the limits; a layer that it ruins has none."""
    found = table()
    ruined = next(iter(found.options))
    found.options[ruined][W4] = Option(math.inf, -875, 0.0)  # type: ignore[index]
    points = alike(found, Limits(), lambda choice: Cost(100 * len(choice), 1e-5))
    assert [(p.bytes, p.seconds) for p in points] == [(500, 1e-5), (400, 1e-5), (500, 1e-5)]
    assert [set(p.choice.values()) for p in points] == [{INT8}, {W4}, {FP16}]
    assert ruined not in points[1].choice
    assert len(alike(found, Limits(size=450), lambda choice: Cost(100 * len(choice), 1e-5))) == 1


def test_a_front_gets_better_as_it_loses_more() -> None:
    found = table(1, count=6)
    front = found.front(Limits())
    assert not front[0].choice
    assert len(front) > 4
    for a, b in pairwise(front):
        assert a.divergence < b.divergence
        assert value(found, a) > value(found, b)
    assert found.front(Limits(size=10)) == []


def test_what_gains_nothing_or_is_no_number_is_never_chosen() -> None:
    idle, broken, good = layer("idle"), layer("broken"), layer("good")
    options = {
        idle: {INT8: Option(0.0, 0, 1e-6)},
        broken: {INT8: Option(math.inf, -900, -1e-5)},
        good: {INT8: Option(1e-4, -900, -1e-5)},
    }
    best = Table(Cost(3000, 1e-4), options).best(Limits())
    assert best is not None
    assert set(best.choice) == {good}
    assert why_float(options[idle], 1.0) == "gains nothing: int8 +0.0 kB, +1.0 us"
    assert why_float(options[broken], 1.0) == "fragile: nothing is left of the answers by int8"
    assert why_float({}, 1.0) == "nothing that was measured applies to it"
    fragile = {INT8: Option(0.2, -900, 0.0), W4: Option(3.0, -950, 0.0)}
    assert why_float(fragile, 0.05) == "fragile: int8 alone diverges by 0.2, all that were chosen by 0.05"
    mild = {INT8: Option(0.2, -900, 0.0), W4: Option(1e-3, -950, 0.0)}
    assert why_float(mild, 0.05, INT8).startswith("fragile: int8 alone diverges by 0.2")
    assert why_float(mild, 0.05).startswith("others gain more")
    assert why_float(options[good], 1.0).startswith("others gain more for what they lose: int8 -0.9 kB")


def test_nothing_to_choose() -> None:
    empty = Table(Cost(1000, 1e-4), {layer("a"): {}})
    assert empty.best(Limits()) == empty.point({})
    assert empty.best(Limits(size=10)) is None
