"""The steps of attention on one block of queries, as code: see attention.py for the algorithm."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from tvm import tirx

from llmc.compiler.ops.int8_attention import KEYS, LOG2_E
from llmc.targets import Cpu
from llmc.targets.cpu.attention.transpose import load_transposed, store_transposed
from llmc.targets.tir.attention_shape import Layout, Shape
from llmc.targets.tir.emit import LANES, Buffer, Emitter, Expr, div, f32, fma, i64, mod, splat
from llmc.targets.tir.math import exp2_down, exp_down
from llmc.targets.tir.tiling import tiles

QUERIES = 64  # of one work item
VECTORS = QUERIES // LANES
# No score but -inf is below it: models mask by adding float32's minimum, and a query with only such keys weighs
# them equally. Finite, so that exp(LOWEST - LOWEST) is 1 and not NaN.
LOWEST = -3.4028234663852886e38


class Head:
    """The state of one work item: up to 64 queries of one head, and the code of each step."""

    lowest = LOWEST

    def __init__(
        self, e: Emitter, cpu: Cpu, shape: Shape, pointers: Mapping[str, Buffer], s: Expr, t: Expr
    ) -> None:
        self.e, self.shape, self.at, self.s, self.t = e, shape, pointers, s, t
        self.places = s, t  # of queries and keys in a mask
        self.wide = cpu.wide
        memory = e.scratch()
        self.memory = memory
        self.scores = (
            QUERIES * shape.layouts.q.size
        )  # offsets into scratch: queries first, then scores, then output
        self.output = self.scores + QUERIES * KEYS
        self.values = self.output + QUERIES * shape.layouts.v.size  # those of the keys kept
        self.pitch = -(-shape.layouts.v.size // LANES) * LANES  # from one of them to the next
        self.highest, self.total, self.fade = (e.registers(VECTORS) for _ in range(3))
        self.kept = e.registers(KEYS, "int64")
        self.count = e.registers(1, "int64")

    def locate(self, item: Expr) -> None:
        e, heads = self.e, self.shape.heads
        blocks = e.let(div(self.s + (QUERIES - 1), QUERIES))
        self.pair = e.let(div(item, blocks))  # of sequence and head
        self.first = e.let((item - self.pair * blocks) * QUERIES)
        self.batch = e.let(div(self.pair, heads))
        self.head = e.let(mod(self.pair, heads))
        self.enter()
        self.queries = e.let(tirx.min(i64(QUERIES), self.s - self.first))
        self.vectors = e.let(div(self.queries + (LANES - 1), LANES))
        kv_head = e.let(div(self.head, heads // self.shape.kv_heads))
        starts = {}
        for name, length, head in (("q", self.s, self.head), ("k", self.t, kv_head), ("v", self.t, kv_head)):
            layout: Layout = getattr(self.shape.layouts, name)
            count = heads if name == "q" else self.shape.kv_heads
            starts[name] = e.let(self.start_of(layout, head, count, length))
        starts["out"] = e.let(self.start_of(self.shape.layouts.out, self.head, heads, self.s))
        self.start = starts

    def enter(self) -> None:
        """Look up the sequence whose number is known now; all are s and t long here."""

    def start_of(self, layout: Layout, head: Expr, heads: int, length: Expr) -> Expr:
        """Element index of the sequence's first token."""
        return layout.start(self.batch, head, heads, length)

    def place_of(self, token: Expr) -> Expr:
        """Where a token of the sequence is in a mask."""
        return token

    def span(self) -> Expr:
        """How many places the keys lie within."""
        return self.t

    def begin(self) -> None:
        """Queries transposed into scratch, [feature][query]; nothing seen yet."""
        e = self.e
        with e.loop(0, self.queries, "i") as i:  # rows lie far apart: no hardware foresees them
            for name in ("q", "out"):
                far: Layout = getattr(self.shape.layouts, name)
                row = e.let(self.start[name] + (self.first + i) * far.width)
                for feature in range(0, far.size, LANES):
                    e.prefetch(self.at[name], row + feature)
        with e.loop(0, self.vectors, "v") as v:
            self.take(v)
        for v in range(VECTORS):
            e.set(self.highest, v, splat(f32(self.lowest)))
            e.set(self.total, v, splat(f32(0.0)))
        with e.loop(0, self.shape.layouts.v.size * VECTORS, "z") as z:
            e.store(self.memory, self.output + z * LANES, splat(f32(0.0)))

    def take(self, vector: Expr) -> None:
        """16 queries into scratch, transposed."""
        e, layout = self.e, self.shape.layouts.q
        rows = e.let(self.first + vector * LANES)
        for feature in range(0, layout.size, LANES):
            here = min(LANES, layout.size - feature)
            at = [
                e.let(self.start["q"] + tirx.min(rows + i, self.s - 1) * layout.width + feature)
                for i in range(LANES)
            ]
            for i, value in enumerate(load_transposed(e, self.at["q"], at, here)):
                e.store(self.memory, (feature + i) * QUERIES + vector * LANES, value)

    def flag_of(self, key: Expr) -> Expr:
        """Whether a key of the sequence may be attended, where the kernel is given such flags."""
        return self.e.load(self.at["keys"], self.batch * self.t + key)

    def select(self, block: Expr) -> Expr:
        """List the keys of the block that may be attended; their number."""
        e = self.e
        size = e.let(tirx.min(i64(KEYS), self.t - block))
        if self.shape.causal:  # keys after the last query are seen by none
            size = e.let(tirx.max(tirx.min(size, self.first + self.queries - block), i64(0)))
        e.set(self.count, 0, i64(0))
        with e.loop(0, size, "j") as j:
            e.set(self.kept, e.get(self.count), block + j)
            if self.shape.keys:
                flag = tirx.Cast("int64", self.flag_of(block + j))
                e.set(self.count, 0, e.get(self.count) + flag)
            else:
                e.set(self.count, 0, e.get(self.count) + 1)
        return e.let(e.get(self.count))

    def mark(self) -> None:
        """Remember how far `select` has come."""

    def recall(self) -> None:
        """Let `select` go on from there."""

    def gather(self, keys: Expr) -> None:
        """Copy the values of the keys, which `mix` reads many times, next to each other; ask for the keys."""
        e, k, v = self.e, self.shape.layouts.k, self.shape.layouts.v
        with e.loop(0, keys, "j") as j:
            key = e.let(e.get(self.kept, j))
            start = e.let(self.start["k"] + key * k.width)
            for feature in range(0, k.size, LANES):
                e.prefetch(self.at["k"], start + feature)
            start = e.let(self.start["v"] + key * v.width)
            target = e.let(self.values + j * self.pitch)
            for feature in range(0, v.size, LANES):
                mask = e.first(i64(v.size - feature)) if feature + LANES > v.size else None
                e.store(self.memory, target + feature, e.load(self.at["v"], start + feature, LANES, mask))

    def by_vectors(self, body: Callable[[Expr, int], None]) -> None:
        """body(first vector, how many): all four at once where registers allow and most are used."""
        e = self.e
        if not self.wide:
            with e.loop(0, self.vectors, "v") as v:
                body(v, 1)
            return
        with e.when(self.vectors > VECTORS // 2):
            body(i64(0), VECTORS)
        with e.when(self.vectors <= VECTORS // 2), e.loop(0, self.vectors, "v") as v:
            body(v, 1)

    def tile_rows(self, vectors: int) -> int:
        return 24 // max(vectors, 2) if self.wide else 6

    def key_at(self, number: Expr) -> tuple[Buffer, Expr]:
        """Where the features of a key of the block are."""
        return self.at["k"], self.start["k"] + self.e.get(self.kept, number) * self.shape.layouts.k.width

    def score(self, keys: Expr) -> None:
        """scores[key][query] = K q"""
        e, layout = self.e, self.shape.layouts.k

        def product_of(vector: Expr, vectors: int) -> None:
            def tile(row: Expr, height: int) -> None:
                found = [self.key_at(row + i) for i in range(height)]
                buffer, at = found[0][0], [e.let(index) for _, index in found]
                acc = e.registers(height * vectors)
                for i in range(height * vectors):
                    e.set(acc, i, splat(f32(0.0)))
                with e.loop(0, layout.size, "d") as d:
                    column = e.let(d * QUERIES + vector * LANES)
                    q = [e.load(self.memory, column + v * LANES, LANES) for v in range(vectors)]
                    for i in range(height):
                        k = e.let(splat(e.load(buffer, at[i] + d)))
                        for v in range(vectors):
                            e.set(acc, i * vectors + v, fma(k, q[v], e.get(acc, i * vectors + v)))
                for i in range(height):
                    line = e.let(self.scores + (row + i) * QUERIES + vector * LANES)
                    for v in range(vectors):
                        e.store(self.memory, line + v * LANES, e.get(acc, i * vectors + v))

            tiles(e, i64(0), keys, self.tile_rows(vectors), tile)

        self.by_vectors(product_of)

    def mask(self, keys: Expr) -> None:
        """Mask or bias the scores, where the kernel has either."""
        if self.shape.mask is None and not self.shape.causal:
            return
        e = self.e
        with e.loop(0, keys, "j") as j, e.loop(0, self.vectors, "v") as v:
            at = e.let(self.scores + j * QUERIES + v * LANES)
            key = e.let(e.get(self.kept, j))
            e.store(self.memory, at, self.masked(e.load(self.memory, at, LANES), key, v))

    def masked(self, score: Expr, key: Expr, vector: Expr) -> Expr:
        """The score of 16 queries and a key after mask or bias; scaled already if there is a bias."""
        e, mask = self.e, self.shape.mask
        if mask is not None and mask[0] == "f32":
            score = e.let(fma(score, splat(f32(self.shape.scale)), self.mask_lanes(key, vector)))
        elif mask is not None:
            attend = self.mask_lanes(key, vector)
            score = e.let(tirx.Select(attend != splat(f32(0.0)), score, splat(f32(float("-inf")))))
        if self.shape.causal:
            lane = tirx.Ramp(tirx.Cast("int32", self.first + vector * LANES), tirx.const(1, "int32"), LANES)
            seen = lane >= splat(tirx.Cast("int32", key))
            score = e.let(tirx.Select(seen, score, splat(f32(float("-inf")))))
        return score

    def mask_lanes(self, key: Expr, vector: Expr) -> Expr:
        """mask[batch, head, 16 queries, key] as f32, of a mask that may lack any of these axes."""
        assert self.shape.mask is not None
        e = self.e
        _, by_batch, by_head, by_query, by_key = self.shape.mask

        def read(index: Expr) -> Expr:
            return tirx.Cast("float32", e.load(self.at["mask"], index))

        row = self.batch * (self.shape.heads if by_head else 1) if by_batch else i64(0)
        row = e.let(row + self.head if by_head else row)
        rows, columns = self.places if by_key else (self.places[0], i64(1))
        key = self.place_of(key) if by_key else i64(0)
        if not by_query:
            return e.let(splat(read(row * columns + key)))
        lanes = e.registers(LANES, "float32")
        with e.loop(0, LANES, "lane") as lane:
            query = tirx.min(self.first + vector * LANES + lane, self.s - 1)
            e.set(lanes, lane, read((row * rows + self.place_of(query)) * columns + key))
        return e.load(lanes, i64(0), LANES)

    def soften(self, keys: Expr) -> None:
        """scores -> exp(score - maximum); the running maximum and sum move on."""
        e = self.e
        scaled = self.shape.mask is not None and self.shape.mask[0] == "f32"
        # As powers of 2, the maximum too. Not where a mask may have added float32's minimum: it would overflow.
        scale = splat(f32(1.0 if scaled else self.shape.scale * LOG2_E))
        power = exp_down if scaled else exp2_down

        def of(vector: Expr, vectors: int) -> None:
            line = e.let(self.scores + vector * LANES)
            top, total = e.registers(vectors), e.registers(vectors)
            for v in range(vectors):
                e.set(top, v, splat(f32(float("-inf"))))
                e.set(total, v, splat(f32(0.0)))
            with e.loop(0, keys, "j") as j:
                at = e.let(line + j * QUERIES)
                for v in range(vectors):
                    e.set(top, v, tirx.max(e.get(top, v), e.load(self.memory, at + v * LANES, LANES)))
            for v in range(vectors):
                old = e.let(e.get(self.highest, vector + v))
                new = e.let(tirx.max(old, e.get(top, v) * scale))
                e.set(self.highest, vector + v, new)
                e.set(self.fade, vector + v, power(e, e.let(old - new)))
                e.set(top, v, splat(f32(0.0)) - new)
            with e.loop(0, keys, "j") as j:
                at = e.let(line + j * QUERIES)
                for v in range(vectors):
                    score = e.load(self.memory, at + v * LANES, LANES)
                    p = power(e, e.let(fma(score, scale, e.get(top, v))))
                    e.store(self.memory, at + v * LANES, p)
                    e.set(total, v, e.get(total, v) + p)
            for v in range(vectors):
                fade = e.get(self.fade, vector + v)
                e.set(self.total, vector + v, fma(e.get(self.total, vector + v), fade, e.get(total, v)))

        self.by_vectors(of)

    def fresh(self, at: Expr, vector: Expr) -> Expr:
        """What the sums of 16 queries start from, whose output so far is at `at`."""
        return self.e.load(self.memory, at, LANES) * self.e.get(self.fade, vector)

    def mixed(self, at: Expr, vector: Expr, total: Expr) -> Expr:
        """Their output with these sums."""
        return total

    def mix(self, keys: Expr) -> None:
        """output[feature][query] = fade * output + V^T p"""
        e, layout = self.e, self.shape.layouts.v

        def of(vector: Expr, vectors: int) -> None:
            height = self.tile_rows(vectors)
            groups = -(-layout.size // height)
            cuts = [g * layout.size // groups for g in range(groups + 1)]
            for low, high in itertools.pairwise(cuts):
                rows = high - low
                acc = e.registers(rows * vectors)
                line = e.let(self.output + vector * LANES + low * QUERIES)
                for i in range(rows):
                    for v in range(vectors):
                        e.set(acc, i * vectors + v, self.fresh(line + (i * QUERIES + v * LANES), vector + v))
                with e.loop(0, keys, "j") as j:
                    at = e.let(self.values + j * self.pitch + low)
                    column = e.let(self.scores + j * QUERIES + vector * LANES)
                    p = [e.load(self.memory, column + v * LANES, LANES) for v in range(vectors)]
                    for i in range(rows):
                        value = e.let(splat(e.load(self.memory, at + i)))
                        for v in range(vectors):
                            e.set(acc, i * vectors + v, fma(value, p[v], e.get(acc, i * vectors + v)))
                for i in range(rows):
                    for v in range(vectors):
                        at = e.let(line + (i * QUERIES + v * LANES))
                        total = e.get(acc, i * vectors + v)
                        e.store(self.memory, at, self.mixed(at, vector + v, total))

        self.by_vectors(of)

    def divisor(self, vector: Expr) -> Expr:
        """1 / sum of 16 queries, 0 of one with no key."""
        total, zero = self.e.let(self.e.get(self.total, vector)), splat(f32(0.0))
        return self.e.let(tirx.Select(total > zero, splat(f32(1.0)) / total, zero))

    def result(self, feature: Expr, vector: Expr, factor: Expr) -> Expr:
        """A feature of the output of 16 queries."""
        return self.e.load(self.memory, self.output + feature * QUERIES + vector * LANES, LANES) * factor

    def finish(self) -> None:
        """out = output / sum, transposed back; a query with no key gives 0"""
        e, layout = self.e, self.shape.layouts.out
        with e.loop(0, self.vectors, "v") as v:
            factor = self.divisor(v)
            rows = e.let(self.first + v * LANES)
            for feature in range(0, layout.size, LANES):
                here = min(LANES, layout.size - feature)
                values = [e.let(self.result(i64(feature + i), v, factor)) for i in range(here)]
                at = [e.let(self.start["out"] + (rows + i) * layout.width + feature) for i in range(LANES)]
                store_transposed(e, self.at["out"], at, values, self.s - rows)

    def attend(self) -> None:
        """The whole of one item, once it is located."""
        self.begin()
        with self.e.loop(0, div(self.span() + (KEYS - 1), KEYS), "block") as block:
            keys = self.select(self.e.let(block * KEYS))
            with self.e.when(keys > 0):
                self.gather(keys)
                self.score(keys)
                self.mask(keys)
                self.soften(keys)
                self.mix(keys)
        self.finish()
