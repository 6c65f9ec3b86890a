"""What the interpreter says of a large graph is asked once; what is compared with it is made anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stateful_graphs

from llmc import driver, kept_answers
from llmc.compiler import extensions
from llmc.compiler.graph import Graph
from llmc.compiler.module import Module
from llmc.compiler.samples import Session, play, samples
from llmc.errors import LlmcError
from llmc.targets import store


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(store.VARIABLE, str(tmp_path / "kept"))
    monkeypatch.setattr(kept_answers, "LEAST", 0)
    return tmp_path / "kept" / "answers"


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """The graphs that the interpreter was asked about."""
    asked: list[Graph] = []

    def noted(graph: Graph, session: Any) -> Any:
        asked.append(graph)
        return play(graph, session)

    monkeypatch.setattr(kept_answers, "play", noted)
    return asked


def same(found: Any, wanted: Any) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert list(one) == list(other)
        for name, value in one.items():
            assert value.dtype == other[name].dtype
            np.testing.assert_array_equal(value, other[name])


def test_asked_once(played: list[Graph], place: Path) -> None:
    graph = stateful_graphs.causal()
    tried = samples(graph)
    wanted = [play(graph, session) for session in tried]
    same(kept_answers.plays(graph, tried), wanted)
    assert len(played) == len(tried) == len(list(place.iterdir()))
    same(kept_answers.plays(stateful_graphs.causal(), samples(graph)), wanted)
    assert len(played) == len(tried)


def test_other_weights_or_inputs_are_asked_about(
    played: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = stateful_graphs.causal()
    tried = samples(graph)
    first = kept_answers.plays(graph, tried)
    count = len(played)
    kept_answers.plays(graph, [Session(tried[0].states, tried[0].calls[:1])])
    assert len(played) == count + 1
    weights = stateful_graphs.weights
    monkeypatch.setattr(stateful_graphs, "weights", lambda seed, *shape: weights(seed + 50, *shape))
    other = stateful_graphs.causal()
    second = kept_answers.plays(other, tried)
    assert len(played) == count + 1 + len(tried)
    assert not np.array_equal(first[0]["y"], second[0]["y"])


def test_what_is_damaged_is_asked_again(played: list[Graph], place: Path) -> None:
    graph = stateful_graphs.causal()
    tried = samples(graph)
    wanted = kept_answers.plays(graph, tried)
    for path in place.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    same(kept_answers.plays(graph, tried), wanted)
    kept = store.Store(place)
    for path in place.iterdir():
        kept.put(path.name, b"whole, and no archive")
    same(kept_answers.plays(graph, tried), wanted)
    assert len(played) == 3 * len(tried)


def many(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(kept_answers, "LEAST", 1 << 24)


def extension(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(extensions, "loaded", lambda: ("one",))


def off(patch: pytest.MonkeyPatch) -> None:
    patch.setenv(store.VARIABLE, "off")


@pytest.mark.parametrize("change", [many, extension, off])
def test_nothing_is_kept(
    change: Any, played: list[Graph], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of small graphs, with extensions, whose ops may mean something else, and where it is off."""
    change(monkeypatch)
    graph = stateful_graphs.causal()
    for _ in range(2):
        kept_answers.plays(graph, samples(graph))
    assert len(played) == 2 * len(samples(graph))
    assert not place.exists()


def test_a_second_compile_asks_nothing_and_is_the_same(played: list[Graph], tmp_path: Path) -> None:
    module = Module.of(stateful_graphs.causal(), "step")
    for name in ("a", "b"):
        driver.compile_graph(module, tmp_path / name, target="x86-avx2", quant="w8", allow_noop=True)
        made = len(played)
        played.clear()
        assert bool(made) == (name == "a")
    for file in ("selftest.bin", "weights.bin", "module.so", "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_what_differs_from_kept_answers_is_found(tmp_path: Path) -> None:
    """A weight that somebody has written to since is still called what it was."""
    module = Module.of(stateful_graphs.causal(), "step")
    driver.compile_graph(module, tmp_path / "a", target="x86-avx2")
    constants = (n for n in module.functions["step"].nodes if n.op == "constant" and n.type.rank == 2)
    array = next(constants).attributes["value"].array
    array.flags.writeable = True
    array[0] += 1
    with pytest.raises(LlmcError, match="wrote into the graph"):
        driver.compile_graph(module, tmp_path / "b", target="x86-avx2")
    assert not (tmp_path / "b").exists()
