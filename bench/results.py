"""Results that bench/peers.py wrote, read again and joined."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmc.errors import LlmcError


def read_result(path: Path) -> dict[str, Any]:
    """What --json wrote.

    Raises:
        LlmcError: it cannot be read, or is something else.
    """
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise LlmcError(f"cannot read the result: {error}", at=str(path)) from None
    if not isinstance(result, dict) or not {"machine", "rows", "spin", "absent"} <= set(result):
        raise LlmcError("this is no result of bench/peers.py", at=str(path), hint="--json writes one")
    return result


def join(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Results of several runs as one.

    Raises:
        LlmcError: they are of different machines, libraries or instructions, so cannot share a table.
    """
    first = results[0]
    for result in results[1:]:
        for name in ("machine", "isa", "held", "versions"):
            if result[name] != first[name]:
                raise LlmcError(f"the results differ in {name}", found=f"{first[name]}, {result[name]}")
    return first | {
        "rows": [row for result in results for row in result["rows"]],
        "absent": {place: why for result in results for place, why in result["absent"].items()},
        "spin": [entry for result in results for entry in result["spin"]],
    }
