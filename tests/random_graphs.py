"""Random well-behaved graphs for tests of passes and kernels.

`random_graph(seed)` is deterministic. Every graph verifies, has symbolic `batch` and `seq`, 5 to 25 nodes,
values that stay finite and well conditioned: no step function of a float, no division by less than 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from llmc.compiler.dims import Dim, evaluate, symbol
from llmc.compiler.graph import DTYPES, Graph, Node, Source
from llmc.compiler.ops import constant, input_, make

BATCH, SEQ = symbol("batch"), symbol("seq")
WIDTHS = (4, 8, 12, 16)
ROWS = 11  # of an embedding table
SMOOTH = ("tanh", "sigmoid", "gelu", "relu", "abs", "neg", "sin", "cos", "erf", "silu")
DIMS = {"batch": (1, 8), "seq": (1, 64)}


def random_graph(
    seed: int, batch: int | None = None, seq: int | None = None
) -> tuple[Graph, dict[str, np.ndarray[Any, Any]]]:
    """A graph and sample inputs; `batch` and `seq` are drawn from the seed if not given."""
    graph = _Builder(seed).graph()
    rng = np.random.default_rng([seed, 1])
    sizes = {"batch": int(rng.integers(1, 4)), "seq": int(rng.integers(1, 10))}
    sizes.update({k: v for k, v in (("batch", batch), ("seq", seq)) if v is not None})
    return graph, random_inputs(graph, seed, sizes)


def random_inputs(graph: Graph, seed: int, sizes: dict[str, int]) -> dict[str, np.ndarray[Any, Any]]:
    """Values for every input of a graph at the given dim sizes: normal floats, integers within the bounds."""
    rng = np.random.default_rng([seed, 2])
    result: dict[str, np.ndarray[Any, Any]] = {}
    for node in graph.inputs:
        shape = tuple(evaluate(d, sizes) for d in node.shape)
        low, high = (node.attributes[k] for k in ("low", "high"))
        if node.dtype == "f32":
            value = rng.normal(size=shape)
        else:
            value = rng.integers(0 if low is None else low, 2 if high is None else high + 1, shape)
        result[node.attributes["name"]] = value.astype(DTYPES[node.dtype])
    return result


class _Builder:
    """Grows a pool of f32 `[batch, seq, width]` nodes step by step."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        width = self.width()
        ids = input_("ids", "i64", (BATCH, SEQ), low=0, high=ROWS - 1)
        x = input_("x", "f32", (BATCH, SEQ, width))
        self.mask = input_("mask", "i64", (BATCH, SEQ), default=1, low=0, high=1)
        self.inputs = (ids, x, self.mask)
        self.pool = [x, make("embedding", (self.weights(ROWS, width), ids), self.source())]

    def graph(self) -> Graph:
        """Steps until the size drawn is reached; the outputs are all values that nothing reads."""
        target = int(self.rng.integers(5, 18))
        steps: list[Callable[[], Node]] = [
            self.unary,
            self.binary,
            self.tamed,
            self.linear,
            self.linear,
            self.layer_norm,
            self.softmax,
            self.centre,
            self.heads,
            self.flat,
            self.select,
            self.masked,
            self.concat,
            self.part,
            self.first_row,
            self.positions,
            self.scores,
            self.cumulate,
        ]
        graph = self.finished()
        while len(graph.nodes) < target:
            self.pool.append(steps[self.rng.integers(len(steps))]())
            larger = self.finished()
            if len(larger.nodes) > 25:
                break
            graph = larger
        return graph

    def finished(self) -> Graph:
        read = {i for node in self.pool for i in _reach(node)}
        last = [node for node in self.pool if node not in read]
        return Graph(self.inputs, {f"out{i}": node for i, node in enumerate(last)}, DIMS)

    # --- leaves and choices

    def width(self) -> int:
        return int(self.rng.choice(WIDTHS))

    def source(self) -> Source:
        return Source(f"block.{self.rng.integers(3)}", f"model.py:{self.rng.integers(1, 99)}")

    def weights(self, *shape: int) -> Node:
        values = self.rng.normal(size=shape) / np.sqrt(shape[-1])
        return constant(values.astype(np.float32), f"w{self.rng.integers(1000)}")

    def op(self, name: str, *inputs: Node, **attributes: Any) -> Node:
        return make(name, inputs, self.source(), **attributes)

    def pick(self) -> Node:
        # mostly recent values, so that graphs get deep
        recent = self.pool[-3:] if self.rng.random() < 0.8 else self.pool
        return recent[self.rng.integers(len(recent))]

    def pair(self) -> tuple[Node, Node]:
        """Two values of equal width."""
        a = self.pick()
        equal = [n for n in self.pool if n.shape == a.shape]
        return a, equal[self.rng.integers(len(equal))]

    # --- steps

    def unary(self) -> Node:
        return self.op(str(self.rng.choice(SMOOTH)), self.pick())

    def binary(self) -> Node:
        a, b = self.pair()
        if self.rng.random() < 0.4:
            b = self.weights(int(a.shape[-1])) if self.rng.random() < 0.5 else constant(np.float32(0.5))
        return self.op(str(self.rng.choice(["add", "sub", "maximum", "minimum"])), a, b)

    def tamed(self) -> Node:
        """exp, log, sqrt, mul or div with arguments kept where they are harmless."""
        a, b = self.pair()
        one = constant(np.float32(1.0))
        at_least_one = self.op("add", self.op("abs", b), one)
        kind = int(self.rng.integers(5))
        if kind == 0:
            return self.op("exp", self.op("neg", self.op("abs", a)))
        if kind < 3:
            return self.op("log" if kind == 1 else "rsqrt", at_least_one)
        return self.op("mul", a, self.op("tanh", b)) if kind == 3 else self.op("div", a, at_least_one)

    def linear(self) -> Node:
        x, n = self.pick(), self.width()
        weight = self.weights(n, int(x.shape[-1]))
        if self.rng.random() < 0.3:
            return self.op("linear", x, weight)
        return self.op("linear", x, weight, self.weights(n), epilogue=("bias",))

    def layer_norm(self) -> Node:
        x = self.pick()
        n = int(x.shape[-1])
        return self.op("layer_norm", x, self.weights(n), self.weights(n), eps=1e-2)

    def softmax(self) -> Node:
        return self.op("softmax", self.pick(), axis=int(self.rng.integers(1, 3)))

    def centre(self) -> Node:
        x = self.pick()
        name, axes = str(self.rng.choice(["mean", "max", "min"])), ((1,), (2,), (1, 2))[self.rng.integers(3)]
        return self.op("sub", x, self.op(name, x, axes=axes, keepdims=True))

    def heads(self) -> Node:
        """Split the width into two heads and move them before the sequence; undo it after one op."""
        x = self.pick()
        n = int(x.shape[-1])
        split = self.op("reshape", x, shape=(BATCH, SEQ, 2, n // 2))
        inner = self.op("softmax", self.op("transpose", split, perm=(0, 2, 1, 3)), axis=3)
        return self.op("reshape", self.op("transpose", inner, perm=(0, 2, 1, 3)), shape=(BATCH, SEQ, n))

    def flat(self) -> Node:
        x, n = self.pick(), self.width()
        rows = self.op("reshape", x, shape=(BATCH * SEQ, x.shape[-1]))
        product = self.op("linear", rows, self.weights(n, int(x.shape[-1])))
        return self.op("reshape", product, shape=(BATCH, SEQ, n))

    def select(self) -> Node:
        a, b = self.pair()
        return self.op("where", self.op("gt", a, b), a, self.op("mul", b, constant(np.float32(1.0))))

    def masked(self) -> Node:
        x = self.pick()
        column = self.op("reshape", self.op("cast", self.mask, dtype="bool"), shape=(BATCH, SEQ, 1))
        return self.op("where", column, x, constant(np.float32(-2.0)))

    def concat(self) -> Node:
        a, b = self.pick(), self.pick()
        return self.op("slice", self.op("concat", a, b, axis=2), axis=2, start=2, stop=6)

    def part(self) -> Node:
        x = self.pick()
        return self.op("slice", x, axis=2, start=0, stop=4)

    def first_row(self) -> Node:
        x = self.pick()
        row: Dim = self.op("slice", x, axis=1, start=0, stop=1)
        return self.op("add", x, self.op("expand", row, shape=x.shape))

    def positions(self) -> Node:
        x = self.pick()
        numbers = self.op("cast", self.op("iota", length=SEQ), dtype="f32")
        column = self.op("reshape", numbers, shape=(SEQ, 1))
        return self.op("add", x, self.op("sin", column))

    def scores(self) -> Node:
        x = self.pick()
        products = self.op("matmul", x, self.op("transpose", x, perm=(0, 2, 1)))
        return self.op("matmul", self.op("softmax", self.op("tanh", products), axis=2), x)

    def cumulate(self) -> Node:
        return self.op("tanh", self.op("cumsum", self.pick(), axis=1))


def _reach(node: Node) -> set[Node]:
    """Everything `node` reads, directly or through others."""
    seen: set[Node] = set()
    stack = list(node.inputs)
    while stack:
        following = stack.pop()
        if following not in seen:
            seen.add(following)
            stack.extend(following.inputs)
    return seen
