"""What `llmc explain` tells, as values."""

from __future__ import annotations

from dataclasses import dataclass

from llmc.gains import Gain


@dataclass(frozen=True)
class Step:
    """What one kernel call does: `read` and `written` are types of numbers, `seconds` None if not measured."""

    kernel: str
    read: tuple[str, ...]
    written: tuple[str, ...]
    flops: str
    bytes: str
    seconds: float | None


@dataclass(frozen=True)
class Missed:
    """A rule that stopped, where, and why.

    Args:
        at: the node at which it was tried, `stopped` that which does not fit: op, name and place.
        declined: its pattern was there, and it said why it does not apply.
        count: how many equal ones this stands for.
    """

    rule: str
    change: str
    at: str
    stopped: str
    reason: str
    matched: int
    declined: bool
    count: int = 1


@dataclass(frozen=True)
class Story:
    """One node: what it was made of, by which rules, how it runs, and which rules stopped at it.

    Args:
        gain: what its layer gains by what was asked for, where it is one.
    """

    name: str
    op: str
    type: str
    source: str
    became: str
    made_of: tuple[str, ...]
    rewritten: tuple[tuple[str, str, str], ...]
    steps: tuple[Step, ...]
    misses: tuple[Missed, ...]
    farther: int
    gain: Gain | None = None
