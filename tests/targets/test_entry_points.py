"""Targets of other packages: entry points in the group `llmc.targets`."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest

from llmc.errors import LlmcError
from llmc.targets import Target, host
from llmc.targets.cpu.variants import AVX2


class Point:
    """An entry point that loads to `found`, or raises it."""

    value = "other_package:TARGET"

    def __init__(self, name: str, found: Any) -> None:
        self.name, self.found = name, found

    def load(self) -> Any:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def offer(monkeypatch: pytest.MonkeyPatch, *points: Point) -> None:
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: points if group == host.ENTRY_POINTS else ()
    )


def test_a_target_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Target("x86-other", "another", "x86_64-linux-gnu", "x86_64-linux-gnu.2.17", (AVX2,))
    offer(monkeypatch, Point("x86-other", other), Point("x86", other))
    assert host.find_target("x86-other") is other
    assert host.find_target("x86") is not other, "llmc's own names stay"
    assert "x86-other" in host.all_targets()
    with pytest.raises(LlmcError, match="did you mean x86-other"):
        host.find_target("x86-othr")


@pytest.mark.parametrize(
    ("found", "message"), [("x86", "is not a target"), (ImportError("no y"), "fails: ImportError: no y")]
)
def test_broken_ones_are_named(monkeypatch: pytest.MonkeyPatch, found: Any, message: str) -> None:
    offer(monkeypatch, Point("mine", found))
    with pytest.raises(LlmcError, match=message) as caught:
        host.find_target("mine")
    assert "'mine'" in caught.value.problem
    assert host.find_target("x86").name == "x86"
