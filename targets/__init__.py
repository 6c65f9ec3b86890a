"""Where a graph can run: targets as data, and the backends that make code for them (`backend.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llmc.targets.cpu import variants as cpu
from llmc.targets.cuda import variants as cuda
from llmc.targets.target import Cpu, Target

__all__ = ["TARGETS", "Cpu", "Target"]

TARGETS: Mapping[str, Target] = MappingProxyType({**cpu.TARGETS, **cuda.TARGETS})
