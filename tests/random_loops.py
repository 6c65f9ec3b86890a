"""Random graphs with loops and branches, nested too, over integers: every result is exact, so bits can be compared.

`random_loop(seed)` is deterministic. Its graphs have symbolic `batch` and `seq` and values i64 `[batch, 3]`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import constant, input_, make, results

BATCH, SEQ = symbol("batch"), symbol("seq")
DIMS = {"batch": (1, 8), "seq": (1, 64)}
SHAPE = (BATCH, 3)
BINARY = ("add", "sub", "mul", "maximum", "minimum")
DEPTH = 2  # of bodies within bodies

Array = np.ndarray[Any, Any]


def random_loop(seed: int) -> Graph:
    """Inputs `x` [seq, batch, 3], `h` and `k` [batch, 3]; one output for each result of two regions."""
    builder = _Builder(np.random.default_rng(seed))
    x = input_("x", "i64", (SEQ, *SHAPE))
    values = [input_(name, "i64", SHAPE) for name in ("h", "k")]
    first = builder.loop(values, [x], depth=0)
    small = [node for node in first if node.type.rank == 2]
    second = builder.region([*values, *small], [x], depth=0)
    picked = [node for node in (*first, *second) if builder.chance(0.8)] or [second[0]]
    outputs = {f"out{i}": node for i, node in enumerate(picked)}
    return Graph((x, *values), outputs, DIMS)


def random_values(graph: Graph, batch: int, seq: int) -> dict[str, Array]:
    """Inputs for a `random_loop`."""
    rng = np.random.default_rng([batch, seq])
    shapes = {"x": (seq, batch, 3), "h": (batch, 3), "k": (batch, 3)}
    return {name: rng.integers(-9, 10, shape) for name, shape in shapes.items()}


class _Builder:
    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, values: list[Node]) -> Node:
        return values[int(self.rng.integers(len(values)))]

    def step(self, pool: list[Node]) -> Node:
        a, b = self.pick(pool), self.pick(pool)
        if self.chance(0.2):
            b = constant(np.arange(3) - int(self.rng.integers(3)))
        return make(str(self.rng.choice(BINARY)), (a, b))

    def region(self, values: list[Node], sequences: list[Node], depth: int) -> tuple[Node, ...]:
        return self.branch(values, depth) if self.chance(0.4) else self.loop(values, sequences, depth)

    def loop(self, values: list[Node], sequences: list[Node], depth: int) -> tuple[Node, ...]:
        """A loop over `seq`, or a few times without anything scanned."""
        scanned = sequences if sequences and self.chance(0.8) else []
        carried = [self.pick(values) for _ in range(int(self.rng.integers(1, 4)))]
        captured = [self.pick(values) for _ in range(int(self.rng.integers(0, 3)))]
        inner = [input_(f"s{i}", "i64", SHAPE) for i in range(len(scanned))]
        state = [input_(f"c{i}", "i64", SHAPE) for i in range(len(carried))]
        outer = [input_(f"k{i}", "i64", SHAPE) for i in range(len(captured))]
        pool = self.pool([*inner, *state, *outer], depth)
        after = {f"c{i}": self.pick(pool) for i in range(len(carried))}
        stacked = {f"y{i}": self.pick(pool) for i in range(int(self.rng.integers(0, 3)))}
        if self.chance(0.5):
            stacked["same"] = after["c0"]  # what is carried is what is stacked
        node = make(
            "loop",
            (*scanned, *carried, *captured),
            body=Graph((*inner, *state, *outer), after | stacked),
            count=SEQ if scanned else int(self.rng.integers(0, 5)),
            scanned=len(scanned),
            carried=len(carried),
            reverse=self.chance(0.5),
        )
        return results(node)

    def branch(self, values: list[Node], depth: int) -> tuple[Node, ...]:
        operands = [self.pick(values) for _ in range(int(self.rng.integers(1, 4)))]
        total = make("sum", (operands[0],), axes=(0, 1), keepdims=False)
        condition = make("gt", (total, constant(np.int64(0))))
        count = int(self.rng.integers(1, 4))
        bodies = [self.side(len(operands), count, depth) for _ in range(2)]
        return results(make("branch", (condition, *operands), then=bodies[0], otherwise=bodies[1]))

    def side(self, operands: int, count: int, depth: int) -> Graph:
        inputs = [input_(f"o{i}", "i64", SHAPE) for i in range(operands)]
        pool = self.pool(inputs, depth)
        return Graph(tuple(inputs), {f"r{i}": self.pick(pool) for i in range(count)})

    def pool(self, inputs: list[Node], depth: int) -> list[Node]:
        """Values of a body: its inputs, a constant, what is computed of them, and of regions inside."""
        pool = [*inputs, make("add", (inputs[0], constant(np.array([1, 0, 2]))))]
        for _ in range(int(self.rng.integers(1, 5))):
            pool.append(self.step(pool))
        if depth < DEPTH and self.chance(0.4):
            made = self.region(pool, [], depth + 1)
            pool += [node for node in made if node.type.rank == 2]
            pool.append(self.step(pool))
        return pool
