"""The texts of a command: its arguments, or lines of standard input; one that is no text does not stop the others."""

from __future__ import annotations

import os
import sys
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmc.errors import LlmcError


@dataclass(frozen=True)
class Line:
    """A text and its pair, if it has one; where it was given; what is wrong with it, empty if nothing is."""

    place: str
    text: str = ""
    pair: str | None = None
    problem: str = ""


def read_lines(texts: Sequence[str], pairs: Sequence[str]) -> list[Line]:
    """Each text, `-` standing for the lines of stdin; there are as many pairs as texts, or none.

    Raises:
        LlmcError: there is nothing on stdin, or nothing but blank lines.
    """
    lines = [line for number, text in enumerate(texts, 1) for line in _lines(text, number)]
    if not pairs:
        return lines
    if len(pairs) != len(lines):
        import click

        raise click.UsageError(f"{len(pairs)} --pair for {len(lines)} --text; give one for each.")
    return [_paired(line, pair) for line, pair in zip(lines, pairs, strict=True)]


def _lines(text: str, number: int) -> Iterator[Line]:
    if text != "-":
        yield _decoded(os.fsencode(text), f"--text {number}")
        return
    blank = True
    for count, raw in enumerate(sys.stdin.buffer, 1):
        raw = raw.removeprefix(BOM_UTF8) if count == 1 else raw
        blank = blank and not raw.strip()
        yield _decoded(raw.removesuffix(b"\n").removesuffix(b"\r"), f"line {count}")
    if blank:
        raise LlmcError("no text on standard input", hint="pipe in one text a line")


def _decoded(raw: bytes, place: str) -> Line:
    try:
        return Line(place, raw.decode())
    except UnicodeDecodeError as error:
        return Line(place, problem=f"is not UTF-8: byte 0x{raw[error.start]:02x} at {error.start + 1}")


def _paired(line: Line, pair: str) -> Line:
    made = _decoded(os.fsencode(pair), line.place)
    problem = line.problem or (made.problem and f"has a pair that {made.problem}")
    return Line(line.place, line.text, made.text, problem)


def encode(
    model: Any, lines: Sequence[Line], prompt: str | None, strict: bool = False
) -> tuple[list[Line], Any]:
    """The lines, what is wrong with them noted, and the encodings of those with which nothing is.

    Args:
        strict: whether something is wrong with a text longer than the model takes; it is cut otherwise.

    Raises:
        LlmcError: the model takes no text, has no such prompt, or nothing of these texts.
    """
    from llmc.cli import answers
    from llmc.runtime.encoder import BadTexts

    lines = list(lines)
    while good := [i for i, line in enumerate(lines) if not line.problem]:
        kept = [lines[i] for i in good]
        pairs = [line.pair for line in kept if line.pair is not None]
        try:
            return lines, answers.encode(
                model, [line.text for line in kept], pairs, prompt, truncate=not strict
            )
        except BadTexts as error:
            for row, reason in error.rows.items():
                bad = lines[good[row]]
                lines[good[row]] = Line(bad.place, bad.text, bad.pair, reason)
    return lines, None


def want_all(lines: Sequence[Line], what: str = "texts") -> None:
    """The last thing a command does.

    Raises:
        LlmcError: texts could not be run; it names each.
    """
    bad = [f"{line.place} {line.problem}" for line in lines if line.problem]
    if not bad:
        return
    more = f"; and {len(bad) - 10} more" if len(bad) > 10 else ""
    problem = (
        f"{len(bad)} of {len(lines)} {what} could not be run"
        if len(lines) > 1
        else f"the {what.removesuffix('s')} could not be run"
    )
    raise LlmcError(problem, found="; ".join(bad[:10]) + more)
