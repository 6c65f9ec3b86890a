"""Reading JSON that somebody else wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmc.errors import LlmcError


def read_json(file: Path) -> Any:
    """The JSON in a file.

    Raises:
        LlmcError: it cannot be read or parsed.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise LlmcError(f"cannot read {file.name}: {error.strerror}", at=str(file)) from None
    except ValueError as error:
        raise LlmcError(
            f"{file.name} is not valid JSON: {error}", at=str(file), hint="download it again"
        ) from None


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        LlmcError: it cannot be read or parsed, or is something else.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise LlmcError(f"{file.name} is not a JSON object", at=str(file), found=type(content).__name__)
    return content
