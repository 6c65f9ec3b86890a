"""Scaled-dot-product attention on the GPU without a score matrix: one thread a query, online softmax.

A block holds 64 queries of one head, one a thread, query and output in registers. Keys and values pass through
shared memory, 32 at a time, where all threads read the same key at the same moment (a broadcast). With m, l, o
the running maximum, sum and output, for eight keys at once (Milakov and Gimelshein 2018; Dao et al. 2022):

    m' = max(m, max s)    p = exp(s - m')    a = exp(m - m')    l' = a l + sum p    o' = a o + p v    out = o / l
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmc.compiler.calls import Call
from llmc.compiler.dims import ceil_div, dim
from llmc.compiler.graph import Node
from llmc.compiler.ops.rows import scale_offset
from llmc.errors import LlmcError
from llmc.targets.cuda.emit import GridEmitter
from llmc.targets.cuda.launch import launch
from llmc.targets.cuda.norm import level
from llmc.targets.tir.attention_shape import Layout, Shape, problem
from llmc.targets.tir.emit import Buffer, Expr, div, f32, fma, i64, mod
from llmc.targets.tir.later import tirx
from llmc.targets.tir.math import exp_down

QUERIES = 64  # of a block, one a thread
TOGETHER = 8  # keys between two updates of the maximum
MASKED = float("-inf")  # the score of a key that is not attended; a bias of -3e38 is not one
_SHARED = 48 * 1024  # bytes every GPU gives a block


def attention(node: Node) -> Call:
    """`mha` and `attention`: a block for 64 queries of a head."""
    shape, batch, s, t = problem(node)
    size = shape.layouts.k.size + shape.layouts.v.size
    if node.attributes.get("int8"):
        raise LlmcError(
            f"{node.op}: attention on int8 has no GPU kernel", hint="leave out the pass qattention"
        )
    if not staged(shape):
        raise LlmcError(
            f"{node.op}: a head of {shape.layouts.k.size} + {shape.layouts.v.size} features is too large"
        )
    dtypes = [i.dtype for i in node.inputs]
    return launch(
        node,
        "attention",
        (shape,),
        lambda k: _Head(k, shape, dtypes).emit(),
        (s, t),
        dim(batch * shape.heads * ceil_div(s, QUERIES)),
        threads=QUERIES,
        flops=2 * batch * shape.heads * s * t * size,
    )


def staged(shape: Shape) -> int:
    """Keys in shared memory at a time."""
    size = 4 * (shape.layouts.k.size + shape.layouts.v.size)
    return next((keys for keys in (32, 16, 8) if keys * size <= _SHARED), 0)


class _Head:
    """The code of one block: its queries against all keys of the head."""

    def __init__(self, k: GridEmitter, shape: Shape, dtypes: list[str]) -> None:
        self.k, self.shape, self.staged = k, shape, staged(shape)
        self.q, self.keys, self.values = (k.pointer(*of) for of in zip("qkv", dtypes[:3], strict=True))
        rest = iter(dtypes[3:])
        self.flags = k.pointer("flags", next(rest)) if shape.keys else None
        self.bias = k.pointer("bias", next(rest)) if shape.mask else None
        self.out = k.pointer("out", "f32")
        self.s, self.t = k.scalar("s"), k.scalar("t")
        blocks = k.let(div(self.s + (QUERIES - 1), QUERIES))
        pair = k.let(div(k.block, blocks))
        self.batch, self.head = k.let(div(pair, shape.heads)), k.let(mod(pair, shape.heads))
        self.first = first = k.let(mod(k.block, blocks) * QUERIES)
        self.live = k.let(first + k.thread < self.s)
        self.query = k.let(tirx.min(first + k.thread, self.s - i64(1)))
        # Causal: keys after the block's last query are seen by none of it.
        self.past = k.let(self.t - self.s)
        self.end = k.let(tirx.min(self.t, self.past + first + QUERIES)) if shape.causal else self.t
        self.bare = self.is_bare() if shape.evenly else None

    def start(self, layout: Layout, heads: int, length: Expr) -> Expr:
        head = (
            self.head if heads == self.shape.heads else self.k.let(div(self.head, self.shape.heads // heads))
        )
        return self.k.let(layout.start(self.batch, head, heads, length))

    def emit(self) -> None:
        k, shape = self.k, self.shape
        self.own = k.registers(shape.layouts.q.size)
        self.sum = k.registers(shape.layouts.v.size)
        self.highest, self.total = k.registers(1), k.registers(1)
        self.scores = k.registers(TOGETHER)
        self.near_keys = k.shared(self.staged * shape.layouts.k.size)
        self.near_values = k.shared(self.staged * shape.layouts.v.size)
        at = k.let(self.start(shape.layouts.q, shape.heads, self.s) + self.query * shape.layouts.q.width)
        with k.loop(0, shape.layouts.q.size, unroll=True) as i:
            k.set(self.own, i, k.load(self.q, at + i))
        with k.loop(0, shape.layouts.v.size, unroll=True) as i:
            k.set(self.sum, i, f32(0.0))
        k.set(self.highest, 0, f32(MASKED))
        k.set(self.total, 0, f32(0.0))
        blocks = k.let(div(self.end + (self.staged - 1), self.staged))
        with k.loop(self.oldest(), blocks, "block") as block:
            first = k.let(block * self.staged)
            k.sync()
            self.stage(self.keys, shape.layouts.k, first, self.near_keys)
            self.stage(self.values, shape.layouts.v, first, self.near_values)
            k.sync()
            with k.loop(0, self.staged // TOGETHER, "some") as some:
                self.attend(first, k.let(some * TOGETHER))
        self.write()

    def oldest(self) -> Expr | int:
        """The block with the first key that any query of this one sees: those before may not be there."""
        k, window = self.k, self.shape.window
        seen = self.past + self.first - (window - 1)
        return k.let(div(tirx.max(seen, i64(0)), self.staged)) if window else 0

    def stage(self, source: Buffer, layout: Layout, first: Expr, near: Buffer) -> None:
        """Copy the features of the next keys to shared memory, zeros past the last."""
        k, start = self.k, self.start(layout, self.shape.kv_heads, self.t)
        count = self.staged * layout.size
        with k.loop(0, -(-count // QUERIES), "copy") as step:
            item = k.let(step * QUERIES + k.thread)
            token = k.let(first + div(item, layout.size))
            with k.when(item < i64(count)):
                k.store(near, item, f32(0.0))
                with k.when(token < self.end):
                    row = k.let(start + token * layout.width)
                    k.store(near, item, self.feature(source, layout, row, k.let(mod(item, layout.size))))

    def feature(self, source: Buffer, layout: Layout, row: Expr, number: Expr) -> Expr:
        """One feature of the token whose row begins at element `row`, as float32."""
        k = self.k
        if layout.stored == "u8":
            scale = k.load(k.alias(source, "float32"), div(row + scale_offset(layout.size), 4))
            return k.let(level(k, source, row + number) * scale)
        value = k.load(source, row + number)
        return value if layout.stored == "f32" else k.let(tirx.Cast("float32", value))

    def attend(self, first: Expr, near: Expr) -> None:
        """The next eight keys: scores, the new maximum, the fading of what was, their values."""
        k, shape = self.k, self.shape
        old = k.let(k.get(self.highest))
        with k.loop(0, TOGETHER, unroll=True) as j:
            k.set(self.scores, j, self.score(k.let(first + near + j), k.let(near + j)))
            k.set(self.highest, 0, k.let(tirx.max(k.let(k.get(self.highest)), k.get(self.scores, j))))
        new = k.let(k.get(self.highest))
        fade = exp_down(k, k.let(old - new))
        fade = k.let(tirx.Select(old > f32(MASKED), fade, f32(0.0)))  # nothing was seen: -inf - -inf is NaN
        k.set(self.total, 0, k.let(k.get(self.total)) * fade)
        with k.loop(0, shape.layouts.v.size, unroll=True) as i:
            k.set(self.sum, i, k.let(k.get(self.sum, i)) * fade)
        with k.loop(0, TOGETHER, unroll=True) as j:
            score = k.let(k.get(self.scores, j))
            p = exp_down(k, k.let(score - new))
            p = k.let(tirx.Select(score > f32(MASKED), p, f32(0.0)))
            k.set(self.total, 0, k.let(k.get(self.total)) + p)
            line = k.let((near + j) * shape.layouts.v.size)
            with k.loop(0, shape.layouts.v.size, unroll=True) as i:
                k.set(self.sum, i, fma(p, k.load(self.near_values, line + i), k.get(self.sum, i)))

    def score(self, key: Expr, near: Expr) -> Expr:
        """scale * q . k + bias, MASKED where the key is masked."""
        k, shape = self.k, self.shape
        dot = k.registers(1)
        k.set(dot, 0, f32(0.0))
        line = k.let(near * shape.layouts.k.size)
        with k.loop(0, shape.layouts.k.size, unroll=True) as i:
            k.set(dot, 0, fma(k.get(self.own, i), k.load(self.near_keys, line + i), k.get(dot)))
        value, seen = k.let(k.get(dot)), k.let(key < self.end)
        k.set(dot, 0, f32(MASKED))
        with k.when(seen):
            k.set(dot, 0, self.masked(k.let(value * f32(shape.scale)), value, key))
        return k.let(k.get(dot))

    def masked(self, scaled: Expr, value: Expr, key: Expr) -> Expr:
        k, shape = self.k, self.shape
        masked = f32(MASKED)
        score = scaled
        if shape.mask and self.bias is not None:
            dtype, *varies = shape.mask
            entry = k.load(self.bias, self.entry(varies, key))
            if dtype == "bool":
                score = k.let(tirx.Select(tirx.NE(entry, tirx.const(0, "uint8")), scaled, masked))
            else:
                score = k.let(fma(value, f32(shape.scale), entry))
        if self.flags is not None:
            otherwise = masked if self.bare is None else k.let(tirx.Select(self.bare, f32(0.0), masked))
            score = k.let(tirx.Select(self.flag(key), score, otherwise))
        return self.causal(score, key) if shape.causal else score

    def causal(self, score: Expr, key: Expr) -> Expr:
        """MASKED where the key comes after the query, or has left its window."""
        k, at, window = self.k, self.past + self.query, self.shape.window
        score = k.let(tirx.Select(key <= at, score, f32(MASKED)))
        return k.let(tirx.Select(at - key < i64(window), score, f32(MASKED))) if window else score

    def flag(self, key: Expr) -> Expr:
        """Whether a key may be attended."""
        return tirx.NE(self.k.load(self.flags, self.batch * self.t + key), tirx.const(0, "uint8"))

    def is_bare(self) -> Expr:
        """Whether no key may be attended."""
        k = self.k
        count = k.registers(1, "int64")
        k.set(count, 0, i64(0))
        with k.loop(0, self.t, "key") as key:
            k.set(count, 0, k.let(k.get(count)) + tirx.Cast("int64", self.flag(key)))
        return k.let(tirx.EQ(k.let(k.get(count)), i64(0)))

    def entry(self, varies: Sequence[bool], key: Expr) -> Expr:
        """Element of the mask for this query and `key`."""
        k, at = self.k, i64(0)
        sizes = (i64(1), i64(self.shape.heads), self.s, self.t)
        places: tuple[Any, ...] = (self.batch, self.head, self.query, key)
        for size, place, moves in zip(sizes, places, varies, strict=True):
            at = k.let(at * size + place) if moves else at
        return at

    def write(self) -> None:
        k, layout = self.k, self.shape.layouts.out
        total = k.let(k.get(self.total))
        start = k.let(self.start(layout, self.shape.heads, self.s) + self.query * layout.width)
        with k.when(self.live), k.loop(0, layout.size, unroll=True) as i:
            value = k.let(k.let(k.get(self.sum, i)) / total)
            k.store(self.out, start + i, tirx.Select(total > f32(0.0), value, f32(0.0)))


LOWERINGS: Mapping[str, Callable[[Node], Call]] = dict.fromkeys(("mha", "attention"), attention)
