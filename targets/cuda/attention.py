"""Scaled-dot-product attention on the GPU without a score matrix: one thread a query, online softmax.

A block holds 64 queries of one head, one a thread, query and output in registers. Keys and values pass through
shared memory, 32 at a time, where all threads read the same key at the same moment (a broadcast). With m, l, o
the running maximum, sum and output, for eight keys at once (Milakov and Gimelshein 2018; Dao et al. 2022):

    m' = max(m, max s)    p = exp(s - m')    a = exp(m - m')    l' = a l + sum p    o' = a o + p v    out = o / l
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from llmc.compiler.calls import Call
from llmc.compiler.dims import Dim, ceil_div, dim
from llmc.compiler.graph import Node
from llmc.compiler.ops.rules import same_dim
from llmc.errors import LlmcError
from llmc.targets.cuda.emit import GridEmitter
from llmc.targets.cuda.launch import launch
from llmc.targets.kernels.attention_shape import Layout
from llmc.targets.kernels.emit import Buffer, Expr, div, f32, fma, i64, mod
from llmc.targets.kernels.math import exp_down

QUERIES = 64  # of a block, one a thread
TOGETHER = 8  # keys between two updates of the maximum
MASKED = float("-inf")  # the score of a key that is not attended; a bias of -3e38 is not one
_SHARED = 48 * 1024  # bytes every GPU gives a block


@dataclass(frozen=True)
class Shape:
    """What an attention kernel's code depends on.

    Args:
        mask: dtype ("bool" or "f32") and, for each of batch, head, query and key, whether the mask varies along it.
        keys: a bool [batch, key] mask is given too.
    """

    heads: int
    kv_heads: int
    q: Layout
    k: Layout
    v: Layout
    out: Layout
    scale: float
    causal: bool
    keys: bool
    mask: tuple[str, tuple[bool, ...]] | None

    @property
    def staged(self) -> int:
        """Keys in shared memory at a time."""
        size = 4 * (self.k.size + self.v.size)
        return next((keys for keys in (32, 16, 8) if keys * size <= _SHARED), 0)


def mha(node: Node) -> Call:
    """Heads lie side by side in the tokens' rows."""
    a = node.attributes
    size, heads = a["head_dim"], a["heads"]
    q, k, v, *rest = node.inputs
    q_at, k_at, v_at = (
        Layout(True, int(operand.shape[-1]), offset, size)
        for operand, offset in zip((q, k, v), a["offsets"], strict=True)
    )
    out = Layout(True, heads * size, 0, size)
    mask = _mask(rest[-1], k.shape[1]) if a["has_bias"] else None
    shape = Shape(heads, heads, q_at, k_at, v_at, out, float(a["scale"]), a["causal"], a["has_keys"], mask)
    return _call(node, shape, q.shape[0], q.shape[1], k.shape[1])


def attention(node: Node) -> Call:
    """Heads are an axis of their own."""
    a = node.attributes
    q, k, v, *rest = node.inputs
    (batch, heads, s, d), (_, kv_heads, t, _), e = q.shape, k.shape, v.shape[-1]
    if not all(isinstance(x, int) for x in (heads, kv_heads, d, e)):
        raise LlmcError(f"attention: heads and head sizes must be fixed, found {q.type}, {k.type}")
    query, key, value, out = (Layout(False, size, 0, size) for size in (d, d, e, e))
    mask = _mask(rest[0], t) if a["has_mask"] else None
    scale, causal = float(a["scale"]), a["causal"]
    shape = Shape(heads, kv_heads, query, key, value, out, scale, causal, False, mask)
    return _call(node, shape, batch, s, t)


def _mask(node: Node, keys: Dim) -> tuple[str, tuple[bool, ...]]:
    shape = (1,) * (4 - len(node.shape)) + node.shape
    return node.dtype, (*(d != 1 for d in shape[:3]), same_dim(shape[3], keys))


def _call(node: Node, shape: Shape, batch: Dim, s: Dim, t: Dim) -> Call:
    if any(i.dtype != "f32" for i in node.inputs[:3]):
        raise LlmcError(f"{node.op}: no kernel for {node.inputs[0].dtype}")
    if not shape.staged:
        raise LlmcError(f"{node.op}: a head of {shape.k.size} + {shape.v.size} features is too large")
    dtypes = [i.dtype for i in node.inputs]
    return launch(
        node,
        "attention",
        (shape,),
        lambda k: _Head(k, shape, dtypes).emit(),
        (s, t),
        dim(batch * shape.heads * ceil_div(s, QUERIES)),
        threads=QUERIES,
        flops=2 * batch * shape.heads * s * t * (shape.k.size + shape.v.size),
    )


class _Head:
    """The code of one block: its queries against all keys of the head."""

    def __init__(self, k: GridEmitter, shape: Shape, dtypes: list[str]) -> None:
        self.k, self.shape = k, shape
        self.q, self.keys, self.values = (k.pointer(name, "f32") for name in "qkv")
        rest = iter(dtypes[3:])
        self.flags = k.pointer("flags", next(rest)) if shape.keys else None
        self.bias = k.pointer("bias", next(rest)) if shape.mask else None
        self.out = k.pointer("out", "f32")
        self.s, self.t = k.scalar("s"), k.scalar("t")
        blocks = k.let(div(self.s + (QUERIES - 1), QUERIES))
        pair = k.let(div(k.block, blocks))
        self.batch, self.head = k.let(div(pair, shape.heads)), k.let(mod(pair, shape.heads))
        first = k.let(mod(k.block, blocks) * QUERIES)
        self.live = k.let(first + k.thread < self.s)
        self.query = k.let(tirx.min(first + k.thread, self.s - i64(1)))
        # Causal: keys after the block's last query are seen by none of it.
        self.end = k.let(tirx.min(self.t, first + QUERIES)) if shape.causal else self.t

    def start(self, layout: Layout, heads: int, length: Expr) -> Expr:
        head = (
            self.head if heads == self.shape.heads else self.k.let(div(self.head, self.shape.heads // heads))
        )
        return self.k.let(layout.start(self.batch, head, heads, length))

    def emit(self) -> None:
        k, shape = self.k, self.shape
        self.own = k.registers(shape.q.size)
        self.sum = k.registers(shape.v.size)
        self.highest, self.total = k.registers(1), k.registers(1)
        self.scores = k.registers(TOGETHER)
        self.near_keys = k.shared(shape.staged * shape.k.size)
        self.near_values = k.shared(shape.staged * shape.v.size)
        at = k.let(self.start(shape.q, shape.heads, self.s) + self.query * shape.q.width)
        with k.loop(0, shape.q.size, unroll=True) as i:
            k.set(self.own, i, k.load(self.q, at + i))
        with k.loop(0, shape.v.size, unroll=True) as i:
            k.set(self.sum, i, f32(0.0))
        k.set(self.highest, 0, f32(MASKED))
        k.set(self.total, 0, f32(0.0))
        blocks = k.let(div(self.end + (shape.staged - 1), shape.staged))
        with k.loop(0, blocks, "block") as block:
            first = k.let(block * shape.staged)
            k.sync()
            self.stage(self.keys, shape.k, first, self.near_keys)
            self.stage(self.values, shape.v, first, self.near_values)
            k.sync()
            with k.loop(0, shape.staged // TOGETHER, "some") as some:
                self.attend(first, k.let(some * TOGETHER))
        self.write()

    def stage(self, source: Buffer, layout: Layout, first: Expr, near: Buffer) -> None:
        """Copy the features of the next keys to shared memory, zeros past the last."""
        k, start = self.k, self.start(layout, self.shape.kv_heads, self.t)
        count = self.shape.staged * layout.size
        with k.loop(0, -(-count // QUERIES), "copy") as step:
            item = k.let(step * QUERIES + k.thread)
            token = k.let(first + div(item, layout.size))
            with k.when(item < i64(count)):
                k.store(near, item, f32(0.0))
                with k.when(token < self.end):
                    at = start + token * layout.width + mod(item, layout.size)
                    k.store(near, item, k.load(source, at))

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
        with k.loop(0, shape.v.size, unroll=True) as i:
            k.set(self.sum, i, k.let(k.get(self.sum, i)) * fade)
        with k.loop(0, TOGETHER, unroll=True) as j:
            score = k.let(k.get(self.scores, j))
            p = exp_down(k, k.let(score - new))
            p = k.let(tirx.Select(score > f32(MASKED), p, f32(0.0)))
            k.set(self.total, 0, k.let(k.get(self.total)) + p)
            line = k.let((near + j) * shape.v.size)
            with k.loop(0, shape.v.size, unroll=True) as i:
                k.set(self.sum, i, fma(p, k.load(self.near_values, line + i), k.get(self.sum, i)))

    def score(self, key: Expr, near: Expr) -> Expr:
        """scale * q . k + bias, MASKED where the key is masked."""
        k, shape = self.k, self.shape
        dot = k.registers(1)
        k.set(dot, 0, f32(0.0))
        line = k.let(near * shape.k.size)
        with k.loop(0, shape.k.size, unroll=True) as i:
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
            dtype, varies = shape.mask
            entry = k.load(self.bias, self.entry(varies, key))
            if dtype == "bool":
                score = k.let(tirx.Select(tirx.NE(entry, tirx.const(0, "uint8")), scaled, masked))
            else:
                score = k.let(fma(value, f32(shape.scale), entry))
        if self.flags is not None:
            flag = k.load(self.flags, self.batch * self.t + key)
            score = k.let(tirx.Select(tirx.NE(flag, tirx.const(0, "uint8")), score, masked))
        return k.let(tirx.Select(key <= self.query, score, masked)) if shape.causal else score

    def entry(self, varies: tuple[bool, ...], key: Expr) -> Expr:
        """Element of the mask for this query and `key`."""
        k, at = self.k, i64(0)
        sizes = (i64(1), i64(self.shape.heads), self.s, self.t)
        places: tuple[Any, ...] = (self.batch, self.head, self.query, key)
        for size, place, moves in zip(sizes, places, varies, strict=True):
            at = k.let(at * size + place) if moves else at
        return at

    def write(self) -> None:
        k, layout = self.k, self.shape.out
        total = k.let(k.get(self.total))
        start = k.let(self.start(layout, self.shape.heads, self.s) + self.query * layout.width)
        with k.when(self.live), k.loop(0, layout.size, unroll=True) as i:
            value = k.let(k.let(k.get(self.sum, i)) / total)
            k.store(self.out, start + i, tirx.Select(total > f32(0.0), value, f32(0.0)))


LOWERINGS: Mapping[str, Callable[[Node], Call]] = {"mha": mha, "attention": attention}
