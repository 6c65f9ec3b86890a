"""What a storage format says to the products of CPUs: its arrays by panels, and the code that decodes one.

A format is an op whose value is the weight (compiler/ops/storage.py) and, for CPUs, a reader (`formats.py`). With
no reader, the pass `unpack` makes plain weights of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from llmc.compiler.calls import Call, Kernel, Operand, Packed
from llmc.compiler.dims import product
from llmc.compiler.graph import Node
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, i64

# (emitter, cpu, the stored arrays, panel, f32 memory, vectors): writes the panel, f32 `[k][width]`, to the memory.
Decode = Callable[[Emitter, Cpu, list[Buffer], Expr, Buffer, int], None]
Values = Callable[[Emitter, list[Buffer], Expr, Expr, int, list[Expr]], list[Expr]]


@dataclass(frozen=True)
class Lines:
    """How a panel is decoded in registers, a line after the other: a line is `step` steps of k by `width` columns.

    Args:
        k: how many steps there are.
        block: steps that share what `begin` gives, a multiple of `step`; the last block may be shorter.
        begin: (emitter, the stored arrays, panel, block) -> a register for each vector of columns.
        values: (emitter, the stored arrays, panel, line, vector of columns, what `begin` gave) -> its float32s, a
            register for each step of the line.
        avx512: the same by instructions that AVX-512 has, to the same bits, if there is a better way.
    """

    k: int
    width: int
    block: int
    step: int
    begin: Callable[[Emitter, list[Buffer], Expr, Expr], list[Expr]]
    values: Values
    avx512: Values | None = None

    def on(self, cpu: Cpu) -> Lines:
        """As this CPU decodes them best."""
        if self.avx512 is None or cpu.machine != "x86_64" or cpu.lanes < LANES:
            return self
        return replace(self, values=self.avx512)

    def emit(self, e: Emitter, parts: list[Buffer], panel: Expr, use: Callable[..., None]) -> None:
        """`use(first step, how many, registers by step and vector)` for every line, in order."""
        whole, rest = divmod(self.k, self.block)
        with e.loop(0, whole, "block") as block:
            self._block(e, parts, panel, block, self.block, use)
        if rest:
            self._block(e, parts, panel, i64(whole), rest, use)

    def _block(
        self, e: Emitter, parts: list[Buffer], panel: Expr, block: Expr, steps: int, use: Callable[..., None]
    ) -> None:
        shared = self.begin(e, parts, panel, block)
        first = e.let(block * (self.block // self.step))
        with e.loop(0, steps // self.step, "line") as line:
            self._line(e, parts, panel, e.let(first + line), self.step, shared, use)
        if steps % self.step:
            self._line(e, parts, panel, e.let(first + steps // self.step), steps % self.step, shared, use)

    def _line(
        self,
        e: Emitter,
        parts: list[Buffer],
        panel: Expr,
        line: Expr,
        steps: int,
        shared: list[Expr],
        use: Callable[..., None],
    ) -> None:
        columns = [self.values(e, parts, panel, line, v, shared) for v in range(self.width // LANES)]
        use(e.let(line * self.step), steps, [[column[s] for column in columns] for s in range(steps)])


def decode_lines(
    e: Emitter, cpu: Cpu, parts: list[Buffer], panel: Expr, held: Buffer, count: int, *, lines: Lines
) -> None:
    """A `Decode` of a format that has lines."""

    def store(first: Expr, steps: int, values: list[list[Expr]]) -> None:
        for step in range(steps):
            for vector, value in enumerate(values[step]):
                e.store(held, (first + step) * lines.width + vector * LANES, value)

    lines.on(cpu).emit(e, parts, panel, store)


@dataclass(frozen=True)
class Stored:
    """A compressed weight as a product reads it.

    Args:
        kind: names the format; everything that the code of `decode` depends on.
        operands: its arrays, each packed by panels.
        dtypes: of these as they lie in memory.
        decode: emits the code that decodes one panel.
        lines: how few rows decode it in registers, if the format can.
    """

    kind: str
    operands: tuple[Packed, ...]
    dtypes: tuple[str, ...]
    decode: Decode = field(compare=False)
    lines: Lines | None = field(default=None, compare=False)


Reader = Callable[[Node, int], Stored]  # of (a node of the op with constant inputs, columns of a panel)


def rows_call(node: Node, kernel: Kernel, operands: tuple[Operand, ...], moved: float) -> Call:
    """The call of a kernel whose items are rows.

    Args:
        moved: bytes of a row, as read and as written.
    """
    rows = product(node.shape[:-1])
    return Call(kernel, operands, (), rows, int(node.shape[-1]), 0, rows * int(moved), node.source)
