"""Reading JSON that somebody else wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmc.compiler.frontends.regular_file import want_regular
from llmc.errors import LlmcError

MOST_BYTES = 16 << 20
MOST_LEVELS = 100


def read_json(file: Path, most: int = MOST_BYTES) -> Any:
    """The JSON in a file of `most` bytes.

    Raises:
        LlmcError: it cannot be read or parsed, or is larger or nested deeper than such files are.
    """
    want_regular(file, most)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if _levels(content) > MOST_LEVELS:
            raise RecursionError
        return content
    except OSError as error:
        raise LlmcError(f"cannot read {file.name}: {error.strerror}", at=str(file)) from None
    except RecursionError:
        raise LlmcError(
            f"{file.name} is nested too deeply", at=str(file), found=f"more than {MOST_LEVELS} levels"
        ) from None
    except ValueError as error:
        raise LlmcError(
            f"{file.name} is not valid JSON: {error}", at=str(file), hint="download it again"
        ) from None


def _levels(content: Any) -> int:
    """How deep lists and objects are nested; no more is counted than one above what is allowed."""
    depth, level = 0, _nested([content])
    while level and depth <= MOST_LEVELS:
        depth += 1
        level = [inner for outer in level for inner in _nested(outer)]
    return depth


def _nested(outer: Any) -> list[Any]:
    """The lists and objects directly within one."""
    parts = outer.values() if isinstance(outer, dict) else outer
    return [part for part in parts if isinstance(part, dict | list)]


def read_object(file: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """The JSON object in a file of `most` bytes.

    Raises:
        LlmcError: as `read_json`, or it is something else.
    """
    content = read_json(file, most)
    if not isinstance(content, dict):
        raise LlmcError(f"{file.name} is not a JSON object", at=str(file), found=type(content).__name__)
    return content
