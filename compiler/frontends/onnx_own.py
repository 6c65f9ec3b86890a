"""What llmc has written about a graph into an ONNX file (`to_onnx/`): bounds of dims, and which inputs are states."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmc.compiler.dims import Bounds, parse_dim
from llmc.compiler.frontends.imported import LARGEST
from llmc.errors import LlmcError

PRODUCER = "llmc"
DIMS, STATES = "llmc.dims", "llmc.states"  # keys of the metadata
PAST, PRESENT = "past.", "present."  # before the name of a state: its value when a call begins, and after it
_BOUNDS = re.compile(r"(\w+)=(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class Own:
    """What is said; nothing of a file that something else wrote.

    Args:
        dims: the bounds of named dims; the sizes of inputs are expressions of these.
        states: name of a state -> the axis that grows.
    """

    dims: Mapping[str, Bounds] = field(default_factory=dict)
    states: Mapping[str, int | None] = field(default_factory=dict)

    def knows(self, text: str) -> bool:
        """Whether the name of an axis is a size in these dims."""
        try:
            size = parse_dim(text)
        except LlmcError:
            return False
        return not isinstance(size, int) and {s.name for s in size.free_symbols} <= self.dims.keys()


def bounds_text(dims: Mapping[str, Bounds]) -> str:
    """`batch=1..8, seq=1..512`"""
    return ", ".join(f"{name}={low}..{high}" for name, (low, high) in dims.items())


def own(model: Any) -> Own:
    """What a model says, if llmc made it and what it says makes sense."""
    facts = {p.key: p.value for p in model.metadata_props}
    if model.producer_name != PRODUCER:
        return Own()
    found = {m[1]: Bounds(int(m[2]), int(m[3])) for m in _BOUNDS.finditer(facts.get(DIMS, ""))}
    dims = {name: b for name, b in found.items() if 0 <= b.low <= b.high <= LARGEST and b.high}
    return Own(dims, _states(facts.get(STATES, "{}")))


def _states(text: str) -> Mapping[str, int | None]:
    try:
        states = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(states, dict):
        return {}
    return {name: axis for name, axis in states.items() if axis is None or type(axis) is int}
