"""Products that skip zeros of which each group of inputs has some: weights with at most N of M in a row (N:M sparse).

An output keeps N weights of each M inputs, and where among the M they are. Lanes are outputs: the M values of a row are
in every register that they fill, one instruction permutes them for all lanes by their places (`vpermilps`, `vpermps`,
`tbl`), and N fused multiply-adds do what M did. Sums run in the order of k, as everywhere: of finite values the
bits are those of the dense product, which adds zeros. A group with fewer than N weights is filled up with zeros.

Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks" (arXiv 2104.08378), for 2:4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import sympy

from llmc.compiler.calls import Call, Kernel, Packed
from llmc.compiler.dims import ceil_div, product
from llmc.compiler.graph import Node, Weight
from llmc.compiler.ops import OPS
from llmc.compiler.ops.storage import n_of_m
from llmc.targets.cpu.products.blocking import BLOCK_BYTES, panel_width
from llmc.targets.cpu.products.linear import extra_operands
from llmc.targets.cpu.storage.packing import pack_panels, pad_columns
from llmc.targets.lowering import Lowerings
from llmc.targets.target import Cpu
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, fma, i64, splat, vector
from llmc.targets.tir.epilogue import finish
from llmc.targets.tir.later import tirx
from llmc.targets.tir.tiling import tiles

ROWS = 64  # of an item
_AHEAD = 64  # values of a row that are asked for early, where sums have few registers
_FEW = 2  # rows whose sums of one vector are too few registers to be busy
_WRITTEN = 48  # products of a loop's body at most, where it is not for two groups

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Form:
    """At most `kept` weights of each `group` inputs, whose places are written `bits` each into words of 32."""

    kept: int
    group: int

    @property
    def bits(self) -> int:
        return {4: 2, 8: 4}[self.group]

    @property
    def chunk(self) -> int:
        """Groups whose places fit a word."""
        return 32 // self.bits // self.kept


def _ordered(array: Array, form: Form) -> tuple[Array, Array]:
    """Of [n, k] the places of the weights that stay and these, in the order of k: [n, k / group, kept] each."""
    groups = array.reshape(len(array), -1, form.group)
    places = np.argsort(groups == 0, -1, kind="stable")[..., : form.kept]
    values = np.take_along_axis(groups, places, -1)
    # what fills a group up reads what its last weight does: a value that is not finite stays with who reads it
    last = np.maximum.accumulate(np.where(values != 0, places, 0), -1)
    return np.where(values != 0, places, last), values


def places(array: Array, *, form: Form, width: int) -> Array:
    """i32 `[panels * width / 16, chunks, 16]`: the places of a chunk of groups, the first in the lowest bits."""
    found = _ordered(array, form)[0].astype(np.uint64)
    n, groups, _ = found.shape
    found = np.pad(found, ((0, 0), (0, -groups % form.chunk), (0, 0))).reshape(n, -1, form.chunk * form.kept)
    shifts = form.bits * np.arange(found.shape[-1], dtype=np.uint64)
    words = np.bitwise_or.reduce(found << shifts, -1).astype(np.uint32).view(np.int32)
    return _strips(words, width)


def values(array: Array, *, form: Form, width: int) -> Array:
    """f32 `[panels * width / 16, k / group, kept, 16]`."""
    return _strips(_ordered(array, form)[1].reshape(len(array), -1), width)


def _strips(array: Array, width: int) -> Array:
    """Each vector of outputs is one stretch of memory: a tile of one vector reads it alone."""
    return pack_panels(np.pad(array, ((0, -len(array) % width), (0, 0))), LANES)


def lower_linear(node: Node) -> Call | None:
    """`linear` with a bitmask of which a form says all; None for any other."""
    x, w, *extras = node.inputs
    if w.op != "bitmask" or w.attributes["height"] != 1 or any(i.op != "constant" for i in w.inputs):
        return None
    held: list[Weight] = [i.attributes["value"] for i in w.inputs]
    array = OPS["bitmask"].reference(*(h.array for h in held), **w.attributes)
    found = n_of_m(array)
    if found is None:
        return None
    form = Form(*found)
    (n, k), epilogue = array.shape, node.attributes["epilogue"]
    width = panel_width(n)
    dense, name = Weight(array, held[1].name), f"{form.kept} of {form.group} {width}"
    parts = [
        Packed(dense, f"{p.__name__} {name}", partial(p, form=form, width=width)) for p in (places, values)
    ]
    pad = partial(pad_columns, width=width)
    operands = (x, *parts, *extra_operands(node, extras, f"pad{width}", pad))
    rows, panels, count = product(x.shape[:-1]), -(-n // width), n * k // form.group * form.kept
    kernel = Kernel(
        "linear_n_of_m",
        (n, k, width, form, epilogue),
        ("f32", "i32", "f32", *("f32",) * (len(operands) - 2)),
        1,
        partial(emit_linear, n=n, k=k, width=width, form=form, epilogue=epilogue),
        4 * ROWS * width,
    )
    return Call(
        kernel,
        (*operands, node),
        (rows,),
        panels * ceil_div(rows, ROWS),
        2 * k // form.group * form.kept * (width // LANES) * sympy.Min(rows, ROWS),
        2 * rows * count,
        4 * rows * (k + n) + 4 * count + count * form.bits // 8,
        node.source,
    )


def emit_linear(
    symbol: str, cpu: Cpu, *, n: int, k: int, width: int, form: Form, epilogue: tuple[str, ...]
) -> Any:
    """out[m, n] = epilogue(x[m, k] . w[n, k]^T), w of N of M"""
    e = Emitter(symbol)
    x = e.pointer("x", "f32")
    parts = e.pointer("places", "i32"), e.pointer("values", "f32")
    extras = [e.pointer(step, "f32") for step in epilogue if step in ("bias", "residual")]
    out, m = e.pointer("out", "f32"), e.scalar("m")
    store = partial(finish, e, n=n, width=width, epilogue=epilogue, extras=extras, out=out)
    panels = _Panels(e, cpu, x, k, width, form, *parts)
    blocks = e.let(div(m + (ROWS - 1), ROWS))
    with e.loop(e.begin, e.end, "item") as item:
        panel = e.let(div(item, blocks))
        first = e.let((item - panel * blocks) * ROWS)
        count = e.let(tirx.min(i64(ROWS), m - first))
        panels.rows(panel, first, count, store)
    return e.function()


class _Panels:
    """Writes the sums of tiles; `parts` vectors of 16 outputs are `each` registers of the CPU each."""

    def __init__(
        self, e: Emitter, cpu: Cpu, x: Buffer, k: int, width: int, form: Form, codes: Buffer, weights: Buffer
    ) -> None:
        self.e, self.cpu, self.x, self.k, self.width, self.form = e, cpu, x, k, width, form
        self.codes, self.weights = codes, weights
        self.groups = k // form.group
        self.lanes, self.each = cpu.lanes, LANES // cpu.lanes
        self.waiting = e.scratch()

    def rows(self, panel: Expr, first: Expr, count: Expr, store: Callable[..., None]) -> None:
        """Rows first..first+count of a panel."""
        e, vectors = self.e, self.width // LANES
        if self.cpu.wide or vectors == 1:
            self._tiles(panel, first, count, vectors, self._rows_that_fit(vectors), store)
            return
        # the sums of few rows would wait for each other, were they those of one vector
        some = _FEW if self.each == 2 else 1
        with e.when(count == 1):
            self._tiles(panel, first, count, vectors, 1, store)
        if some > 1:
            with e.when(tirx.all(count > 1, count <= some)):
                self._tiles(panel, first, count, 2, some, store)
        with e.when(count > some):
            self._tiles(panel, first, count, 1, self._rows_that_fit(1), store, some)

    def _tiles(
        self,
        panel: Expr,
        first: Expr,
        count: Expr,
        vectors: int,
        height: int,
        store: Callable[..., None],
        least: int = 1,
    ) -> None:
        """By blocks of k, whose weights stay in L1 for all tiles; sums wait in scratch memory, as in `linear.py`."""
        for part in range(0, self.width // LANES, vectors):
            here = min(vectors, self.width // LANES - part)
            with self.e.loop(0, self._blocks(here), "block") as block:

                def tile(
                    row: Expr, rows: int, part: int = part, here: int = here, block: Expr = block
                ) -> None:
                    acc = self._sums(block, panel, part, (row, row - first), rows, here)
                    with self.e.when(block >= self._blocks(here) - 1):
                        column = self.e.let(panel * self.width + part * LANES)
                        store(self._whole(acc, rows, here), row, column, rows, here)

                tiles(self.e, first, count, height, tile, least)

    def _depth(self, vectors: int) -> int:
        """Chunks of a block."""
        return max(1, BLOCK_BYTES // (4 * LANES * vectors * self.form.chunk * self.form.kept))

    def _blocks(self, vectors: int) -> int:
        return max(1, -(-(self.groups // self.form.chunk) // self._depth(vectors)))

    def _rows_that_fit(self, vectors: int) -> int:
        """Their sums, two registers of weights and places for each vector, and three more; of few registers those of
        what each row reads are counted too."""
        registers = vectors * self.each
        if self.cpu.vectors < 32:
            return max(1, (self.cpu.vectors - 1 - 2 * registers) // (registers + 1))
        return max(1, min(12, (self.cpu.vectors - 3 - 2 * registers) // registers))

    def _sums(
        self, block: Expr, panel: Expr, part: int, row: tuple[Expr, Expr], rows: int, vectors: int
    ) -> Buffer:
        """A tile's sums up to the end of a block, `[row][vector][register]`; `row` of all, and of the item's."""
        e, form, count, blocks = self.e, self.form, vectors * self.each, self._blocks(vectors)
        acc = e.registers(rows * count, vector("float32", self.lanes))
        first = e.let(row[1] * (vectors * LANES))
        places = [first + i * self.lanes for i in range(rows * count)]
        for i in range(rows * count):
            e.set(acc, i, splat(0.0, self.lanes))
        if blocks > 1:
            with e.when(block > 0):
                for i, at in enumerate(places):
                    e.set(acc, i, e.load(self.waiting, at, self.lanes))
        chunks, rest = divmod(self.groups, form.chunk)
        strip = e.let(panel * (self.width // LANES) + part)
        code = e.let(strip * (-(-self.groups // form.chunk) * LANES))
        weight = e.let(strip * (self.groups * form.kept * LANES))
        chunk = partial(self._chunk, acc, e.let(row[0] * self.k), code, weight, rows, count)
        depth = self._depth(vectors)
        end = e.let(tirx.min((block + 1) * depth, i64(chunks))) if blocks > 1 else i64(chunks)
        with e.loop(e.let(block * depth) if blocks > 1 else 0, end, "chunk") as number:
            chunk(number, form.chunk)
        if blocks > 1:
            with e.when(block < blocks - 1):
                for i, at in enumerate(places):
                    e.store(self.waiting, at, e.get(acc, i))
        if rest:
            with e.when(block >= blocks - 1):
                chunk(i64(chunks), rest)
        return acc

    def _whole(self, acc: Buffer, rows: int, vectors: int) -> Buffer:
        """The registers of a vector side by side."""
        if self.each == 1:
            return acc
        e, whole = self.e, self.e.registers(rows * vectors)
        lanes = [tirx.const(lane, "int32") for lane in range(LANES)]
        for i in range(rows * vectors):
            parts = [e.let(e.get(acc, i * self.each + j)) for j in range(self.each)]
            e.set(whole, i, tirx.Shuffle(parts, lanes))
        return whole

    def _chunk(
        self,
        acc: Buffer,
        base: Expr,
        code: Expr,
        weight: Expr,
        rows: int,
        count: int,
        number: Expr,
        groups: int,
    ) -> None:
        """The groups of a word of places: a few written out, the word being shifted for the next."""
        e, form = self.e, self.form
        held = e.registers(count, vector("int32", self.lanes))
        at = e.let(code + number * LANES)
        for j in range(count):
            e.set(held, j, e.load(self.codes, at + self._place(j, -(-self.groups // form.chunk)), self.lanes))
        first = e.let(number * form.chunk)
        most = _WRITTEN if self.cpu.vectors >= 32 else 2 * _WRITTEN
        whole = groups % 2 or rows * count * form.kept * groups <= most
        written = groups if whole else 2
        with e.loop(0, groups // written, "few") as few:
            for g in range(written):
                # by every second product: other spacings were slower (bench/sparse.py --target x86-avx2)
                if self.cpu.vectors < 32 and rows > 1 and g % max(1, 2 // form.kept) == 0:
                    at = e.let((first + few * written + g) * form.group + base)
                    for i in range(rows):
                        e.prefetch(self.x, at + (i * self.k + _AHEAD))
                self._group(acc, base, weight, rows, count, e.let(first + few * written + g), held)

    def _place(self, register: int, lines: int) -> int:
        """Where the elements of a register are behind those of the first, of strips of so many lines."""
        vector, part = divmod(register, self.each)
        return vector * lines * LANES + part * self.lanes

    def _group(
        self, acc: Buffer, base: Expr, weight: Expr, rows: int, count: int, group: Expr, held: Buffer
    ) -> None:
        """acc += the N products of a group, one after the other."""
        e, form = self.e, self.form
        given = [self._inputs(e.let(base + group * form.group + i * self.k)) for i in range(rows)]
        for kept in range(form.kept):
            line = e.let((group * form.kept + kept) * LANES + weight)
            for j in range(count):
                w = e.load(self.weights, line + self._place(j, self.groups * form.kept), self.lanes)
                control = self._control(e.let(e.get(held, j)))
                for i in range(rows):
                    a = self._permuted(given[i], control)
                    e.set(acc, i * count + j, fma(a, w, e.get(acc, i * count + j)))
                shift = splat(tirx.const(form.bits, "int32"), self.lanes)
                e.set(held, j, tirx.shift_right(e.get(held, j), shift))

    def _inputs(self, at: Expr) -> list[Expr]:
        """A row's values of a group, as often as they fill a register; on ARM in as few registers as hold them."""
        e, size = self.e, self.form.group
        if self.cpu.machine == "aarch64":
            quads = [e.load(self.x, at + 4 * i, 4) for i in range(size // 4)]
            return [e.let(tirx.reinterpret("int8x16", quad)) for quad in quads]
        value = e.load(self.x, at, size)
        if size == self.lanes:
            return [value]
        lanes = [tirx.const(lane % size, "int32") for lane in range(self.lanes)]
        return [e.let(tirx.Shuffle([value] * (self.lanes // size), lanes))]

    def _control(self, places: Expr) -> Expr:
        """What permutes by the lowest bits of each lane; those above them mean nothing to x86."""
        if self.cpu.machine != "aarch64":
            return places
        e = self.e
        own = [tirx.const(number, "int32") for number in (self.form.group - 1, 0x04040404, 0x03020100)]
        mask, each, bytes_ = (splat(number, self.lanes) for number in own)
        place = e.let(tirx.bitwise_and(places, mask))
        return e.let(tirx.reinterpret("int8x16", e.let(place * each + bytes_)))

    def _permuted(self, given: list[Expr], control: Expr) -> Expr:
        """In each lane the value of its place."""
        e, lanes = self.e, self.lanes
        call: Callable[..., Expr] = tirx.call_llvm_pure_intrin
        if self.cpu.machine == "aarch64":
            name = f"llvm.aarch64.neon.tbl{len(given)}.v16i8"
            return e.let(tirx.reinterpret("float32x4", e.let(call("int8x16", name, *given, control))))
        dtype = vector("float32", lanes)
        if self.form.group == 4:
            name = {16: "llvm.x86.avx512.vpermilvar.ps.512", 8: "llvm.x86.avx.vpermilvar.ps.256"}[lanes]
        else:
            name = {16: "llvm.x86.avx512.permvar.sf.512", 8: "llvm.x86.avx2.permps"}[lanes]
        return e.let(call(dtype, name, given[0], control))


LOWERINGS: Lowerings = {"linear": lower_linear}
