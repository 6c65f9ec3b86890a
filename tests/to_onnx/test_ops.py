"""Each op as ONNX: by the reference of the onnx package, and by llmc that reads it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integer_products import bf16_product, extremes
from op_cases import Case
from op_formulations import CELL_W, GATES, MEMORY, STATE
from test_ops_reference import CASES
from written_onnx import again, referenced, want_same, written

from llmc.compiler import interpret
from llmc.compiler.graph import Graph, Weight, dtype_name
from llmc.compiler.ops import OPS, constant, input_, make, results
from llmc.compiler.to_onnx.table import exporters

# Rows of bytes, and numbers of tokens, are never in a file: graphs that have them are in test_graphs.py.
PACKED = {
    "quantize_rows",
    "channel_rows",
    "split_rows",
    "int16_rows",
    "int8_rows",
    "bf16_rows",
    "pack_index",
    "pack_offsets",
    "pack_places",
}
WITHIN = PACKED | {
    "split_linear",
    "int16_linear",
    "int16_blockwise",
    "int8_blockwise",
    "bf16_linear",
    "ragged_mha",
}
STORED = {
    "qlinear",
    "dequantize_rows",
    "codebook",
    "bfloat16",
    "blockwise",
    "bitmask",
    "embed_norm",
}  # of constants
LEAVES = {"input", "state"}


def of_case(case: Case) -> tuple[Graph, dict[str, Any]]:
    """A graph of one op, and its inputs."""
    op, arrays, attributes, _ = case
    given = {} if op in STORED else {f"x{i}": a for i, a in enumerate(arrays)}
    inputs = tuple(input_(name, dtype_name(a.dtype), a.shape) for name, a in given.items())
    operands = inputs or tuple(constant(Weight(a, f"w{i}")) for i, a in enumerate(arrays))
    return Graph(inputs, {"y": make(op, operands, **attributes)}), given


@pytest.mark.parametrize("case", [c for c in CASES if c[0] not in WITHIN], ids=lambda c: c[0])
def test_an_op_means_the_same(case: Case, tmp_path: Path) -> None:
    graph, inputs = of_case(case)
    wanted = interpret.run(graph, inputs)
    written(graph, tmp_path / "m.onnx")
    want_same(referenced(tmp_path / "m.onnx", inputs), wanted)
    halves = {n.dtype for n in graph.nodes} & {"f16"}
    if not halves:  # which are read as f32
        want_same(interpret.run(again(tmp_path / "m.onnx"), inputs), wanted)


def test_a_cell_with_two_results(tmp_path: Path) -> None:
    arrays = dict(zip("xhcw", (GATES, STATE, MEMORY, CELL_W), strict=True))
    inputs = tuple(input_(name, "f32", array.shape) for name, array in arrays.items())
    after = results(make("lstm_cell", inputs))
    graph = Graph(inputs, dict(zip(("h2", "c2"), after, strict=True)))
    written(graph, tmp_path / "m.onnx")
    want_same(referenced(tmp_path / "m.onnx", arrays), interpret.run(graph, arrays))


def test_bytes_wrap_and_are_selected(tmp_path: Path) -> None:
    """ONNX Runtime has neither arithmetic on 8 bits nor a choice between flags: what is written needs none."""
    rng = np.random.default_rng(0)
    arrays = {n: rng.integers(0, 256, 40).astype(np.uint8) for n in "ab"} | {"c": rng.random(40) < 0.5}
    a, b, c = inputs = tuple(input_(n, dtype_name(v.dtype), v.shape) for n, v in arrays.items())
    outputs = {op: make(op, (a, b)) for op in ("add", "mul", "sub", "maximum", "mod", "floordiv", "lt")}
    outputs |= {"where": make("where", (c, a, b)), "flags": make("where", (c, make("eq", (a, b)), c))}
    graph = Graph(inputs, outputs)
    written(graph, tmp_path / "m.onnx")
    want_same(referenced(tmp_path / "m.onnx", arrays), interpret.run(graph, arrays))


def test_products_of_bfloat16_round_what_they_read(tmp_path: Path) -> None:
    """By a cast there and back; the weights are written out."""
    made = bf16_product(45, 70, 5, ("bias", "residual"))
    graph = Graph(made.inputs, made.outputs, {"rows": (1, 100)})
    inputs = extremes(graph, 21, 5)
    written(graph, tmp_path / "m.onnx")
    found, wanted = referenced(tmp_path / "m.onnx", inputs)["y"], interpret.run(graph, inputs)["y"]
    assert np.abs(found - wanted).max() < 1e-6 * np.abs(wanted).max()


def test_every_op_is_written() -> None:
    stored = {name for name, op in OPS.items() if op.stored}  # of constants, and so at worst computed
    assert set(OPS) - set(exporters()) - stored == PACKED
    tried = {case[0] for case in CASES} | LEAVES
    assert set(OPS) - tried == {"lstm_cell", "loop", "branch", "result"}  # above, and in test_graphs.py
