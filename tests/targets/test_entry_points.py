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


@pytest.mark.parametrize(
    "name",
    [
        "armv7",
        "armv7l",
        "armhf",
        "ARMv6",
        "arm32",
        "i686",
        "x86_32",
        "rpi2",
        "rpi-zero",
        "riscv32",
        "cortex-m4",
    ],
)
def test_32_bits_are_not_supported(name: str) -> None:
    """No name that is near is offered: it would be for another processor."""
    with pytest.raises(LlmcError, match="32-bit processors are not supported") as caught:
        host.find_target(name)
    assert "did you mean" not in str(caught.value)
    assert "known: native, x86" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("aarch64", "arm"),
        ("arm64", "arm"),
        ("armv8", "arm"),
        ("AMD64", "x86"),
        ("x86_64", "x86"),
        ("gpu", "cuda"),
        ("rpi", "rpi5"),
        ("graviton", "graviton3"),
    ],
)
def test_other_names_of_targets(name: str, meant: str) -> None:
    with pytest.raises(LlmcError, match=f"did you mean {meant}[?] known: native") as caught:
        host.find_target(name)
    assert "32-bit" not in str(caught.value)
