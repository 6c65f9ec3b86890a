"""Random small transformer encoders, written the many ways that models write them, for tests of fusion.

`random_encoder(seed)` is deterministic. Dims are `batch` and `seq`; every row has at least one token.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.ops import constant, input_, make

B, S = symbol("batch"), symbol("seq")
ROWS, HIDDEN, HEADS, INNER, POSITIONS = 23, 8, 2, 12, 16
LOW = float(np.finfo(np.float32).min)


def random_encoder(seed: int) -> tuple[Graph, dict[str, np.ndarray[Any, Any]]]:
    """A graph of one or two blocks and sample inputs with padding."""
    graph = Encoder(seed).graph()
    rng = np.random.default_rng([seed, 1])
    batch, length = int(rng.integers(1, 4)), int(rng.integers(1, 8))
    tokens = rng.integers(1, length + 1, (batch, 1))
    return graph, {
        "ids": rng.integers(0, ROWS, (batch, length)),
        "mask": (np.arange(length) < tokens).astype(np.int64),
    }


class Encoder:
    """Builds one encoder; every way of writing a thing is drawn from the seed, or set in `ways`."""

    def __init__(self, seed: int, **ways: str) -> None:
        self.rng, self.ways, self.place = np.random.default_rng(seed), ways, ""
        self.ids = input_("ids", "i64", (B, S), low=0, high=ROWS - 1)
        self.mask = input_("mask", "i64", (B, S), default=1, low=0, high=1)

    def graph(self) -> Graph:
        x = self.embeddings()
        for number in range(int(self.rng.integers(1, 3))):
            self.place = f"layer.{number}"
            x = self.block(x)
        return Graph(
            (self.ids, self.mask), {"hidden": x, "pooled": self.pooler(x)}, {"batch": (1, 4), "seq": (1, 16)}
        )

    # --- building

    def way(self, what: str, *ways: str) -> str:
        drawn = str(self.rng.choice(ways))
        return self.ways.get(what, drawn)

    def op(self, name: str, *inputs: Node | float, **attributes: Any) -> Node:
        nodes = [i if isinstance(i, Node) else constant(np.float32(i)) for i in inputs]
        return make(name, nodes, Source(f"{self.place}.{name}", ""), **attributes)

    def weight(self, *shape: int) -> Node:
        return constant(
            self.rng.normal(size=shape).astype(np.float32) / math.sqrt(shape[-1]), f"{self.place}.w"
        )

    def linear(self, x: Node, width: int) -> Node:
        """A product with bias, as `linear`, as `linear` and `add`, or as `matmul` and `add`."""
        way, k = self.way("linear", "whole", "add", "matmul"), int(x.shape[-1])
        if way == "whole":
            return self.op("linear", x, self.weight(width, k), self.weight(width), epilogue=("bias",))
        y = (
            self.op("linear", x, self.weight(width, k))
            if way == "add"
            else self.op("matmul", x, self.weight(k, width))
        )
        return self.op("add", y, self.weight(width))

    def norm(self, x: Node) -> Node:
        return self.op("layer_norm", x, self.weight(HIDDEN), self.weight(HIDDEN), eps=1e-5)

    # --- parts

    def embeddings(self) -> Node:
        self.place = "embeddings"
        words = self.op("embedding", self.weight(ROWS, HIDDEN), self.ids)
        table, way = self.weight(POSITIONS, HIDDEN), self.way("positions", "iota", "buffer", "slice", "none")
        if way == "none":
            return self.norm(words)
        if way == "slice":
            rows = self.op("reshape", self.op("slice", table, axis=0, start=0, stop=S), shape=(1, S, HIDDEN))
            return self.norm(self.op("add", words, rows))
        index = self.op("reshape", self.op("iota", length=S), shape=(1, S))
        if way == "buffer":
            index = self.op("slice", constant(np.arange(POSITIONS)[None]), axis=1, start=0, stop=S)
        return self.norm(self.op("add", words, self.op("embedding", table, index)))

    def block(self, x: Node) -> Node:
        inner = (self.attention, self.feed_forward)
        if self.way("norm", "post", "pre") == "post":
            for part in inner:
                x = self.norm(self.sum(part(x), x))
            return x
        for part in inner:
            x = self.sum(part(self.norm(x)), x)
        return x

    def sum(self, a: Node, b: Node) -> Node:
        return self.op("add", a, b) if self.way("sum", "ab", "ba") == "ab" else self.op("add", b, a)

    def attention(self, x: Node) -> Node:
        q, k, v = (self.split(self.linear(x, HIDDEN)) for _ in range(3))
        scale = 1 / math.sqrt(HIDDEN // HEADS)
        if self.way("attention", "whole", "explicit") == "whole":
            flags = self.op("reshape", self.op("cast", self.mask, dtype="bool"), shape=(B, 1, 1, S))
            wide = self.op("expand", flags, shape=(B, 1, S, S))
            y = self.op("attention", q, k, v, wide, scale=scale, has_mask=True)
        else:
            y = self.op("matmul", self.op("softmax", self.scores(q, k, scale), axis=3), v)
        merged = self.op("reshape", self.op("transpose", y, perm=(0, 2, 1, 3)), shape=(B, S, HIDDEN))
        return self.linear(merged, HIDDEN)

    def split(self, x: Node) -> Node:
        heads = self.op("reshape", x, shape=(B, S, HEADS, HIDDEN // HEADS))
        return self.op("transpose", heads, perm=(0, 2, 1, 3))

    def scores(self, q: Node, k: Node, scale: float) -> Node:
        way = self.way("scale", "mul", "div", "query")
        q = self.op("mul", q, scale) if way == "query" else q
        y = self.op("matmul", q, self.op("transpose", k, perm=(0, 1, 3, 2)))
        if way != "query":
            y = self.op("mul", y, scale) if way == "mul" else self.op("div", y, 1 / scale)
        if self.way("bias", "yes", "no") == "yes":
            y = self.op("add", y, self.op("expand", self.weight(HEADS, 1, 1), shape=(1, HEADS, S, S)))
        return self.masked(y)

    def masked(self, y: Node) -> Node:
        wide = self.op("reshape", self.mask, shape=(B, 1, 1, S))
        way = self.way("mask", "where", "fill", "subtract", "excluded", "pairs", "none")
        if way == "none":
            return y
        if way == "excluded":
            absent = make("eq", (wide, constant(np.int64(0))), wide.source)
            return self.op("add", y, self.op("where", absent, LOW, 0.0))
        if way == "subtract":
            return self.op(
                "add", y, self.op("mul", self.op("sub", 1.0, self.op("cast", wide, dtype="f32")), LOW)
            )
        if way == "pairs":
            wide = self.op("mul", wide, self.op("reshape", self.mask, shape=(B, 1, S, 1)))
        flags = self.op("cast", wide, dtype="bool")
        if way == "where":
            return self.op("add", y, self.op("where", flags, 0.0, LOW))
        return self.op("where", self.op("not", flags), LOW, y)

    def feed_forward(self, x: Node) -> Node:
        return self.linear(self.activation(self.linear(x, INNER)), HIDDEN)

    def activation(self, x: Node) -> Node:
        way = self.way("activation", "gelu", "tanh", "erf", "cubic", "relu", "silu", "sigmoid", "exp")
        if way in ("relu", "silu", "tanh", "gelu"):
            return self.op(way, x)
        if way == "sigmoid":
            return self.op("mul", x, self.op("sigmoid", x))
        if way == "exp":
            return self.op("div", x, self.op("add", self.op("exp", self.op("neg", self.op("abs", x))), 1.0))
        if way == "erf":
            return self.op(
                "mul", self.half(x), self.op("add", self.op("erf", self.op("div", x, math.sqrt(2))), 1.0)
            )
        cubic = self.op("add", x, self.op("mul", self.op("pow", x, 3.0), 0.044715))
        tanh = self.op("tanh", self.op("mul", cubic, math.sqrt(2 / math.pi)))
        return self.op("mul", self.half(x), self.op("add", tanh, 1.0))

    def half(self, x: Node) -> Node:
        return self.op("mul", x, 0.5)

    def pooler(self, x: Node) -> Node:
        self.place = "pooler"
        first = self.op("reshape", self.op("slice", x, axis=1, start=0, stop=1), shape=(B, HIDDEN))
        return self.op("tanh", self.linear(first, HIDDEN))
