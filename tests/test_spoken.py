"""bench/spoken.py: how many words are wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script as a module; its neighbours are found, and forgotten afterwards."""
    bench = Path(__file__).parent.parent / "bench"
    monkeypatch.syspath_prepend(str(bench))
    before = set(sys.modules)
    import spoken as module

    yield module
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(bench) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("said", "heard", "wrong"),
    [
        ("", "", 0),
        ("a b c", "a b c", 0),
        ("a b c", "", 3),
        ("", "a b", 2),
        ("a b c d", "a x c d", 1),
        ("a b c d", "a c d", 1),
        ("a b c d", "a b b c d", 1),
        ("a b c d", "b c d e", 2),
        ("the train leaves", "a trained leave", 3),
    ],
)
def test_the_fewest_words_to_change(spoken: Any, said: str, heard: str, wrong: int) -> None:
    assert spoken.errors(said.split(), heard.split()) == wrong


def test_words_are_compared_without_letters_case_and_marks(spoken: Any) -> None:
    assert spoken.words("Two hundred sheep, thirty COWS!") == ["200", "sheep", "30", "cows"]
    assert spoken.words("I'll wait.") == ["i", "will", "wait"]
