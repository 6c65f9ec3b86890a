"""llmc's own passes; `PASSES` is the only list of them, `LEVELS` the pipelines of -O0 to -O3."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llmc.compiler.pipeline import Pass
from llmc.passes.fold import Fold
from llmc.passes.share import Cse, Tie
from llmc.passes.simplify import Simplify

PASSES: Mapping[str, type[Pass]] = MappingProxyType({p.name: p for p in (Simplify, Fold, Cse, Tie)})

LEVELS: tuple[str, ...] = ("", "tie,simplify,fold,simplify,cse")
