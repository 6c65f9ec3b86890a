"""Statistics of parts of the data: what they come to together, and what waits for what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from walks import KINDS, Stopped, gathered, known, network, rows, same, samples, walk

from llmc.compiler import moments
from llmc.compiler.gathering import WaitsForParts, Walk, gather
from llmc.compiler.given import Given
from llmc.compiler.graph import Graph
from llmc.compiler.kept_statistics import Statistics
from llmc.compiler.moments import Moments, of_inputs
from llmc.compiler.ranges import BINS, METHODS, Magnitudes
from llmc.errors import LlmcError


def parts_of(kind: str, folder: Path, graph: Graph | None = None) -> tuple[Path, Path]:
    for name, data in (("a", samples(0, 3)), ("b", samples(3, 7))):
        gathered(walk(kind, graph), data, Statistics(folder / name))
    return folder / "a", folder / "b"


def merged(kind: str, *folders: Path) -> Walk:
    found = walk(kind)
    kept = Statistics(others=folders)
    gather(found, Given(kept=kept))
    assert kept.walks[0]["merged"] == 7
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_parts_come_to_the_whole(kind: str, tmp_path: Path) -> None:
    """Counts and largest values are equal, sums to rounding; where magnitudes lie is known to two bins."""
    a, b = parts_of(kind, tmp_path)
    found, whole = merged(kind, a, b), gathered(walk(kind), samples())
    for ours, theirs in zip(found.seen, whole.seen, strict=True):
        left, right = ours.parts(), theirs.parts()
        for name in left.keys() & {"rows", "top"}:
            np.testing.assert_array_equal(left[name], right[name])
        for name in left.keys() & {"sums", "squares"}:
            np.testing.assert_allclose(left[name], right[name], rtol=1e-12, atol=1e-9)
        if isinstance(ours, Moments) and isinstance(theirs, Moments):
            np.testing.assert_allclose(ours.products, theirs.products, rtol=1e-5, atol=0.05)
        if isinstance(ours, Magnitudes) and isinstance(theirs, Magnitudes):
            assert ours.counts.sum() == theirs.counts.sum()
            assert METHODS["minmax"](ours) == METHODS["minmax"](theirs)
            bin_ = max(ours.limit, theirs.limit) / BINS
            assert abs(METHODS["percentile"](ours) - METHODS["percentile"](theirs)) <= 2 * bin_


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_merges_has_the_same_bits(kind: str, tmp_path: Path) -> None:
    """In any order, and where a part was gathered at once: three walks depend on what the last one found."""
    a, b = parts_of(kind, tmp_path)
    first = merged(kind, a, b)
    same(first, merged(kind, b, a))
    same(first, gathered(walk(kind), samples(0, 3), Statistics(others=[b])))
    same(first, gathered(walk(kind), samples(3, 7), Statistics(tmp_path / "b", [a])))


def test_zeros_stay_zeros_when_ranges_differ() -> None:
    """Half of what relu gives; the entropy method would take zeros beside bin 0 for values."""
    a, b, whole = Magnitudes(), Magnitudes(), Magnitudes()
    halves = np.maximum(rows(5, 2, 4000), 0) * np.array([[1.0], [0.37]], np.float32)
    for part, values in ((a, halves[0]), (b, halves[1]), (whole, halves[0]), (whole, halves[1])):
        part.add(values)
    for first, second in ((a, b), (b, a)):
        total = Magnitudes()
        total.merge(first)
        total.merge(second)
        assert total.counts.sum() == whole.counts.sum()
        assert total.counts[0] >= (halves == 0).sum()
        assert abs(int(total.counts[0]) - int(whole.counts[0])) <= 4
        for name in ("percentile", "entropy"):
            assert METHODS[name](total) == pytest.approx(METHODS[name](whole), rel=0.01)


def test_parts_of_zeros_alone() -> None:
    zeros, values, total = Magnitudes(), Magnitudes(), Magnitudes()
    zeros.add(np.zeros(10))
    values.add(np.array([1.0, 0.25]))
    for part in (zeros, values, zeros):
        total.merge(part)
    assert (total.top, total.counts.sum(), total.counts[0]) == (1.0, 22, 20)


def test_equal_ranges_lose_nothing() -> None:
    """Where one is the other doubled, bins go together whole."""
    a, b, whole = Magnitudes(), Magnitudes(), Magnitudes()
    values = np.append(np.abs(rows(6, 3000)) / 8, 1.0)
    for part in (a, whole):
        part.add(values)
    for value in (1.0, 3.5):
        b.add(np.array([value]))
        whole.add(np.array([value]))
    a.merge(b)
    assert (a.top, a.limit) == (whole.top, whole.limit)
    np.testing.assert_array_equal(a.counts, whole.counts)


def test_the_same_part_twice_is_refused(tmp_path: Path) -> None:
    a, _ = parts_of("columns", tmp_path)
    for kept in (Statistics(others=[a, a]), Statistics(tmp_path / "c", [a])):
        with pytest.raises(LlmcError, match="two parts are of the same samples") as caught:
            gathered(walk("columns"), samples(0, 3), kept)
        assert str(a) in str(caught.value.at)


def test_a_part_that_was_stopped_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        gathered(walk(), samples(), Statistics(tmp_path / "a"), 4)
    with pytest.raises(LlmcError, match="not gathered to its end") as caught:
        merged("moments", tmp_path / "a")
    assert caught.value.found == "4 samples so far"


def test_a_walk_waits_for_parts(tmp_path: Path) -> None:
    """And what is gathered meanwhile is kept."""
    a, b = parts_of("columns", tmp_path)
    for folder, first, last in ((a, 0, 3), (b, 3, 7)):
        kept = Statistics(folder, [f for f in (a, b) if f != folder])
        with kept.opened():
            gather(walk("columns"), known(samples(first, last), kept))
            second = walk("magnitudes")
            if folder == a:
                with pytest.raises(WaitsForParts, match="nothing of walk 2 yet") as caught:
                    gather(second, known(samples(first, last), kept))
                assert caught.value.at == str(b)
            else:
                gather(second, known(samples(first, last), kept))
    kept = Statistics(others=[b, a])
    gather(walk("columns"), Given(kept=kept))
    third = walk("magnitudes")
    gather(third, Given(kept=kept))
    same(second, third)
    kept = Statistics(tmp_path / "c", parts=2)
    with pytest.raises(WaitsForParts, match="not all parts") as caught, kept.opened():
        gather(walk("columns"), known(samples(), kept))
    assert caught.value.found == "1 of 2"
    assert (tmp_path / "c" / "walk1.npz").exists()


def test_a_walk_begins_anew_where_the_last_one_has_seen_more(tmp_path: Path) -> None:
    """Its graph is another then, as norms are divided otherwise: the model is the same."""
    other = network(5)

    def both(first: Sequence[Any], graph: Graph) -> list[str]:
        said: list[str] = []
        kept = Statistics(tmp_path, say=said.append)
        with kept.opened():
            gather(walk("columns"), known(first, kept))
            gather(walk("magnitudes", graph), known(first, kept))
        return said

    both(samples(0, 3), network())
    assert both(samples(), other) == [
        "calibration: walk 1: 3 samples were there",
        "calibration: walk 2 begins anew, as walk 1 has seen other samples",
    ]
    with pytest.raises(LlmcError, match="another model"):
        both(samples(), network())


def test_walks_that_do_not_depend_on_each_other_do_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moments of a large model take several walks over one graph."""
    monkeypatch.setattr(moments, "MEMORY", 1)
    graph = network()
    sites = [n.inputs[0] for n in graph.nodes if n.op == "linear"]
    for name, first, last in (("a", 0, 3), ("b", 3, 7)):
        kept = Statistics(tmp_path / name, parts=2)
        with kept.opened(), pytest.raises(WaitsForParts):
            list(of_inputs(graph, sites, known(samples(first, last), kept)))
        assert len(kept.walks) == 2
    found = list(of_inputs(graph, sites, Given(kept=Statistics(others=[tmp_path / "a", tmp_path / "b"]))))
    for (_, ours), (_, theirs) in zip(found, of_inputs(graph, sites, known(samples())), strict=True):
        np.testing.assert_allclose(ours.products, theirs.products, rtol=1e-5, atol=0.05)


def test_zeros_stay_together_in_narrower_bins() -> None:
    fine, coarse = Magnitudes(), Magnitudes()
    fine.add(np.array([1.05]))
    coarse.add(np.append(np.zeros(1000), 0.51))
    coarse.add(np.array([1.03]))  # twice doubled: 2.04 in as many bins
    fine.merge(coarse)
    assert (fine.counts[0], fine.counts[1], fine.counts.sum()) == (1000, 0, 1003)
    assert METHODS["minmax"](fine) == 1.05
