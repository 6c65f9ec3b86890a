"""docs/onnx-support.md from what `onnx_conformance.py` has found."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

Row = Mapping[str, Any]

_HEAD = """# ONNX ops that llmc takes

`python bench/onnx_conformance.py` made this page: every node test and model test of the installed onnx package was
imported as it ships, run by the interpreter, and its outputs held to the test's own tolerances, or two units in the
last place of half precision and 1e-6 of the largest answer where those ask for less than rounding leaves. Floats of any
width and integers that llmc has no kernels for are computed in a wider type; a test is right if the numbers are. With
`--compile N` some of those that are right were compiled for x86 with AVX2 too, 64 of them in one artifact, and run.

"""


def page(rows: Mapping[str, Row]) -> str:
    """The page."""
    import onnx

    ordered = sorted(rows.values(), key=lambda row: (row["kind"], row["op"], row["opset"]))
    tried = sum("compiled" in row for row in ordered)
    lines = [
        f"onnx {onnx.__version__}: {len(rows)} tests tried, {tried} of those that are right compiled as well.",
        "",
    ]
    lines += ["| tests | all | import | right | wrong | compiled: tried | right | wrong |", f"|{'---|' * 8}"]
    lines += [_counted(kind, list(group)) for kind, group in groupby(ordered, lambda row: row["kind"])]
    lines += [
        "",
        "| op | opset | tests | import | right | compiled | why not |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        _line(key, list(group)) for key, group in groupby(ordered, lambda row: (row["op"], row["opset"]))
    ]
    return _HEAD + "\n".join(lines) + "\n"


def _counted(kind: str, rows: Sequence[Row]) -> str:
    tried = sum("compiled" in row for row in rows)
    compiled = f"{tried} | {_compiled(rows, 'right')} | {_compiled(rows, 'wrong')}"
    return f"| {kind} | {len(rows)} | {_imports(rows)} | {_in(rows, 'right')} | {_in(rows, 'wrong')} | {compiled} |"


def _line(key: tuple[str, int], rows: Sequence[Row]) -> str:
    compiled = _compiled(rows, "right")
    reasons = Counter(_reason(row) for row in rows if row["state"] != "right")
    reasons += Counter(f"compiled, {row['compiled']}"[:160] for row in rows if _fails_compiled(row))
    told = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
    opset = key[1] or ""
    return f"| {key[0]} | {opset} | {len(rows)} | {_imports(rows)} | {_in(rows, 'right')} | {compiled or ''} | {told} |"


def _imports(rows: Sequence[Row]) -> int:
    return sum(row["state"] in ("right", "wrong", "no run") for row in rows)


def _in(rows: Sequence[Row], state: str) -> int:
    return sum(row["state"] == state for row in rows)


def _compiled(rows: Sequence[Row], state: str) -> int:
    return sum(row.get("compiled", "").partition(":")[0] == state for row in rows)


def _fails_compiled(row: Row) -> bool:
    return row.get("compiled", "right") != "right"


def _reason(row: Row) -> str:
    """One line without the place in the file."""
    text = row["reason"].splitlines()[0]
    text = re.sub(r"^(\S+) x\d+ at [^:]*: ", r"\1: ", text)
    return f"{row['state']}: {text}".replace("|", "\\|")[:160]
