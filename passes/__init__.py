"""llmc's own passes; `PASSES` is the only list of them, `LEVELS` the pipelines of -O0 to -O3."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llmc.compiler.pipeline import Pass
from llmc.passes.fold import Fold
from llmc.passes.fuse import Fuse
from llmc.passes.qkv import Qkv
from llmc.passes.quantise import Qfuse, Quantize
from llmc.passes.share import Cse, Tie
from llmc.passes.simplify import Simplify
from llmc.passes.tabulate import Tabulate

_ALL: tuple[type[Pass], ...] = (Simplify, Fold, Cse, Tie, Tabulate, Fuse, Qkv, Quantize, Qfuse)
PASSES: Mapping[str, type[Pass]] = MappingProxyType({p.name: p for p in _ALL})

_EXACT = "tie,simplify,fold,simplify,tie,cse"
LEVELS: tuple[str, ...] = (
    "",
    _EXACT,
    f"{_EXACT},tabulate,fuse,fold,cse",
    f"{_EXACT},tabulate,fuse,fold,qkv,fold,tie,cse",
)
