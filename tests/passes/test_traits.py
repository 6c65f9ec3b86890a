"""Passes ask an op's traits, not its name: ops from outside go through all that llmc's own go through."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_encoders import Encoder

import llmc
from llmc.compiler import extensions, interpret
from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS, constant, input_, make
from llmc.compiler.ops.declare import REQUIRED, define
from llmc.compiler.ops.linear import product_rows
from llmc.compiler.ops.traits import Rows
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.verify import verify
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES
from llmc.passes.rows.blank import Blank
from llmc.passes.rows.narrow import Narrow
from llmc.passes.rows.ragged import Ragged

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(5)
B, S = symbol("batch"), symbol("seq")
DIMS = {"batch": (1, 8), "seq": (1, 16)}


def _alike(name: str, like: str, **more: Any) -> Any:
    """An op that is another in all but its name."""
    op = OPS[like]
    fields = ("accuracy", "product", "rows", "sequences", "symbolic", "counts", "partial")
    traits = {f: getattr(op, f) for f in fields if getattr(op, f) not in (None, "")}
    return define(name, op.reference, traits={**traits, **more}, **op.defaults)(op.rule)


gate = define(
    "gate",
    lambda x, flag: np.where(flag, x, np.float32(0)),
    traits={"elementwise": True, "partial": lambda x, flag: np.zeros((), np.float32) if flag == 0 else None},
)(lambda x, flag: x)
columns = define(
    "first_columns",
    lambda x, count: x[..., :count],
    traits={"moves": True, "rows": Rows(lambda node: (0,) if node.type.rank > 2 else ())},
    count=REQUIRED,
)(lambda x, count: type(x)(x.dtype, (*x.shape[:-1], count)))

OUTSIDE = llmc.Extension(
    "outside",
    ops=(
        _alike("our_linear", "linear", rows=Rows(product_rows, sliced=True)),
        _alike("our_norm", "layer_norm"),
        _alike("our_mha", "mha"),
        _alike("our_softmax", "softmax"),
        _alike("our_index", "pack_index"),
        gate,
        columns,
    ),
)


@pytest.fixture(autouse=True)
def loaded() -> Iterator[None]:
    names = [llmc.load_extension(e).name for e in (OUTSIDE, *examples("softsign", "swiglu"))]
    yield
    for name in names:
        extensions.unload(name)


def examples(*names: str) -> list[Path]:
    return [ROOT / "examples" / "extension" / f"{name}.py" for name in names]


def weights(*shape: int) -> Node:
    return constant((RNG.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32))


def renamed(graph: Graph) -> Graph:
    """`graph` with our own products, norms and attention in it."""
    ours = {"linear": "our_linear", "layer_norm": "our_norm", "mha": "our_mha"}

    def change(node: Node) -> Node:
        return make(ours[node.op], node.inputs, node.source, **node.attributes) if node.op in ours else node

    return graph.replace(change)


def same(before: Graph, after: Graph, inputs: dict[str, Any]) -> None:
    expected = interpret.run(before, inputs)
    for name, found in interpret.run(after, inputs).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-6)


def test_narrow() -> None:
    x = input_("x", "f32", (B, S, 12))
    y = make("our_linear", (x, weights(20, 12), weights(20)), epilogue=("bias",))
    y = make("swiglu", (make("softsign", (y,)),))
    y = make("our_norm", (y, weights(10), weights(10)), eps=1e-5)
    graph = Graph((x,), {"y": make("slice", (y,), axis=1, start=0, stop=1)}, DIMS)
    after = Narrow().run(graph)
    assert [
        str(n.shape[1]) for n in after.nodes if n.op in ("our_linear", "swiglu", "softsign", "our_norm")
    ] == ["1"] * 4
    (cut,) = [n for n in after.nodes if n.op == "slice"]
    assert cut.inputs[0].op == "input"
    same(graph, after, {"x": RNG.normal(size=(3, 7, 12)).astype(np.float32)})


@pytest.mark.parametrize("seed", range(10, 16))
def test_an_encoder_of_ops_from_outside_is_packed(seed: int) -> None:
    own = Pipeline.parse(LEVELS[3], PASSES).run(Encoder(seed, mask="fill").graph())[0]
    graph = Blank("mask").run(renamed(own))
    packed, expected = Ragged().run(graph), Ragged().run(Blank("mask").run(own))
    verify(packed)
    counts = [[n.type for n in g.nodes if n.shape[:1] == (symbol("tokens"),)] for g in (packed, expected)]
    assert counts[0] == counts[1], "packed just where llmc's own ops are"
    assert any(n.op == "our_linear" for n in packed.nodes)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]])
    same(graph, packed, {"ids": RNG.integers(0, 23, mask.shape), "mask": mask})


def test_rows_and_what_is_known_at_padding() -> None:
    """softsign, swiglu, an axis that moves, and a gate whose zeros at padding nobody's padding reaches."""
    x, mask = input_("x", "f32", (B, S, 20)), input_("mask", "i64", (B, S), low=0, high=1)
    keys = make("cast", (mask,), dtype="bool")
    y = make("swiglu", (make("softsign", (x,)),))
    y = make("our_mha", (y, y, y, keys), heads=2, head_dim=5, scale=0.4, has_keys=True)
    y = make("our_softmax", (y,), axis=2)
    flags = make("reshape", (mask,), shape=(B, S, 1))
    known = make("first_columns", (make("gate", (y, flags)),), count=4)
    pooled = make("sum", (known,), axes=(1,))  # reads padding, where zeros are known to be
    graph = Graph((x, mask), {"y": pooled}, DIMS)
    verify(graph)
    after = Ragged().run(graph)
    verify(after)
    packed = {n.op: n for n in after.nodes if n.shape[:1] == (symbol("tokens"),)}
    assert {"swiglu", "softsign", "ragged_mha", "our_softmax"} <= packed.keys()
    assert packed["our_softmax"].attributes["axis"] == 1
    inputs = {"x": RNG.normal(size=(3, 6, 20)).astype(np.float32)}
    same(graph, after, {**inputs, "mask": (np.arange(6) < np.array([[6], [2], [1]])).astype(np.int64)})


def test_an_op_that_counts() -> None:
    mask = input_("mask", "i64", (B, S), low=0, high=1)
    graph = Graph(
        (mask,), {"y": make("our_index", (mask,), tokens=symbol("kept"))}, {**DIMS, "kept": (1, 128)}
    )
    verify(graph)
    assert interpret.run(graph, {"mask": np.array([[0, 1, 0], [1, 0, 1]])})["y"].tolist() == [0, 1, 3, 5]
    other = make("our_index", (make("neg", (mask,)),), tokens=symbol("kept"))
    with pytest.raises(LlmcError, match="not an input"):
        verify(Graph((mask,), {"y": other}, {**DIMS, "kept": (1, 128)}))


def test_chains_hold_what_has_code_for_values_in_registers() -> None:
    x = input_("x", "f32", (B, 8))

    def fused(op: str) -> list[str]:
        y = make(
            "exp",
            (
                make(
                    op,
                    (make("neg", (x,)), *([x] * (op == "gate"))),
                ),
            ),
        )
        after, _ = Pipeline.parse("fuse", PASSES).run(Graph((x,), {"y": y}, DIMS))
        return [n.op for n in after.nodes[1:]]

    assert fused("softsign") == ["chain"]
    assert fused("gate") == ["neg", "gate", "exp"], "it has no kernel at all, and is to be named by itself"


# --- no tables of names


def tables(file: Path) -> list[str]:
    """Collections of at least three names of ops, and mappings of names to anything but functions."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Set(elts=parts) | ast.Tuple(elts=parts) | ast.List(elts=parts):
                names = parts
            case ast.Dict(keys=keys, values=values) if all(isinstance(v, ast.Constant) for v in values):
                names = [k for k in keys if k is not None]
            case _:
                continue
        if sum(isinstance(n, ast.Constant) and n.value in OPS for n in names) >= 3:
            found.append(f"{file.name}:{node.lineno}")
    return found


def test_no_tables_of_op_names() -> None:
    files = [
        *(ROOT / "passes" / "rows").glob("*.py"),
        ROOT / "passes" / "fuse" / "chains.py",
        ROOT / "passes" / "match.py",
        ROOT / "targets" / "tir" / "scalar_ops.py",
        *(ROOT / "targets" / "cpu" / "elementwise").glob("elementwise.py"),
        ROOT / "compiler" / "interpret.py",
        ROOT / "compiler" / "verify.py",
        ROOT / "compiler" / "counted.py",
    ]
    assert not [place for file in files for place in tables(file)]
    assert "pack_index" not in "".join(f.read_text() for f in files if f.parent.name == "compiler")


def test_a_table_is_noticed(tmp_path: Path) -> None:
    for text in (
        'X = ("exp", "log", "sin")',
        'X = {"exp": 16, "log": 60, "sin": 50}',
        'X = frozenset({"add", "mul", "sub"})',
    ):
        (tmp_path / "x.py").write_text(text)
        assert tables(tmp_path / "x.py") == ["x.py:1"]
