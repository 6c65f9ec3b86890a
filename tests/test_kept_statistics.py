"""Statistics that are kept as they are gathered: stopped anywhere, gone on with, and refused where they are others'."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from walks import KINDS, ROWS, WIDTH, Array, Stopped, gathered, known, network, rows, same, samples, walk

from llmc.compiler import kept_statistics
from llmc.compiler.dims import symbol
from llmc.compiler.gathering import Walk, gather
from llmc.compiler.given import Given, giving
from llmc.compiler.graph import Graph, Source, Weight
from llmc.compiler.kept_statistics import Statistics
from llmc.compiler.moments import Columns, Moments
from llmc.compiler.ops import input_, make
from llmc.compiler.weight_file import write_weights
from llmc.errors import LlmcError


@pytest.fixture(autouse=True)
def every_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are written after each sample."""
    monkeypatch.setattr(kept_statistics, "SECONDS", 0.0)
    monkeypatch.setattr(kept_statistics, "_SHARE", 0)


# --- going on


@pytest.mark.parametrize("stop", [1, 4, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_stopped_goes_on_to_the_same_bits(kind: str, stop: int, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        gathered(walk(kind), samples(), Statistics(tmp_path / "s"), stop)
    said: list[str] = []
    kept = Statistics(tmp_path / "s", say=said.append)
    same(gathered(walk(kind), samples(), kept), gathered(walk(kind), samples()))
    assert said == [f"calibration: walk 1: {stop} samples were there"]
    assert kept.walks == [{"walk": 1, "kind": kind, "there": stop, "added": 7 - stop, "merged": 0}]


def test_rows_that_wait_are_kept(tmp_path: Path) -> None:
    """Multiplied by themselves they would make other bits."""
    gathered(walk(), samples(0, 3), Statistics(tmp_path))
    found = np.load(tmp_path / "walk1.npz")
    assert next(v.shape for name, v in found.items() if name.startswith("0.waiting")) == (ROWS, WIDTH)


def test_an_interrupt_before_it_is_time_to_write_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_statistics, "SECONDS", 1e9)
    with pytest.raises(Stopped):
        gathered(walk(), samples(), Statistics(tmp_path), 3)
    kept = Statistics(tmp_path)
    gathered(walk(), samples(), kept)
    assert kept.walks[0]["there"] == 3


def test_what_stops_between_two_sites_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One site would have seen a sample more than the other."""
    broken = walk("columns")
    monkeypatch.setattr(kept_statistics, "SECONDS", 1e9)
    count = 0

    def add(x: Array) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise Stopped
        Columns.add(broken.seen[1], x)  # type: ignore[arg-type]

    monkeypatch.setattr(broken.seen[1], "add", add)
    with pytest.raises(Stopped):
        gathered(broken, samples(), Statistics(tmp_path))
    assert list(tmp_path.iterdir()) == []
    same(gathered(walk("columns"), samples(), Statistics(tmp_path)), gathered(walk("columns"), samples()))


def test_what_is_complete_is_not_run_again_nor_written(tmp_path: Path) -> None:
    first = gathered(walk(), samples(), Statistics(tmp_path))
    before = (tmp_path / "walk1.npz").stat()
    same(gathered(walk(), samples(), Statistics(tmp_path), stop=0), first)
    assert (tmp_path / "walk1.npz").stat() == before


def test_samples_that_were_added_to_the_data_are_gathered(tmp_path: Path) -> None:
    gathered(walk(), samples(0, 5), Statistics(tmp_path))
    same(gathered(walk(), samples(), Statistics(tmp_path)), gathered(walk(), samples()))


def test_a_value_that_is_not_finite_leaves_what_was_before(tmp_path: Path) -> None:
    bad = [*samples(0, 3), {"x": np.full((1, ROWS, WIDTH), np.nan, np.float32)}]
    with pytest.raises(LlmcError, match="not finite") as caught:
        gathered(walk(), bad, Statistics(tmp_path))
    assert caught.value.found == "NaN in sample 4"
    with pytest.raises(LlmcError, match="not finite") as caught:
        gathered(walk(), bad, Statistics(tmp_path))
    assert caught.value.found == "NaN in sample 4"  # counted with those that were there
    kept = Statistics(tmp_path)
    same(gathered(walk(), samples(), kept), gathered(walk(), samples()))
    assert kept.walks[0]["there"] == 3


def test_moments_that_overflow_are_those_of_the_values_not_damage(tmp_path: Path) -> None:
    """`want_enough` refuses them, with the layer."""
    large = [{"x": sample["x"] * np.float32(1e30)} for sample in samples(0, 3)]
    with np.errstate(over="ignore", invalid="ignore"):
        first, again = (gathered(walk(), large, Statistics(tmp_path)) for _ in range(2))
    for ours, theirs in zip(again.seen, first.seen, strict=True):
        assert not np.isfinite(ours.parts()["products"]).all()
        np.testing.assert_array_equal(ours.parts()["top"], theirs.parts()["top"])


def test_memory_is_that_of_one_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_statistics, "SECONDS", 1e9)

    def peak(count: int) -> int:
        data = ({"x": rows(i, 1, ROWS, WIDTH)} for i in range(count))
        kept, looked = Statistics(tmp_path / str(count)), walk("columns")
        tracemalloc.start()
        with kept.opened():
            gather(looked, Given(lambda graph: data, kept=kept))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(2)
    assert peak(150) < peak(15) + 10 * 4 * ROWS * WIDTH


# --- refused


def arrays_of(path: Path) -> dict[str, Array]:
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files if not name.endswith(".json")}


def changed(path: Path, facts: dict[str, Any] | None = None, **arrays: Array) -> None:
    """The file with other facts or arrays, well made."""
    with zipfile.ZipFile(path) as archive:
        held = json.loads(archive.read("walk.json"))
    stored = {name.rpartition(".")[0]: value for name, value in arrays_of(path).items()}
    parts = [Weight(value, name) for name, value in {**stored, **arrays}.items()]
    with path.open("wb") as file:
        write_weights(file, parts, {"walk.json": json.dumps({**held, **(facts or {})})})


def flipped(path: Path) -> None:
    """One bit of the last sum of the first site."""
    with zipfile.ZipFile(path) as archive:
        info = next(m for m in archive.infolist() if m.filename.startswith("0.products"))
        at = info.header_offset + info.file_size
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def pickled(path: Path) -> None:
    held = arrays_of(path)
    with zipfile.ZipFile(path) as archive:
        facts = archive.read("walk.json")
    name = next(n for n in held if n.startswith("0.products"))
    np.savez(path, **{**held, name: np.array([{}], dtype=object)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("walk.json", facts)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "ends early": (lambda p: p.write_bytes(p.read_bytes()[:-100]), "damaged", "zip"),
    "empty": (lambda p: p.write_bytes(b""), "damaged", ""),
    "another bit": (flipped, "damaged", "other values"),
    "objects": (pickled, "damaged", "Python objects"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "damaged", "directory"),
    "NaN": (
        lambda p: changed(p, **{"0.top": np.full(WIDTH, np.nan, np.float32)}),
        "damaged",
        "top of first: float32 [12]",
    ),
    "negative": (lambda p: changed(p, **{"0.rows": np.array(-1)}), "damaged", "rows of first"),
    "other sizes": (lambda p: changed(p, **{"1.top": np.zeros(3, np.float32)}), "damaged", "float32 [3]"),
    "other dtype": (lambda p: changed(p, **{"1.top": np.zeros(WIDTH)}), "damaged", "float64 [12]"),
    "newer": (lambda p: changed(p, {"format": 2}), "version 2, this llmc reads 1", ""),
    "more facts": (lambda p: changed(p, {"more": 1}), "damaged", "other fields"),
    "a count that is none": (lambda p: changed(p, {"samples": "3"}), "damaged", "other fields"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_told(name: str, tmp_path: Path) -> None:
    damage, problem, found = DAMAGE[name]
    gathered(walk(), samples(0, 3), Statistics(tmp_path / "a"))
    damage(tmp_path / "a" / "walk1.npz")
    own, other = Statistics(tmp_path / "a"), Statistics(others=[tmp_path / "a"])
    for kept, data in ((own, samples(0, 3)), (other, samples(3, 5))):
        with pytest.raises(LlmcError, match=problem) as caught:
            gathered(walk(), data, kept)
        assert str(caught.value.at).startswith(str(tmp_path / "a" / "walk1.npz"))
        assert found in str(caught.value)


OTHERS: dict[str, tuple[Callable[[], Walk], str]] = {
    "weights": (lambda: walk(graph=network(5)), "other values of the weight second.weight"),
    "names": (lambda: walk(graph=network(2, "third")), "nothing of third.weight"),
    "kind": (lambda: walk("columns"), "moments, where columns are gathered"),
    "fewer": (
        lambda: Walk(replace(network(), outputs={"y": network().outputs["y"]}), ["first"], [Moments(WIDTH)]),
        "2 sites, where 1 are watched",
    ),
    "ranges": (lambda: replace(walk(), also=[np.ones(2)]), "the same weights, in another graph"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_statistics_of_others_are_refused(name: str, tmp_path: Path) -> None:
    make_walk, found = OTHERS[name]
    gathered(walk(), samples(0, 3), Statistics(tmp_path / "a"))
    for kept in (Statistics(tmp_path / "a"), Statistics(others=[tmp_path / "a"])):
        with pytest.raises(LlmcError, match="of another model, or of other options") as caught:
            gathered(make_walk(), samples(0, 3), kept)
        assert found in str(caught.value.found)
        assert caught.value.at == str(tmp_path / "a" / "walk1.npz")


@pytest.mark.parametrize("data", [samples(1, 6), samples(0, 3), samples(0, 4)[::-1]], ids=len)
def test_other_samples_are_refused(data: Any, tmp_path: Path) -> None:
    gathered(walk(), samples(0, 4), Statistics(tmp_path))
    with pytest.raises(LlmcError, match="of other samples") as caught:
        gathered(walk(), data, Statistics(tmp_path))
    assert caught.value.found == "4 samples, which are not the first of --calib"


def test_places_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    cases = (
        (Statistics(tmp_path / "file"), "cannot keep statistics: File exists"),
        (Statistics(tmp_path / "model"), "the folder holds other things"),
        (Statistics(others=[tmp_path / "empty"]), "there are no statistics"),
    )
    for kept, problem in cases:
        with pytest.raises(LlmcError, match=problem):
            gathered(walk(), samples(), kept)


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    problem = "another run keeps its statistics there"
    with Statistics(tmp_path).opened(), pytest.raises(LlmcError, match=problem):
        gathered(walk(), samples(), Statistics(tmp_path))
    (tmp_path / "walk1.npz.7-8.part").write_text("what a killed run had begun")
    gathered(walk(), samples(), Statistics(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["walk1.npz"]


def test_where_a_file_of_the_source_lies_says_nothing_of_the_model() -> None:
    """Another release of a library has it on another line."""

    def key(line: str, path: str = "layer") -> str:
        x = input_("x", "f32", (symbol("batch"), WIDTH))
        y = make("relu", (x,), Source(path, line))
        return Walk(Graph((x,), {"y": y}, {"batch": (1, 8)}), ["y"], [Columns(WIDTH)]).key

    assert key("modeling.py:10") == key("modeling.py:12") != key("modeling.py:10", "other")


def test_passes_see_nothing_of_it_where_nothing_is_asked_for() -> None:
    with giving(known(samples())) as nothing:
        assert nothing is None
        same(gathered(walk(), samples()), gathered(walk(), samples(), Statistics()))
