"""States of layers with a window: bounded memory, and the bits of one call, however a text is cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from company import in_company
from stateful_graphs import WIDTH, normal, windowed

import llmc
from llmc.compiler.interpret import step
from llmc.driver import compile_graph
from llmc.errors import LlmcError

WINDOW, LONGEST = 32, 300
ROW = 4 * WIDTH  # bytes of the keys of a position
TEXT = normal(5, 1, LONGEST, WIDTH)


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("windows") / "m.llmc"
    compile_graph(windowed(WINDOW, 20), path, target="x86-avx2")
    return path


@pytest.fixture(scope="module")
def model(layer: Path) -> Iterator[Any]:
    with llmc.load(layer, threads=2) as model:
        yield model


@pytest.fixture(scope="module")
def whole(model: Any) -> Any:
    with model.session() as session:
        return np.array(session.run({"x": TEXT})["y"])


def go_on(session: Any, *calls: int) -> Any:
    """What comes of the next so many positions of the text, call by call."""
    at, found = session.lengths["past"], []
    for rows in calls:
        found.append(np.array(session.run({"x": TEXT[:, at : at + rows]})["y"]))
        at += rows
    return np.concatenate(found, 1)


def test_it_is_what_the_interpreter_says(whole: Any) -> None:
    found = step(windowed(WINDOW, 20), {"x": TEXT}, {})[0]["y"]
    np.testing.assert_allclose(whole, found, rtol=0, atol=1e-5 * np.abs(found).max())


@pytest.mark.parametrize("calls", [(1,) * LONGEST, (7, 1, 64, 65, 1, 1, 127, 1, 1, 1, 31), (200, 100)])
def test_a_text_has_the_same_bits_however_it_is_cut(model: Any, whole: Any, calls: tuple[int, ...]) -> None:
    with model.session() as session:
        np.testing.assert_array_equal(go_on(session, *calls), whole)
        assert session.lengths == {"past": LONGEST}


def test_the_window_and_a_block_are_all_that_is_held(model: Any, whole: Any) -> None:
    each = [model.memory_needed("forward", past=past, seq=1) for past in range(LONGEST)]
    most = max(needed.states for needed in each)
    assert most == 2 * (WINDOW + 64 + 20 + 64) * ROW + 4 * 64  # of keys and values
    with model.session() as session:
        go_on(session, 150)
        go_on(session, *(1,) * 100)
        assert session._report().state_bytes <= most
        session.resize(past=LONGEST)
        assert session._report().state_bytes <= most
    with model.session(max_memory=most + max(needed.arena for needed in each)) as bound:
        np.testing.assert_array_equal(go_on(bound, *(1,) * 250), whole[:, :250])
        with pytest.raises(LlmcError, match="max_memory"):
            go_on(bound, 40)


def test_back_within_the_window_and_not_beyond(model: Any, whole: Any) -> None:
    with model.session() as session:
        go_on(session, 150, *(1,) * 50)
        for length in (199, 190, 160):
            session.rewind(length)
            np.testing.assert_array_equal(go_on(session, 1, 3), whole[:, length : length + 4])
        wanted = (
            r"cannot go back to 90: state 0.keys has a window of 32 positions, and the first 128 have left it"
        )
        for back in (session.rewind, lambda length: session.resize(past=length)):
            with pytest.raises(LlmcError, match=wanted):
                back(90)
        assert session.lengths == {"past": 164}
        np.testing.assert_array_equal(go_on(session, 1), whole[:, 164:165])
        session.rewind(0)
        np.testing.assert_array_equal(go_on(session, 5), whole[:, :5])


def test_back_to_where_the_last_call_began(model: Any, whole: Any) -> None:
    with model.session() as session:
        go_on(session, 40, 200)
        session.rewind(40)
        np.testing.assert_array_equal(go_on(session, 1, 2), whole[:, 40:43])


def test_one_that_goes_back_keeps_as_many_more(model: Any, whole: Any) -> None:
    """As a session of an assistant does, which guesses five and takes them back."""
    with model.session() as session:
        go_on(session, *(1,) * 20)
        for _ in range(50):
            go_on(session, 1, 1, 1, 1, 1)
            session.rewind(session.lengths["past"] - 4)
        np.testing.assert_array_equal(go_on(session, 2), whole[:, 70:72])


def test_forks_and_files(model: Any, whole: Any, tmp_path: Path) -> None:
    with model.session() as session, model.session() as loaded:
        go_on(session, 100, 1, 1)
        with session.fork() as other:
            np.testing.assert_array_equal(go_on(other, 70, 1), whole[:, 102:173])
        session.save(tmp_path / "s")
        loaded.load(tmp_path / "s")
        assert (tmp_path / "s").stat().st_size < 2 * 2 * (WINDOW + 64) * ROW
        np.testing.assert_array_equal(go_on(loaded, 1, 2), whole[:, 102:105])
        np.testing.assert_array_equal(go_on(session, 3), whole[:, 102:105])
        with pytest.raises(LlmcError, match="cannot go back to 20"):
            loaded.rewind(20)


def test_in_company(layer: Path) -> None:
    in_company(layer, lambda s, call, rows: {"x": normal(100 * s + call, 1, 9 * rows, WIDTH)}, (1, 3))
