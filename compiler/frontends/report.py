"""Everything a program uses that cannot be imported, as one error."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from llmc.compiler.graph import Source
from llmc.errors import LlmcError

LACKING = "of the model cannot be imported"  # in the error of `report`


class UnsupportedError(Exception):
    """This call cannot be imported; `advice` tells the user a way out."""

    def __init__(self, reason: str, advice: str = "") -> None:
        self.reason, self.advice = reason, advice
        super().__init__(reason)


@dataclass(frozen=True)
class Problem:
    """One call that cannot be imported."""

    op: str
    reason: str
    advice: str
    source: Source


def report(
    problems: Iterable[Problem],
    hint: str = "change these parts of the model, or add converters to compiler/frontends/aten_*.py",
    by_place: bool = True,
) -> LlmcError:
    """One error for all problems; an op at the same line of repeated layers is one entry with a count.

    Args:
        by_place: whether the same reason at another place is an entry of its own.
    """
    groups: dict[tuple[str, ...], list[Problem]] = {}
    for problem in problems:
        where = (problem.source.line, _layer(problem.source.path)) if by_place else ()
        groups.setdefault((problem.op, problem.reason, *where), []).append(problem)
    counts = Counter(group[0].op for group in groups.values())
    entries = "".join(f"\n    {_entry(group)}" for group in groups.values())
    return LlmcError(
        f"{len(counts)} op{'s' * (len(counts) > 1)} {LACKING}: {', '.join(counts)}",
        found=entries.lstrip("\n").strip(),
        hint=hint,
    )


def _layer(path: str) -> str:
    """`encoder.layer.3.attention` -> `encoder.layer.*.attention`"""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path)


def _entry(group: list[Problem]) -> str:
    first = group[0]
    paths = {p.source.path for p in group}
    alike = {_layer(path) for path in paths}
    path = first.source.path if len(paths) == 1 or len(alike) > 1 else _layer(first.source.path)
    place = Source(path or "the top module", first.source.line)
    others = f" and {len(alike) - 1} other places" if len(alike) > 1 else ""
    advice = f"; {first.advice}" if first.advice else ""
    return f"{first.op} x{len(group)} at {place}{others}: {first.reason}{advice}"
