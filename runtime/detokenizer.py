"""Tokens to text, piece by piece: no piece ends within a character, and a text that ends a stream is never shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are no character yet


class Detokenizer:
    """Gives the text that each token adds; all pieces together are the text of all tokens.

    Only where bytes are no characters a decoder may see them otherwise once it knows what follows.

    A window of tokens is decoded: what one is worth depends on the one before it, as the first of a text has no blank.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._begin = self._told = 0  # tokens of the window; of them the first are told

    def add(self, token: int) -> str:
        """The text that is certain now; empty while a character lacks bytes."""
        self._ids.append(token)
        before, after = self._texts()
        if len(after) <= len(before) or after.endswith(_UNFINISHED):
            return ""
        self._begin, self._told = self._told, len(self._ids)
        return after[len(before) :]

    def finish(self) -> str:
        """What was held back."""
        before, after = self._texts()
        self._begin = self._told = len(self._ids)
        return after[len(before) :]

    def _texts(self) -> tuple[str, str]:
        return self._decode(self._ids[self._begin : self._told]), self._decode(self._ids[self._begin :])


class StopStrings:
    """Lets text through up to the first of some texts; what may be its beginning waits."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = tuple(stops), ""
        self.found: str | None = None

    def add(self, piece: str) -> str:
        """What may be shown. Once `found` is set nothing more may."""
        if self.found is not None:
            return ""
        text = self._held + piece
        places = {stop: place for stop in self._stops if (place := text.find(stop)) >= 0}
        if places:
            self.found = min(places, key=lambda stop: (places[stop], -len(stop)))
            self._held = ""
            return text[: places[self.found]]
        waiting = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - waiting :]
        return text[: len(text) - waiting]

    def finish(self) -> str:
        """What waited for nothing."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many letters at the end of a text begin the stop."""
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if stop.startswith(text[len(text) - n :])), 0)
