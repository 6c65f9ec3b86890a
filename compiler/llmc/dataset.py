"""Labelled texts, images or sounds, one row at a time: .jsonl, .csv and .tsv files, .txt with a text on each line, and
folders of files by class.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from llmc.errors import LlmcError

TEXT = ("text", "sentence", "review", "content", "question", "premise", "sentence1", "query")
PAIR = ("context", "hypothesis", "sentence2")
LABEL = ("label", "labels", "class", "category", "target", "sentiment")
MEDIA = {"image": ("image", "file", "path"), "audio": ("audio", "file", "path")}
Given = tuple[str | None, str | None, str | None, str | None]  # names of the columns, as of `Columns`
KINDS = (".jsonl", ".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class Row:
    """One text or the path of a file, where it stands, its label as written, and the value that puts it in a slice."""

    line: int
    text: str
    pair: str | None = None
    label: Any = None
    group: str | None = None


@dataclass(frozen=True)
class Columns:
    """Names of the columns; None where there is none."""

    text: str
    pair: str | None = None
    label: str | None = None
    group: str | None = None


def read_rows(
    path: Path,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    names: Sequence[str] = TEXT,
    labels: Sequence[str] = LABEL,
    group: str | None = None,
) -> Iterator[Row]:
    """The rows of a file, which is never held whole.

    Args:
        text, pair, label: columns; guessed by name where they are not given. A column that only may be there
            (pair, label) is left out when nothing fits.
        names, labels: of which one is the column of the text, and of the label, where it is not given.
        group: a column whose values make slices.

    Raises:
        LlmcError: no such file or kind of file, no rows, a column that is missing, a line that is broken.
    """
    if path.suffix not in KINDS:
        raise LlmcError("data of this kind cannot be read", at=str(path), hint=f"use {', '.join(KINDS)}")
    empty = True
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in _rows(path, file, (text, pair, label, group), (names, labels)):
                empty = False
                yield row
    except OSError as error:
        raise LlmcError(f"cannot read the data: {error.strerror or error}", at=str(path)) from error
    except UnicodeDecodeError as error:
        raise LlmcError("the data is not UTF-8 text", at=str(path), found=str(error)) from error
    if empty:
        raise LlmcError("the data is empty", at=str(path), hint="it needs at least one row")


def read_files(
    data: Path, kind: str, column: str | None = None, label: str | None = None, group: str | None = None
) -> Iterator[Row]:
    """The files that a table names, beside it, or those of a folder, of which each folder is a class.

    Args:
        kind: a key of MEDIA.

    Raises:
        LlmcError: as `read_rows`, or a folder has no folders with files in them.
    """
    if not data.is_dir():
        for row in read_rows(data, column, None, label, MEDIA[kind], group=group):
            yield replace(row, text=str(data.parent / row.text), pair=None)
        return
    if group is not None:
        raise LlmcError(f"there is no column {group!r}: a folder has none", at=str(data), hint="give a table")
    line = 0
    for folder in sorted(f for f in data.iterdir() if f.is_dir()):
        for file in sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith(".")):
            line += 1
            yield Row(line, str(file), None, folder.name)
    if not line:
        hint = f"a folder for each class, named by its label, with files of {kind} in it"
        raise LlmcError("the folder has no classes in it", at=str(data), hint=hint)


def _rows(
    path: Path,
    file: TextIO,
    given: Given,
    known: tuple[Sequence[str], Sequence[str]],
) -> Iterator[Row]:
    if path.suffix == ".txt":
        if given[3] is not None:
            problem = f"there is no column {given[3]!r}: a text file has none"
            raise LlmcError(problem, at=str(path), hint="give a table: .jsonl, .csv or .tsv")
        lines = ((n, line.strip()) for n, line in enumerate(file, 1))
        yield from (Row(n, line) for n, line in lines if line)
        return
    columns: Columns | None = None
    for line, record in _records(path, file):
        columns = columns or _columns(f"{path}, line {line}", list(record), given, known)
        yield _row(f"{path}, line {line}", line, record, columns)


def _records(path: Path, file: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Line number and fields of each record."""
    if path.suffix == ".jsonl":
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _object(f"{path}, line {number}", line)
        return
    reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    try:
        for record in reader:
            at = f"{path}, line {reader.line_num}"
            if more := record.pop(None, None):  # the key of what has no column
                raise LlmcError(
                    f"the row has more fields than the first, which names {len(record)}",
                    at=at,
                    found=f"{more}"[:60],
                    hint="a text with a separator in it stands in quotes",
                )
            yield reader.line_num, record
    except csv.Error as error:
        raise LlmcError(f"broken row: {error}", at=f"{path}, line {reader.line_num}") from error


def column_names(path: Path) -> list[str]:
    """Of the first row; none if the file has no columns."""
    if path.suffix == ".txt":
        return []
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [name for _, record in islice(_records(path, file), 1) for name in record]


def _object(at: str, line: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise LlmcError(f"broken JSON: {error}", at=at) from error
    if not isinstance(found, dict):
        raise LlmcError(
            "not a JSON object", at=at, found=line.strip()[:60], hint='{"text": "...", "label": 1}'
        )
    return found


def _columns(
    at: str,
    names: Sequence[str],
    given: Given,
    guessed: tuple[Sequence[str], Sequence[str]],
) -> Columns:
    for name in filter(None, given):
        if name not in names:
            near = get_close_matches(name, names, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else None
            raise LlmcError(
                f"there is no column {name!r}", at=at, found=f"columns {', '.join(names)}", hint=hint
            )
    text, pair, label = (
        name or next((n for n in known if n in names), None)
        for name, known in zip(given[:3], (guessed[0], PAIR, guessed[1]), strict=True)
    )
    if text is None:
        raise LlmcError(
            f"no column looks like the {'file' if guessed[0] in MEDIA.values() else 'text'}",
            at=at,
            found=f"columns {', '.join(names) or 'none'}",
            hint="name it: --text-column NAME",
        )
    return Columns(text, pair if pair != text else None, label, given[3])


def _row(at: str, line: int, record: Mapping[str, Any], columns: Columns) -> Row:
    values = {name: record.get(name) for name in (columns.text, columns.pair, columns.label) if name}
    missing = next((name for name, value in values.items() if value is None), None)
    if missing is not None:
        raise LlmcError(f"the column {missing!r} is missing", at=at, found=f"columns {', '.join(record)}")
    for name in (columns.text, columns.pair):
        if name is not None and not isinstance(values[name], str):
            raise LlmcError(f"the column {name!r} holds no text", at=at, found=repr(values[name])[:60])
    pair = values[columns.pair] if columns.pair else None
    label = values[columns.label] if columns.label else None
    group = None if columns.group is None else _group(at, columns.group, record.get(columns.group))
    return Row(line, str(values[columns.text]), pair, label, group)


def _group(at: str, name: str, value: Any) -> str | None:
    """The slice of a row, as text; None where the column is empty."""
    if isinstance(value, list | dict):
        raise LlmcError(f"the column {name!r} holds several values, so it makes no slices", at=at)
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    return text if text.strip() else None


def label_index(at: str, value: Any, labels: Sequence[str], count: int) -> int:
    """The class that a label names: by its name, by its number, or as LABEL_3.

    Raises:
        LlmcError: the model has no such class, or several.
    """
    word = str(value).strip()
    exact = [i for i, name in enumerate(labels) if name == word]
    named = exact or [i for i, name in enumerate(labels) if name.lower() == word.lower()]
    if len(named) > 1:
        found = f"classes {', '.join(map(str, named[:5]))}"
        raise LlmcError(
            f"the label {word!r} names several classes", at=at, found=found, hint="give their numbers"
        )
    if named:
        return named[0]
    number = word.upper().removeprefix("LABEL_").removesuffix(".0")
    if number.isdigit() and int(number) < count:
        return int(number)
    known = ", ".join(labels) or f"0 to {count - 1}"
    raise LlmcError(f"unknown label {word!r}", at=at, hint=f"the model has {known}; numbers count from 0")
