"""What a storage format says to the products of CPUs: its arrays by panels, and the code that decodes one.

A format is an op whose value is the weight (compiler/ops/storage.py) and, for CPUs, a reader (`formats.py`). With
no reader, the pass `unpack` makes plain weights of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from llmc.compiler.calls import Packed
from llmc.compiler.graph import Node
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import Buffer, Emitter, Expr

# (emitter, cpu, the stored arrays, panel, f32 memory, vectors): writes the panel, f32 `[k][width]`, to the memory.
Decode = Callable[[Emitter, Cpu, list[Buffer], Expr, Buffer, int], None]


@dataclass(frozen=True)
class Stored:
    """A compressed weight as a product reads it.

    Args:
        kind: names the format; everything that the code of `decode` depends on.
        operands: its arrays, each packed by panels.
        dtypes: of these as they lie in memory.
        decode: emits the code that decodes one panel.
    """

    kind: str
    operands: tuple[Packed, ...]
    dtypes: tuple[str, ...]
    decode: Decode = field(compare=False)


Reader = Callable[[Node, int], Stored]  # of (a node of the op with constant inputs, columns of a panel)
