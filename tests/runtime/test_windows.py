"""Texts of a model whose state has a window: those of the model that holds all, whatever is gone back to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generating import PROMPT

from llmc.runtime import load

OPTIONS = {"max_new_tokens": 150, "eos_token_id": []}
LONG = [int(token) for token in np.random.default_rng(0).integers(1, 40, 200)]


@pytest.fixture(scope="module")
def narrow(windowed: Path) -> Iterator[Any]:
    with load(windowed, threads=1) as model:
        yield model


def alone(model: Any, prompt: list[int], **options: Any) -> list[int]:
    """The tokens that a new session gives."""
    with model.session() as session:
        ids: list[int] = model.generate(prompt, session=session, **{**OPTIONS, **options}).ids
        return ids


def test_the_text_is_that_of_a_model_without_a_window(narrow: Any, model: Any) -> None:
    wanted = model.generate(PROMPT, max_new_tokens=50, eos_token_id=[]).ids
    assert alone(narrow, PROMPT)[: len(wanted)] == wanted


@pytest.mark.parametrize("more", [{}, {"do_sample": True, "seed": 4}], ids=["likeliest", "drawn"])
def test_guesses_are_taken_back(narrow: Any, windowed: Path, more: Any) -> None:
    """By the model where they are looked up, and by the assistant that made them."""
    prompt = LONG[:60] * 2
    wanted = alone(narrow, prompt, **more)
    for count in (1, 6, 30):
        assert alone(narrow, prompt, prompt_lookup_num_tokens=min(count, 7), **more) == wanted
    with load(windowed, threads=1) as twin:
        found = narrow.generate(prompt, assistant_model=twin, **OPTIONS, **more)
    assert found.ids == wanted
    assert found.usage.accepted == found.usage.guessed > 100


def test_what_has_left_the_window_is_computed_again(narrow: Any) -> None:
    with narrow.session() as session:
        first = narrow.generate(LONG, session=session, **OPTIONS)
        again = narrow.generate(LONG, session=session, **OPTIONS)
        assert (again.ids, again.usage.cached_tokens) == (first.ids, 0)
        on = narrow.generate([*LONG, *first.ids[:-8], 9], session=session, max_new_tokens=5)
        assert on.usage.cached_tokens == len(LONG) + len(first.ids) - 8
        assert on.ids == alone(narrow, [*LONG, *first.ids[:-8], 9], max_new_tokens=5)


def test_lists_and_beams(narrow: Any) -> None:
    prompts = [LONG, LONG[:90], PROMPT, LONG[5:150]]
    found = narrow.generate(prompts, prompt_lookup_num_tokens=3, **OPTIONS)
    assert [made.ids for made in found] == [alone(narrow, prompt) for prompt in prompts]
    (beam,) = narrow.search(LONG, num_beams=3, max_new_tokens=100, eos_token_id=[])
    assert len(beam.ids) == 100


def test_a_session_holds_its_window(narrow: Any) -> None:
    with narrow.session() as session:
        narrow.generate(LONG, session=session, **OPTIONS)
        assert session.lengths["past"] == 349
        assert session._report().state_bytes <= (32 + 64) * 8 + 64


def test_all_of_a_window_of_one_may_leave(build: Any, tmp_path: Path) -> None:
    """Zeros are added where nothing of what was there stays."""
    with load(build.write_windowed(tmp_path / "one.llmc", 1), threads=1) as model, model.session() as session:
        for length in (3, 64, 70, 128):
            session.resize(past=length)
            assert session.lengths["past"] == length
        assert session._report().state_bytes <= 2 * 64 * 8 + 64
