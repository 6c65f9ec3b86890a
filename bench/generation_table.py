"""docs/causal.md from what `generation.py` has found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from support_table import cell

Row = Mapping[str, Any]

_HEAD = """# Causal models that generate

`python bench/generation.py` made this page: of every model type for which transformers has a causal language model, a
small random model was saved as a folder and imported. Where it became the function `step`
([generation.md](generation.md)) the interpreter ran a prompt, 40 tokens one by one and two calls of several tokens.
"One pass" is the largest difference of a logit to those of the whole text in one call, "PyTorch" that to transformers'
own model, both as a part of the largest logit. "States" says how many grow with every token, as keys and values do, and
how many keep their shape, as those of recurrences and convolutions.

A model that does not generate still gives the logits of whole texts, and a warning says why, unless it is refused.

"""
_STATES = {
    "step": "generate token by token, and match one pass and PyTorch to 1e-4",
    "wrong": "become a function whose logits differ",
    "whole": "give the logits of whole texts only",
    "refused": "are refused with a sentence",
    "limit": "took longer than the limit",
    "crash": "ended without a sentence",
    "unmade": "could not be made small by rule, so nothing is known of them",
    "untried": "were not tried",
}


def page(found: Mapping[str, Row], types: Mapping[str, str]) -> str:
    """The page.

    Args:
        found: what was found, by model type.
        types: all there are, and their classes.
    """
    rows = {n: found.get(n, {"type": n, "class": c, "state": "untried"}) for n, c in types.items()}
    counts = Counter(row["state"] for row in rows.values())
    lines = [_HEAD + _tried(found), ""]
    lines += [f"- {counts[state]} {words}" for state, words in _STATES.items() if counts[state]]
    lines += ["", "| model type | class | generates | one pass | PyTorch | states: grow, keep | why not |"]
    lines += ["|---|---|---|---|---|---|---|"]
    order = list(_STATES)
    lines += [_row(row) for row in sorted(rows.values(), key=lambda r: (order.index(r["state"]), r["type"]))]
    return "\n".join(lines) + "\n"


def _tried(rows: Mapping[str, Row]) -> str:
    """How many were tried, when and of which versions."""
    import torch

    dates = sorted(row["date"] for row in rows.values())
    versions = ", ".join(sorted({row["transformers"] for row in rows.values()}))
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return f"{when}, transformers {versions}, torch {torch.__version__}: {len(rows)} model types tried."


def _row(row: Row) -> str:
    says = {"step": "yes", "unmade": "unknown", "limit": "unknown", "untried": "unknown"}.get(
        row["state"], "no"
    )
    figures = [f"{row[key]:.1e}" if key in row else "" for key in ("one_pass", "torch")]
    states = "{grow}, {keep}".format(**row["states"]) if "states" in row else ""
    return f"| {row['type']} | {row['class']} | {says} | {' | '.join(figures)} | {states} | {_why(row)} |"


def _why(row: Row) -> str:
    if row["state"] in ("step", "wrong", "untried"):
        return ""
    kind = {"refused": "refused: ", "crash": "crash: ", "unmade": "not made: "}.get(row["state"], "")
    return kind + cell(row.get("reason", ""))


def line(row: Row) -> str:
    """One row for the terminal."""
    figures = " ".join(f"{key} {row[key]:.1e}" for key in ("one_pass", "torch") if key in row)
    reason = row.get("reason", "")
    return f"{row['type']}: {row['state']} {figures} {row.get('states', '')} {reason} ({row['seconds']} s)"
