"""Which of llmc's instruction sets this processor has, which tests ran them, and which had to leave some out."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace

import pytest

from llmc.targets import TARGETS, Cpu, Target, host

X86 = {cpu.name: cpu for cpu in TARGETS["x86"].cpus}  # best first
KINDS = ("run by", "emulated by", "left out by", "skipped")
_NOTED: dict[str, dict[str, set[str]]] = {kind: defaultdict(set) for kind in KINDS}


def here() -> list[Cpu]:
    """Those that this processor has, best first."""
    return [cpu for cpu in X86.values() if host.runs_here(cpu)]


def choose(names: Iterable[str]) -> list[str]:
    """Of the variants called `names` those to test; the running test is noted with them, and with the others."""
    given, able = list(names), {cpu.name for cpu in here()}
    for name in given:
        note("run by" if name in able else "left out by", name)
    chosen = [name for name in given if name in able]
    assert chosen, f"this processor has none of {', '.join(given)}"
    return chosen


class _Absent(Cpu):
    """One that this processor lacks: nobody runs its code, so it is that of the best that there is."""

    def code_for(self, family: str) -> Cpu:
        return here()[0].code_for(family)


@contextmanager
def code_of_this_processor() -> Iterator[None]:
    """Compiles inside the block leave out LLVM's work for what this processor lacks, most of an int8 model's.

    The artifact has the variants all the same, and `choose` notes them. tests/targets/test_every_variant.py compiles
    what is left out.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "TARGETS", {name: _able(target) for name, target in TARGETS.items()})
        yield


def _able(target: Target) -> Target:
    """`target` without code that an x86 processor like this one cannot run."""
    return replace(target, cpus=tuple(map(_or_absent, target.cpus)))


def _or_absent(cpu: Cpu) -> Cpu:
    if cpu.name not in X86 or host.runs_here(cpu):
        return cpu
    return _Absent(**{f.name: getattr(cpu, f.name) for f in fields(cpu)})


def lacking(cpu: Cpu) -> str:
    """What this processor lacks for `cpu`, in Linux's words; empty if nothing."""
    if cpu.machine != host.machine():
        return cpu.machine
    needed = set().union(*(flags for bit, flags in host.FLAGS.items() if cpu.features & bit))
    missing = ", ".join(sorted(needed - host.host_flags()))
    return missing or ("" if host.runs_here(cpu) else "the system's leave to use tiles")


def note(kind: str, variant: str, test: str = "") -> None:
    """A test, by default the running one, did this with a variant; nothing is noted outside of tests."""
    test = test or os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    if test:
        _NOTED[kind][variant].add(test)


def noted() -> dict[str, dict[str, list[str]]]:
    """Kind -> variant -> tests, as xdist can carry it."""
    return {kind: {name: sorted(tests) for name, tests in found.items()} for kind, found in _NOTED.items()}


def join(other: Mapping[str, Mapping[str, Iterable[str]]]) -> None:
    """Add what another process noted."""
    for kind, found in other.items():
        for name, tests in found.items():
            _NOTED[kind][name] |= set(tests)


def summary() -> list[str]:
    """A line for each instruction set: how many tests ran it, left it out of a comparison, or were skipped."""
    lines = []
    for name, cpu in X86.items():
        counts = {kind: len(_NOTED[kind][name]) for kind in KINDS}
        said = ", ".join(f"{kind} {count} tests" for kind, count in counts.items() if count)
        missing = lacking(cpu)
        lacks = f"; this processor lacks {missing}" if missing else ""
        lines.append(f"{name:12}{said or 'in no test'}{lacks}")
    return lines
