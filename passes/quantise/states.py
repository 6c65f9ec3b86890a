"""`states`: keys and values that a session keeps, in fewer bits."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

from llmc.compiler.dims import product
from llmc.compiler.effects import Verdict, tell
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import make
from llmc.compiler.pipeline import LOSSY, Keeps, Pass
from llmc.compiler.plan_windows import attention_of
from llmc.errors import LlmcError
from llmc.passes.match import reshaped

DTYPES = ("fp16", "int8")


@dataclass(frozen=True)
class States(Pass):
    """Store the keys and values that attention keeps as halves, or as int8 with a scale for each head of a token.

    What reads them decodes it: mha(q, append(keys, new), ...) -> mha(q, append(stored keys, stored new), ...)

    Args:
        dtype: "fp16" or "int8".
    """

    name = "states"
    keeps: ClassVar[Keeps] = LOSSY
    dtype: str = "fp16"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise LlmcError(f"there are no states of {self.dtype!r}", hint=f"use {' or '.join(DTYPES)}")

    def run(self, graph: Graph) -> Graph:
        """All states that can be, but those whose attention has others beside them."""
        reasons = {state: _left(graph, state) or self._uneven(state) for state in graph.states}
        while alone := [
            state for state, why in reasons.items() if not why and _is_alone(graph, state, reasons)
        ]:
            reasons |= dict.fromkeys(alone, "read beside one that is left")
        tell("states", (Verdict(state, 1, why) for state, why in reasons.items()))
        chosen = {state.attributes["name"]: state for state, why in reasons.items() if not why}
        return _Storer(self.dtype).graph(graph, chosen) if chosen else graph

    def _uneven(self, state: Node) -> str:
        """Kernels read halves sixteen at a time; a packed row is filled up."""
        return (
            "whose heads are no multiple of 16 features"
            if self.dtype == "fp16" and state.shape[-1] % 16
            else ""
        )


def _left(graph: Graph, state: Node) -> str:
    """Why a state stays as it is; empty if it need not."""
    cores = attention_of(graph, state)
    if state.dtype != "f32":
        return f"of {state.dtype}"
    if not cores:
        return "read by other than attention"
    if any(core.op != "mha" or core.attributes["int8"] for core in cores):
        return "whose attention is not one of heads between products"
    return "" if all(_is_of_heads(core, state) for core in cores) else "that is not heads side by side"


def _is_of_heads(core: Node, state: Node) -> bool:
    a = core.attributes
    heads = a["kv_heads"] or a["heads"]
    return (
        tuple(a["offsets"])[1:] == (0, 0)
        and state.shape[-1] == a["head_dim"]
        and product(state.shape[1:-1]) == heads
    )


def _is_alone(graph: Graph, state: Node, reasons: dict[Node, str]) -> bool:
    """Whether an attention reads keys or values beside it that stay as they are."""
    read = [_under(rows) for core in attention_of(graph, state) or () for rows in core.inputs[1:3]]
    return any(node.op != "append" or reasons[node.inputs[0]] for node in read)


def _under(node: Node) -> Node:
    """What lies below views."""
    while node.op == "reshape":
        node = node.inputs[0]
    return node


class _Storer:
    """Rewrites a graph; every state and append is made once."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.made: dict[Node, Node] = {}  # append -> the same of what is stored

    def graph(self, graph: Graph, chosen: dict[str, Node]) -> Graph:
        """The graph with the chosen states, by name, stored."""
        after = graph.replace(lambda node: self._core(node, chosen.values()))
        updates = {name: self.made[node] if name in chosen else node for name, node in after.updates.items()}
        states = tuple(
            updates[name].inputs[0] if (name := node.attributes["name"]) in chosen else node
            for node in after.states
        )
        return replace(after, states=states, updates=updates)

    def _core(self, node: Node, chosen: Collection[Node]) -> Node:
        if (
            node.op != "mha"
            or _under(node.inputs[1]).op != "append"
            or _under(node.inputs[1]).inputs[0] not in chosen
        ):
            return node
        keys, values = (self._rows(_under(rows)) for rows in node.inputs[1:3])
        return node.with_inputs((node.inputs[0], keys, values, *node.inputs[3:]))

    def _rows(self, append: Node) -> Node:
        """`[1, tokens, width]`: what is stored of each token."""
        if append not in self.made:
            state, new = append.inputs
            stored = self._new(new)
            kept = {"dtype": stored.dtype, "shape": (*state.shape[:-1], stored.shape[-1])}
            begun = make("state", (), state.source, **{**state.attributes, **kept})
            self.made[append] = make("append", (begun, stored), append.source)
        made = self.made[append]
        return reshaped(made, (1, made.shape[0], product(made.shape[1:])))

    def _new(self, new: Node) -> Node:
        if self.dtype == "fp16":
            return make("cast", (new,), new.source, dtype="f16")
        return make("quantize_rows", (new,), new.source, table=True)
