"""docs/support.md from what `support.py` has found."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]

_HEAD = """# Models that llmc takes

`python bench/support.py` made this page: of every model type that the installed transformers has, a small random
model of its main task was imported and compared with PyTorch by the interpreter at three shapes (one row, padded
rows, long rows), and some were compiled for x86-64 with AVX2 and compared again. Figures are the largest difference
as a part of the output's largest value. Any size and any fine-tuned weights of a type take the same way, and every
import compares its graph with the model's own numbers. Rows are kept from run to run: some are of an earlier llmc.

"""
_TASKS_HEAD = """# Every task of the families that are used most

`python bench/support.py --tasks` made this page: as [support.md](support.md), but of all classes that the installed
transformers has for a task of these model types.

"""
_STATES = {
    "right": "match PyTorch to 1e-4",
    "wrong": "differ from PyTorch",
    "refused": "are refused with a sentence",
    "unmade": "could not be made small by rule, so nothing is known of them",
    "limit": "took longer than the limit",
    "crash": "ended without a sentence",
}


def page(rows: Mapping[str, Row], tasks: bool = False) -> str:
    """The page of model types, or of all classes of some."""
    import torch
    import transformers

    counts = Counter(row["state"] for row in rows.values())
    compiled = sum(row.get("compiled") is not None for row in rows.values())
    what = "classes" if tasks else "model types"
    lines = [
        f"transformers {transformers.__version__}, torch {torch.__version__}: {len(rows)} {what} tried.",
        "",
    ]
    lines += [f"- {counts[state]} {words}" for state, words in _STATES.items() if counts[state]]
    lines += [f"- {compiled} were compiled and match too", "", "## Right", ""]
    lines += ["| model type | class | task | interpreter | compiled |", "|---|---|---|---|---|"]
    lines += [_right(row) for row in _of(rows, "right")]
    for state in list(_STATES)[1:]:
        if counts[state]:
            lines += [
                "",
                f"## {counts[state]} {_STATES[state]}",
                "",
                "| model type | class | reason |",
                "|---|---|---|",
            ]
            lines += [_reason(row) for row in _of(rows, state)]
    return (_TASKS_HEAD if tasks else _HEAD) + "\n".join(lines) + "\n"


def _of(rows: Mapping[str, Row], state: str) -> list[Row]:
    return [rows[name] for name in sorted(rows) if rows[name]["state"] == state]


def _right(row: Row) -> str:
    compiled = (
        f"{row['compiled']:.1e}" if row.get("compiled") is not None else cell(row.get("compile_reason", ""))
    )
    return f"| {_type(row)} | {row['class']} | {row['task']} | {row['worst']:.1e} | {compiled} |"


def _type(row: Row) -> str:
    return str(row["type"]).partition("/")[0]


def _reason(row: Row) -> str:
    reason = row.get("reason") or f"off by {row.get('worst', 0):.2g}"
    return f"| {_type(row)} | {row.get('class', '')} | {cell(reason)} |"


def cell(text: str) -> str:
    """A text as one cell of a table."""
    return re.sub(r"/tmp/\S+", "...", text.replace("|", "\\|").replace("\n", " "))[:240]


def line(row: Row) -> str:
    """One row for the terminal."""
    worst = f" {row['worst']:.1e}" if "worst" in row else ""
    compiled = f", compiled {row['compiled']:.1e}" if row.get("compiled") is not None else ""
    reason = row.get("reason") or row.get("compile_reason") or ""
    return f"{row['type']}: {row['state']}{worst}{compiled} {reason}"[:200]
