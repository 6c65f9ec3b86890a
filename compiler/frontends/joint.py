"""Sizes that bound each other, such as those of what is held and what is new: they are never large together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Joint(NamedTuple):
    """Sizes that are no more than `most` together, such as of tokens held and new ones."""

    names: tuple[str, ...]
    most: int

    def allows(self, sizes: Mapping[str, Any]) -> Any:
        """Whether sizes can occur, or the arrays of them where; those of which it says nothing can."""
        if not sizes.keys() >= set(self.names):
            return True
        return sum(sizes[name] for name in self.names) <= self.most


ANY = Joint((), 0)
