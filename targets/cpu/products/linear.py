"""Products with constant weights: register tiles over packed panels, epilogue fused.

The weight `w[n, k]` is packed once, at compile time, as `[ceil(n / width)][k][width]` (`pack_panels`): a panel
of `width` columns is one stretch of memory. One layout serves every CPU. A tile of `rows x width` results stays
in registers while k runs in order, one fma for each step.

Few rows stream the panel once, at the speed of memory. More go in blocks of k, whose part of the panel stays in
L1 while all tiles of rows pass over it and the next part is fetched (Goto and van de Geijn, "Anatomy of
High-Performance Matrix Multiplication", 2008). Between blocks the sums wait in scratch memory and each goes on
where it stopped, so that neither blocks, tiles nor threads change a bit of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import sympy

from llmc.compiler.calls import Call, Kernel, Operand, Packed, Panels
from llmc.compiler.dims import ceil_div, product
from llmc.compiler.graph import DTYPES, Node, Weight
from llmc.errors import LlmcError
from llmc.targets.cpu.products.blocking import Blocking, ProductShape, Schedule
from llmc.targets.cpu.storage.packing import pack_halves, pack_panels, pad_columns
from llmc.targets.lowering import Lowerings
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, dtype_of, fma, i64, mod, splat
from llmc.targets.tir.epilogue import Coming, finish
from llmc.targets.tir.later import tirx
from llmc.targets.tir.tiling import tiles, zeros

BFLOAT16 = "bfloat16"  # the storage format whose weights are read as plain ones are


def tile_shape(cpu: Cpu, width: int, height: int = 0) -> tuple[int, int]:
    """Rows, `height` at most if given, and 16-lane vectors of a register tile."""
    vectors = width // LANES if cpu.wide else 1
    return min(rows_that_fit(cpu, vectors), height or {1: 12, 2: 12, 3: 8, 4: 6}[vectors]), vectors


def rows_that_fit(cpu: Cpu, vectors: int) -> int:
    """Rows of sums that fit the registers beside a row of weights and one broadcast."""
    pieces = LANES // cpu.lanes  # registers that make one 16-lane vector
    return max(1, (cpu.vectors - 1) // pieces // vectors - 1)


def lower_linear(node: Node, schedule: Schedule | None = None) -> Call:
    """One call for `linear`: items are (panel, block of rows), the rows of a panel next to each other."""
    x, w, *extras = node.inputs
    held = w.inputs[0] if w.op == BFLOAT16 else w
    if held.op != "constant":
        hint = "use matmul for two computed operands"
        raise LlmcError("linear: the weight is computed at run time", hint=hint)
    if w.dtype not in ("f32", "f16") or {i.dtype for i in (x, *extras)} != {"f32"}:
        raise LlmcError(f"linear: no kernel for {x.dtype} x {w.dtype}")
    shape = product_shape(node)
    n, k, epilogue = shape.n, shape.k, shape.epilogue
    schedule = schedule or Schedule.default(n)
    width = schedule.width
    weight: Weight = held.attributes["value"]
    memory = "f16" if shape.dtype == "bf16" else w.dtype
    packed = _panels(weight, width, k, shape.dtype)
    operands: list[Any] = [
        x,
        packed,
        *extra_operands(node, extras, f"pad{width}", partial(pad_columns, width=width)),
    ]
    rows = product(x.shape[:-1])
    kernel = Kernel(
        "linear",
        (n, k, width, epilogue, shape.dtype, *((schedule,) if schedule != Schedule(width) else ())),
        ("f32", memory, *("f32",) * (len(operands) - 1)),
        1,
        partial(emit_linear, n=n, k=k, schedule=schedule, epilogue=epilogue, dtype=shape.dtype),
        4 * schedule.scratch(k),
        about=None if held is not w else (shape, schedule),  # no schedules are searched for stored weights
    )
    return Call(
        kernel,
        (*operands, node),
        (rows,),
        -(-n // width) * ceil_div(rows, schedule.rows),
        k * (width // LANES) * sympy.Min(rows, schedule.rows),
        2 * rows * n * k,
        4 * rows * (k + n) + n * k * DTYPES[memory].itemsize,
        node.source,
    )


def _panels(weight: Weight, width: int, k: int, dtype: str) -> Packed:
    if dtype == "bf16":
        return Packed(weight, f"bfloat16 {width}", partial(pack_halves, width=width))
    return Packed(weight, f"panels{width}", partial(pack_panels, width=width), Panels(width, k))


def extra_operands(node: Node, extras: Sequence[Node], layout: str, pad: Callable[..., Any]) -> list[Operand]:
    """What the epilogue of `node` reads, a bias as `pad` makes it, which is called `layout`."""
    pending, operands = iter(extras), list[Operand]()
    for step in node.attributes["epilogue"]:
        if step == "bias":
            bias = next(pending)
            if bias.op != "constant":
                raise LlmcError(f"{node.op}: the bias is computed at run time")
            operands.append(Packed(bias.attributes["value"], layout, pad))
        elif step == "residual":
            operands.append(next(pending))
    return operands


def product_shape(node: Node) -> ProductShape:
    """What a `linear` computes, as schedules are found by."""
    w = node.inputs[1]
    n, k = (int(d) for d in w.shape)
    dtype = "bf16" if w.op == BFLOAT16 else w.dtype
    return ProductShape(n, k, dtype, node.attributes["epilogue"])


def lower_scheduled(node: Node, schedules: Mapping[ProductShape, Schedule]) -> Call | None:
    """`linear` with a plain weight that `schedules` has a schedule for."""
    known = node.inputs[1].op == "constant" and product_shape(node) in schedules
    return lower_linear(node, schedules[product_shape(node)]) if known else None


def emit_linear(
    symbol: str,
    cpu: Cpu,
    *,
    n: int,
    k: int,
    schedule: Schedule,
    epilogue: tuple[str, ...],
    dtype: str = "f32",
) -> Any:
    """out[m, n] = epilogue(x[m, k] . w[n, k]^T); weights of another `dtype` are widened in registers

    An item is a panel and a block of rows. Items of one panel and group that follow each other run as one.
    """
    e = Emitter(symbol)
    x, w = e.pointer("x", "f32"), e.pointer("w", "f16" if dtype == "bf16" else dtype)
    extras = [e.pointer(step, "f32") for step in _read(epilogue)]
    out = e.pointer("out", "f32")
    m = e.scalar("m")
    w = e.alias(w, "uint16") if dtype == "bf16" else w
    sums = e.scratch() if schedule.scratch(k) else None  # the variants' parameters are the same
    schedule, width, each = schedule.on(cpu), schedule.width, schedule.rows
    cut, panels = schedule.cut(k), -(-n // width)
    group = cut.group
    store = partial(finish, e, n=n, width=width, epilogue=epilogue, extras=extras, out=out)
    residual = [extra for step, extra in zip(_read(epilogue), extras, strict=True) if step == "residual"]
    added = residual[0] if residual else None
    body = Panel(e, cpu, x, w, cut, schedule, sums, store, (added, n))
    blocks = e.let(div(m + (each - 1), each))
    with e.loop(e.begin, e.end, "item") as item:
        number = e.let(div(item, panels * group))
        within = e.let(item - number * (panels * group))
        size = e.let(tirx.min(i64(group), blocks - number * group))
        panel = e.let(div(within, size))
        part = e.let(within - panel * size)
        with e.when(tirx.any(part < 1, item <= e.begin)):
            items = e.let(tirx.min(size - part, e.end - item))
            first = e.let((number * group + part) * each)
            body.rows(panel, first, e.let(tirx.min(items * each, m - first)))
    return e.function()


def _read(epilogue: tuple[str, ...]) -> list[str]:
    """The steps that read an operand."""
    return [step for step in epilogue if step in ("bias", "residual")]


class Panel:
    """Writes the products of rows with one panel.

    `finish(acc, row, column, rows, vectors)` stores a tile whose sums are complete.
    """

    def __init__(
        self,
        e: Emitter,
        cpu: Cpu,
        x: Buffer,
        w: Buffer,
        cut: Blocking,
        schedule: Schedule,
        sums: Buffer | None,
        finish: Callable[..., None],
        residual: tuple[Buffer | None, int] = (None, 0),
    ) -> None:
        self.e, self.cpu, self.x, self.w, self.cut, self.finish = e, cpu, x, w, cut, finish
        self.height, self.vectors = tile_shape(cpu, cut.width, schedule.height)
        self.ahead = schedule.ahead
        self.sums = sums if cut.scratch else None  # that wait for the next block
        self.residual = residual  # and the length of its rows

    def rows(self, panel: Expr, first: Expr, count: Expr) -> None:
        """Rows first..first+count: those of one tile as wide as the panel stream, more go by blocks of k."""
        e, cut = self.e, self.cut
        start = e.let(panel * (cut.k * cut.width))
        column = e.let(panel * cut.width)
        least = min(self.height, rows_that_fit(self.cpu, cut.width // LANES)) + 1
        with e.when(count < least):
            tiles(e, first, count, least - 1, lambda row, h: self._stream(row, h, start, column))
        if least <= self.height:  # the tile is narrower than the panel; two of them may not do to fetch it
            few = tirx.all(count >= least, count <= 2 * self.height)
            with e.when(few):
                self._blocks(first, count, start, column, True, min(least, self._half()))
            least = 2 * self.height + 1
        with e.when(count >= least):
            self._blocks(first, count, start, column, False, self._half())

    def _half(self) -> int:
        """Rows of each tile at least, where there is more than one."""
        return (self.height + 1) // 2

    def _blocks(self, first: Expr, count: Expr, start: Expr, column: Expr, few: bool, least: int) -> None:
        """All tiles over one block of k, then over the next."""
        e = self.e
        with e.loop(0, self.cut.blocks, "block") as block:
            for part in self._parts(self.vectors):

                def tile(row: Expr, h: int, part: tuple[int, int] = part) -> None:
                    self._block(row, h, part, block, start, column, first, few)

                tiles(e, first, count, self.height, tile, least)

    def _parts(self, vectors: int) -> list[tuple[int, int]]:
        """(first column, vectors) of each pass over a panel."""
        step = vectors * LANES
        return [(at, min(vectors, (self.cut.width - at) // LANES)) for at in range(0, self.cut.width, step)]

    def _stream(self, row: Expr, rows: int, start: Expr, column: Expr) -> None:
        """A tile over all of k: each line of the panel is wanted once, soon."""
        e, width = self.e, self.cut.width
        vectors = width // LANES

        def ahead(at: Expr, u: int) -> None:
            for j in range(0, width, LANES):
                e.prefetch(self.w, start + (at + u + self.ahead) * width + j, 2)

        acc, steps = zeros(e, rows * vectors), i64(self.cut.k // self.cut.unroll)
        row_start = e.let(row * self.cut.k)
        multiply(e, self.cut, acc, self.x, row_start, self.w, start, rows, vectors, steps, ahead)
        self.finish(acc, row, column, rows, vectors)

    def _block(
        self,
        row: Expr,
        rows: int,
        part: tuple[int, int],
        block: Expr,
        start: Expr,
        column: Expr,
        first: Expr,
        few: bool,
    ) -> None:
        """A tile over one block of k."""
        e, cut, (offset, vectors) = self.e, self.cut, part
        k = e.let(block * cut.depth)
        here = e.let(start + k * cut.width)
        wait = e.let((row - first) * cut.width + offset)
        acc = zeros(e, rows * vectors)
        self._resume(acc, block, wait, rows, vectors)
        # The next block, which lies behind this one, is fetched into L2, one line at each step: by the parts of
        # the panel in turn if there are few tiles, else by the tiles.
        turn = i64(offset // LANES) if few else mod(div(row - first, rows), cut.width // LANES)
        following = e.let(here + cut.depth * cut.width + turn * (cut.depth * LANES))

        residual, length = self.residual
        coming = Coming(e, residual, row * length + (column + offset), length, rows, vectors * LANES)

        def ahead(at: Expr, u: int) -> None:
            if few or offset == 0:
                e.prefetch(self.w, following + (at + u) * LANES, 2)
            coming.ask(e.let(at + u))

        steps = e.let(div(tirx.min(i64(cut.depth), cut.k - k), cut.unroll))
        x, w = e.let(row * cut.k + k), e.let(here + offset)
        multiply(e, cut, acc, self.x, x, self.w, w, rows, vectors, steps, ahead)
        if self.sums is not None:
            with e.when(block < cut.blocks - 1):
                for i, j in np.ndindex(rows, vectors):
                    at = e.let(wait + (i * cut.width + j * LANES))
                    e.store(self.sums, at, e.get(acc, i * vectors + j))
        with e.when(block >= cut.blocks - 1):
            self.finish(acc, row, e.let(column + offset), rows, vectors)

    def _resume(self, acc: Buffer, block: Expr, wait: Expr, rows: int, vectors: int) -> None:
        """The sums of the blocks before this one."""
        e = self.e
        if self.sums is None:
            return
        with e.when(block > 0):
            for i, j in np.ndindex(rows, vectors):
                e.set(acc, i * vectors + j, e.load(self.sums, wait + (i * self.cut.width + j * LANES), LANES))


def multiply(
    e: Emitter,
    cut: Blocking,
    sums: Buffer,
    x: Buffer,
    row: Expr,
    w: Buffer,
    column: Expr,
    rows: int,
    vectors: int,
    steps: Expr,
    ahead: Callable[[Expr, int], None] = lambda at, u: None,
) -> None:
    """sums[i, j] += x[row + i K + k] * w[column + k width + 16 j ...] for k in 0..steps * unroll, in order

    `ahead(k, u)` is called at each step k + u.
    """
    with e.loop(0, steps, "k") as step:
        at = e.let(step * cut.unroll)
        for u in range(cut.unroll):
            line = e.let(column + (at + u) * cut.width)
            b = [_widened(e, e.load(w, line + j * LANES, LANES)) for j in range(vectors)]
            ahead(at, u)
            for i in range(rows):
                a = e.let(splat(e.load(x, row + at + (i * cut.k + u))))
                for j in range(vectors):
                    e.set(sums, i * vectors + j, fma(a, b[j], e.get(sums, i * vectors + j)))


def _widened(e: Emitter, values: Expr) -> Expr:
    if dtype_of(values) == "uint16x16":  # the upper halves of float32
        wide = e.let(tirx.Cast("uint32x16", values))
        upper = e.let(tirx.shift_left(wide, splat(tirx.const(16, "uint32"))))
        return e.let(tirx.reinterpret("float32x16", upper))
    return values if dtype_of(values) == "float32x16" else e.let(tirx.Cast("float32x16", values))


LOWERINGS: Lowerings = {"linear": lower_linear}
