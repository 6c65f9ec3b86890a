"""Several sessions in one run of machine code: products of every precision give a row the same bits in any company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import instruction_sets
import numpy as np
from company import in_company
from stateful_graphs import PAST, SEQ, WIDTH, attends, normal

from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.ops.storage import pack_indices
from llmc.compiler.plan import make_plan
from llmc.compiler.together import Together
from llmc.driver import compile_graph
from llmc.targets.cpu.backend import BACKEND


def stored(x: Node, bits: int, block: int) -> Node:
    """A product with a weight of 8 or 4 bits."""
    rng = np.random.default_rng(bits)
    levels = rng.integers(0, 1 << bits, (48, WIDTH)).astype(np.uint8)
    scales = rng.normal(size=(48, -(-WIDTH // block))).astype(np.float16 if bits == 4 else np.float32)
    parts = (constant(pack_indices(levels, bits)), constant(scales))
    return make("linear", (x, make("blockwise", parts, columns=WIDTH, bits=bits, block=block)))


def decoder() -> Graph:
    """A causal layer, which `--quant int8` makes integer products of, and products with stored weights."""
    x = input_("x", "f32", (1, SEQ, WIDTH))
    y, states, updates = attends(x)
    outputs = {"y": y, "eight": stored(y, 8, WIDTH), "four": stored(y, 4, 32)}
    return Graph((x,), outputs, {"seq": (1, 40), "past": (0, 40)}, states, updates)


def rows(session: int, call: int, count: int) -> dict[str, Any]:
    return {"x": normal(100 * session + call, 1, count, WIDTH)}


def test_every_precision(tmp_path: Path, variants: Any) -> None:
    with instruction_sets.code_of_this_processor():
        compile_graph(decoder(), tmp_path / "m.llmc", target="x86", quant="int8")
    in_company(tmp_path / "m.llmc", rows, (1, 3), variants(tmp_path / "m.llmc"))


def test_products_serve_all_sessions() -> None:
    """What reads weights runs once; only what touches states runs for each session."""
    graph = decoder()
    plan, together = make_plan(graph, calls := BACKEND.lower(graph)), Together(graph)
    assert plan.together is not None
    served = {call.operands[-1].op: together.serves_all(call) for call in calls}  # type: ignore[union-attr]
    assert served["linear"]
    assert not served["attention"]
    assert {"seq"} == together.row_dims
    assert str(PAST) not in together.row_dims
