"""Names of dynamic axes: `batch` and `seq` where the model is about texts, else what its file says."""

from __future__ import annotations

import re

Asked = int | tuple[int, int]  # of a dynamic axis: its one size, or the least and the largest

SEGMENTS = ("token_type_ids", "segment_ids")
USUAL = ("batch", "seq")
TEXT = ("input_ids", "attention_mask", "position_ids", *SEGMENTS)


class AxisNames:
    """Gives every dynamic axis of a file's inputs its name; equal texts of the file get equal names."""

    def __init__(self) -> None:
        self._given: dict[str, str] = {}

    def name(self, tensor: str, axis: int, rank: int, text: str, rows: bool = True) -> str:
        """The name of an axis.

        Args:
            tensor: the input's name.
            axis, rank: which axis of how many.
            text: what the file calls it; empty if it does not.
            rows: whether the first axis may be the batch: of states of layers it is not, and the second no sequence.
        """
        usual = {0: "batch", 1: "seq"}.get(axis, f"size{axis}")
        if not text and axis == 1 and not rows:
            return self._unlike(_plain(f"{tensor}_{axis}"))
        if (tensor in TEXT and axis < 2) or not text or text.startswith(f"{tensor}_dynamic_axes"):
            return self._given.setdefault(text, usual) if text else usual
        if text in USUAL:
            return self._given.setdefault(text, self._unlike(text))
        if text not in self._given:
            free = usual not in self._given.values() and (axis == 0 or (axis == 1 and rank == 2))
            self._given[text] = usual if free else self._unlike(_plain(text))
        return self._given[text]

    def _unlike(self, name: str) -> str:
        """The name, or one like it that no other axis has."""
        while name in self._given.values():
            name += "_"
        return name


def _plain(text: str) -> str:
    """An identifier that is like the text."""
    plain = re.sub(r"\W", "_", text)
    return plain if plain[:1].isalpha() else f"dim_{plain}"
