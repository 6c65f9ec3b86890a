"""Functions with states that tests share: an accumulator, a causal attention layer, an encoder with a decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from random_graphs import random_graph, random_inputs

from llmc.compiler import interpret
from llmc.compiler.dims import Dim, dim, symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.module import Module
from llmc.compiler.ops import constant, input_, make, state_
from llmc.compiler.samples import Session

BATCH, SEQ, PAST, SRC = (symbol(name) for name in ("batch", "seq", "past", "src"))
HEADS, SIZE = 2, 16
WIDTH = HEADS * SIZE
LONGEST = 40
Array = np.ndarray[Any, Any]


def weights(seed: int, *shape: int) -> Node:
    values = np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[-1])
    return constant(values.astype(np.float32), f"w{seed}")


def accumulator() -> Graph:
    """total <- total + x, and twice that as output."""
    x, total = input_("x", "f32", (BATCH, 8)), state_("total", "f32", (BATCH, 8))
    after = make("add", (total, x))
    twice = make("add", (after, after))
    return Graph((x,), {"twice": twice}, {"batch": (1, 4)}, (total,), {"total": after})


def projected(x: Node, seed: int, batch: Dim, rows: Dim) -> Node:
    """Heads of x, `[batch, heads, rows, size]`."""
    flat = make("linear", (x, weights(seed, WIDTH, WIDTH)))
    split = make("reshape", (flat,), shape=(batch, rows, HEADS, SIZE))
    return make("transpose", (split,), perm=(0, 2, 1, 3))


def merged(x: Node, batch: Dim) -> Node:
    split = make("transpose", (x,), perm=(0, 2, 1, 3))
    return make("reshape", (split,), shape=(batch, SEQ, WIDTH))


def earlier() -> Node:
    """f32 `[1, 1, seq, past + seq]`: query i, at `past + i`, sees the keys up to there, not the others."""
    total = dim(PAST + SEQ)
    queries = make("reshape", (make("iota", (), length=SEQ, start=PAST),), shape=(SEQ, 1))
    keys = make("reshape", (make("iota", (), length=total),), shape=(1, total))
    low, zero = constant(np.finfo(np.float32).min), constant(np.float32(0))
    return make(
        "reshape", (make("where", (make("ge", (queries, keys)), zero, low)),), shape=(1, 1, SEQ, total)
    )


def attends(
    x: Node, batch: Dim = 1, seed: int = 0, name: str = "", window: int | None = None
) -> tuple[Node, tuple[Node, ...], dict[str, Node]]:
    """A causal attention layer on x `[batch, seq, WIDTH]` with growing keys and values and a residual.

    Args:
        window: how many keys a query sees; None: all, and the mask says so.

    Returns:
        what it gives, its states `[batch, heads, past, size]`, and what these become.
    """
    q, k, v = (projected(x, seed + i, batch, SEQ) for i in range(3))
    shape = (batch, HEADS, PAST, SIZE)
    states = tuple(state_(f"{name}{what}", "f32", shape, grows=2) for what in ("keys", "values"))
    keys, values = (make("concat", (s, new), axis=2) for s, new in zip(states, (k, v), strict=True))
    how = {"causal": True, "window": window} if window else {"has_mask": True}
    mask = () if window else (earlier(),)
    seen = make("attention", (q, keys, values, *mask), scale=SIZE**-0.5, **how)
    y = make("add", (x, make("linear", (merged(seen, batch), weights(seed + 3, WIDTH, WIDTH)))))
    return y, states, {f"{name}keys": keys, f"{name}values": values}


def causal(batch: Dim = 1, seed: int = 0, name: str = "") -> Graph:
    """Such a layer alone."""
    x = input_("x", "f32", (batch, SEQ, WIDTH))
    y, states, updates = attends(x, batch, seed, name)
    dims = {} if batch == 1 else {"batch": (1, 3)}
    dims |= {"seq": (1, LONGEST), "past": (0, LONGEST)}
    return Graph((x,), {"y": y}, dims, states, updates)


def windowed(*windows: int | None) -> Graph:
    """Such layers one after the other, of up to 300 positions, each with a window or none."""
    x = y = input_("x", "f32", (1, SEQ, WIDTH))
    states: tuple[Node, ...] = ()
    updates: dict[str, Node] = {}
    for number, window in enumerate(windows):
        y, own, after = attends(y, 1, 10 * number, f"{number}.", window)
        states, updates = (*states, *own), {**updates, **after}
    return Graph((x,), {"y": y}, {"seq": (1, 300), "past": (0, 300)}, states, updates)


def encoder_decoder() -> Module:
    """`encode` sets cross keys and values of a text; `step` attends to them, by one set of projections."""
    text = input_("text", "f32", (1, SRC, WIDTH))
    shape = (1, HEADS, SRC, SIZE)
    cross = tuple(state_(f"cross_{what}", "f32", shape) for what in ("keys", "values"))
    made = {s.attributes["name"]: projected(text, 20 + i, 1, SRC) for i, s in enumerate(cross)}
    pooled = make("mean", (text,), axes=(1,), keepdims=False)
    encode = Graph((text,), {"pooled": pooled}, {"src": (1, 30)}, cross, made)

    own = causal(seed=30)
    x = own.inputs[0]
    q = projected(own.outputs["y"], 21, 1, SEQ)  # as the encoder's values: stored once
    seen = make("attention", (q, *cross), scale=SIZE**-0.5)
    y = make("add", (own.outputs["y"], merged(seen, 1)))
    dims = {**own.dims, "src": (1, 30)}
    step = Graph((x,), {"y": y}, dims, (*own.states, *cross), own.updates)
    return Module({"encode": encode, "step": step})


EVERY: dict[str, Callable[[], Graph | Module]] = {
    "accumulator": accumulator,
    "causal": causal,
    "causal, batches": lambda: causal(BATCH),
    "encoder and decoder": encoder_decoder,
    "windowed": lambda: windowed(8),
}
Calls = Sequence[tuple[str, Mapping[str, Array]]]


def played(module: Graph | Module, calls: Calls) -> list[dict[str, Array]]:
    """The outputs of calls `(function, inputs)` of one session, by the interpreter."""
    functions, states, found = Module.of(module).functions, {}, []
    for name, inputs in calls:
        outputs, states = interpret.step(functions[name], inputs, states)
        found.append(outputs)
    return found


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_stateful(seed: int) -> tuple[Graph, Session]:
    """A random graph (tests/random_graphs.py) with states, and the inputs of a session.

    Every output is blended with a state of its own that keeps its shape, and one value also goes through a state that
    grows along its second axis, whose rows are read by a sum.
    """
    graph, _ = random_graph(seed)
    outputs: dict[str, Node] = {}
    states: list[Node] = []
    updates: dict[str, Node] = {}
    for name, node in graph.outputs.items():
        state = state_(f"of_{name}", "f32", (node.shape[0], *node.shape[2:]))
        first = make("slice", (node,), axis=1, start=0, stop=1)
        row = make("reshape", (first,), shape=state.shape)
        updates[f"of_{name}"] = make("add", (row, make("tanh", (state,))))
        states.append(state)
        outputs[name] = make("add", (node, make("reshape", (state,), shape=first.shape)))
    node = next(iter(graph.outputs.values()))
    grown = state_("grown", "f32", (BATCH, PAST, node.shape[2]), grows=1)
    whole = make("concat", (grown, node), axis=1)
    outputs["grown"] = make("sum", (make("sin", (whole,)),), axes=(1,), keepdims=False)
    updates["grown"] = whole
    dims = {**graph.dims, "past": (0, 64)}
    made = Graph(graph.inputs, outputs, dims, (*states, grown), updates)
    sizes = [{"batch": 2, "seq": n} for n in (5, 1, 3)]
    return made, Session({}, [random_inputs(graph, seed + i, size) for i, size in enumerate(sizes)])
