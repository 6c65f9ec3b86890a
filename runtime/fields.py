"""A value out of a JSON file that knows where it stands, so that every complaint names file and field."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from llmc.errors import LlmcError

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


class Field:
    """One value: `file` is the file's path, `place` the way to it inside, such as "inputs[0].dtype".

    Each reader below returns the value as the type asked for, or raises an LlmcError.
    """

    def __init__(self, value: Any, file: str, place: str) -> None:
        self.value, self.file, self.place = value, file, place

    def wrong(self, expected: str) -> LlmcError:
        """The error to raise when this field is not what it should be."""
        found = repr(self.value)
        return LlmcError(
            f"field {self.place or '(all)'} must be {expected}",
            at=self.file,
            found=found if len(found) <= 60 else found[:57] + "...",
            hint="the manifest is damaged or from another version: compile the model again",
        )

    def __contains__(self, key: str) -> bool:
        """Whether there is a field `key` that is not null."""
        return isinstance(self.value, dict) and self.value.get(key) is not None

    def __getitem__(self, key: str) -> Field:
        if key not in self._object():
            raise self._child(key, "nothing").wrong("present")
        return self._child(key, self.value[key])

    def mapping(self) -> dict[str, Field]:
        return {key: self._child(key, value) for key, value in self._object().items()}

    def _object(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return self.value

    def _child(self, key: str, value: Any) -> Field:
        return Field(value, self.file, f"{self.place}.{key}".lstrip("."))

    def items(self) -> list[Field]:
        if not isinstance(self.value, list):
            raise self.wrong("an array")
        return [Field(v, self.file, f"{self.place}[{i}]") for i, v in enumerate(self.value)]

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.wrong("a text")
        try:
            self.value.encode()
        except UnicodeEncodeError:
            raise self.wrong("valid Unicode") from None
        return self.value

    def integer(self, low: int, high: int) -> int:
        if type(self.value) is not int or not low <= self.value <= high:
            raise self.wrong(f"an integer within {low}..{high}")
        return self.value

    def number(self, low: float = -math.inf) -> float:
        if type(self.value) not in (int, float) or not abs(self.value) < 1e300 or self.value < low:
            raise self.wrong("a number" if low == -math.inf else f"a number, at least {low:g}")
        return float(self.value)

    def pair(self, low: int, high: int) -> tuple[int, int]:
        """[a, b] with low <= a <= b <= high."""
        entries = self.items()
        if len(entries) != 2:
            raise self.wrong("an array of two integers")
        a = entries[0].integer(low, high)
        return a, entries[1].integer(a, high)

    def sha256(self) -> str:
        if not _SHA256.match(self.text()):
            raise self.wrong("64 hexadecimal digits")
        return str(self.value)

    def one_of(self, choices: Iterable[str]) -> str:
        if self.text() not in choices:
            raise self.wrong(f"one of {', '.join(choices)}")
        return str(self.value)

    def scalar(self) -> str | float | bool | None:
        if isinstance(self.value, bool) or self.value is None:
            return self.value
        return self.text() if isinstance(self.value, str) else self.number()
