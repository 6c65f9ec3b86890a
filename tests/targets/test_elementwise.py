"""Element-wise kernels against the NumPy references, at tile edges, broadcasts and special values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from kernel_lab import Lab, check, run_all

from llmc.compiler.dims import symbol
from llmc.compiler.graph import DTYPES, Graph, Node
from llmc.compiler.ops import OPS, constant, input_, make
from llmc.errors import LlmcError

Array = np.ndarray[Any, Any]
SIZES = (1, 2, 7, 15, 16, 17, 31, 33, 64, 100, 1025)
SPECIAL = (
    np.nan,
    np.inf,
    -np.inf,
    0.0,
    -0.0,
    1e-40,
    1e38,
    -1e38,
    1.0,
    -1.0,
    0.5,
    2.5,
    -2.5,
    3.0,
    -88.8,
    88.8,
)
BATCH, SEQ = symbol("batch"), symbol("seq")
APART = ("chain", "cast", "where", "sin", "cos")  # tested by themselves
SIMPLE = sorted(name for name, op in OPS.items() if op.elementwise and name not in APART)


def special_pairs(dtype: str) -> tuple[Array, Array]:
    """All pairs of special values, then random ones of several magnitudes."""
    rng = np.random.default_rng(3)
    if DTYPES[dtype].kind == "f":
        corner = np.array(SPECIAL)
        scales = np.repeat([0.1, 1.0, 8.0, 60.0, 1e4], 40)
        noise = [rng.normal(0, scales) for _ in range(2)]
    elif dtype == "bool":
        corner, noise = np.array([0, 1]), [rng.integers(0, 2, 50) for _ in range(2)]
    else:
        limits = np.iinfo(DTYPES[dtype])
        corner = np.array([limits.min, limits.max, 0, 1, limits.max - 1, limits.min + 1, 7, limits.min // 2])
        corner = np.append(corner, -1) if limits.min < 0 else corner
        low = max(limits.min, -40)
        noise = [rng.integers(low, 40, 100) for _ in range(2)]
    with np.errstate(all="ignore"):
        first = np.concatenate([np.repeat(corner, len(corner)), noise[0]]).astype(DTYPES[dtype])
        second = np.concatenate([np.tile(corner, len(corner)), noise[1]]).astype(DTYPES[dtype])
    return first, second


def legal(name: str, inputs: tuple[Node, ...], **attributes: Any) -> Node | None:
    try:
        return make(name, inputs, **attributes)
    except LlmcError:
        return None


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_every_op_and_dtype(kernels: Lab, dtype: str) -> None:
    a, b = special_pairs(dtype)
    x, y = (input_(name, dtype, (len(a),)) for name in "xy")
    c = input_("c", "bool", (len(a),))
    made = {f"{op}{n}": legal(op, (x, y)[:n]) for op in SIMPLE for n in (1, 2)}
    made["gelu_tanh"] = legal("gelu", (x,), approximate="tanh")
    made["where"] = make("where", (c, x, y))
    check(kernels, {k: v for k, v in made.items() if v is not None}, {"x": a, "y": b, "c": b > a})


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_casts(kernels: Lab, dtype: str) -> None:
    """Values that every dtype holds, but for what wraps between integers."""
    rng = np.random.default_rng(5)
    whole = dtype in ("i8", "u8", "i32", "i64", "bool")
    values = rng.integers(0, 127, 100) if whole else rng.uniform(0, 100, 100)
    x = input_("x", dtype, (100,))
    check(
        kernels,
        {d: node for d in DTYPES if (node := legal("cast", (x,), dtype=d)) is not None},
        {"x": values.astype(DTYPES[dtype])},
    )


def test_negative_casts(kernels: Lab) -> None:
    x, n = input_("x", "f32", (6,)), input_("n", "i64", (6,))
    nodes = {f"f{d}": make("cast", (x,), dtype=d) for d in ("i8", "i32", "i64", "f16", "bool")}
    nodes |= {f"n{d}": make("cast", (n,), dtype=d) for d in ("i8", "u8", "i32", "f32", "bool")}
    values = np.array([-0.9, -1.5, -100.99, 3.999, -0.0, 99.5], np.float32)
    check(kernels, nodes, {"x": values, "n": np.array([-1, -300, 2**40 + 5, 2**31, 0, -(2**63)])})


def test_sizes_share_one_kernel(kernels: Lab) -> None:
    """A symbolic flat loop at every tile edge; a static one is the same kernel."""
    x, y = input_("x", "f32", (SEQ,)), input_("y", "f32", (SEQ,))
    node = make("maximum", (x, y))
    for size in SIZES:
        values = np.random.default_rng(size).normal(size=(2, size)).astype(np.float32)
        check(kernels, {"out": node}, {"x": values[0], "y": values[1]})
    fixed = make("maximum", tuple(input_(n, "f32", (5, 7)) for n in "xy"))
    assert kernels.call_of(node).kernel == kernels.call_of(fixed).kernel


BROADCASTS: tuple[tuple[tuple[Any, ...], ...], ...] = (
    ((), ()),
    ((SEQ,), ()),
    ((BATCH, SEQ, 24), (24,)),
    ((BATCH, SEQ, 24), (BATCH, SEQ, 1)),
    ((BATCH, 3, SEQ, SEQ), (BATCH, 1, 1, SEQ)),
    ((BATCH, 3, SEQ, 5), (3, 1, 1)),
    ((BATCH, 1), (1, SEQ)),
    ((1, SEQ, 8), (BATCH, 1, 8)),
    ((BATCH, 1, 2, 1, SEQ), (1, 4, 1, 3, SEQ)),
)


@pytest.mark.parametrize("shapes", BROADCASTS)
def test_broadcasting(kernels: Lab, shapes: tuple[tuple[Any, ...], ...]) -> None:
    inputs = tuple(input_(n, "f32", s) for n, s in zip("xy", shapes, strict=True))
    nodes = {"sub": make("sub", inputs), "bus": make("sub", inputs[::-1])}
    for size in (1, 2, 17, 33):
        rng = np.random.default_rng(size)
        actual = [tuple({BATCH: 3, SEQ: size}.get(d, d) for d in s) for s in shapes]
        values = [rng.normal(size=s).astype(np.float32) for s in actual]
        check(kernels, nodes, dict(zip("xy", values, strict=True)))


def test_long_rows_are_cut(kernels: Lab) -> None:
    x, y = input_("x", "f32", (2, 2500)), input_("y", "f32", (2, 1))
    values = np.random.default_rng(1).normal(size=(2, 2500)).astype(np.float32)
    check(kernels, {"out": make("mul", (x, y))}, {"x": values, "y": values[:, :1]})


def test_chain_fuses_products_into_sums(kernels: Lab) -> None:
    """Every way a product can reach a sum: alone, negated, twice, from within an activation, subtracted."""
    x, y, m = input_("x", "f32", (SEQ, 8)), input_("y", "f32", (8,)), input_("m", "bool", (SEQ, 1))
    body = (
        ("mul", (0, 1), ()),
        ("neg", (-1,), ()),
        ("add", (-2, 0), ()),
        ("silu", (-3,), ()),
        ("sub", (-4, -1), ()),
        ("add", (-5, -2), ()),
        ("sub", (1, -6), ()),
        ("gelu", (-7,), (("approximate", "tanh"),)),
        ("where", (2, -8, -3), ()),
        ("sub", (-1, -9), ()),
    )
    node = make("chain", (x, y, m), body=body)
    for size in (1, 16, 21):
        rng = np.random.default_rng(size)
        inputs = {"x": rng.normal(size=(size, 8)).astype(np.float32)}
        inputs |= {"y": rng.normal(size=8).astype(np.float32), "m": rng.integers(0, 2, (size, 1)) > 0}
        check(kernels, {"out": node}, inputs)


@pytest.mark.parametrize("dtype", ["f32", "f16", "i32"])
def test_long_chains(kernels: Lab, dtype: str) -> None:
    """Sixteen of an op in a row, or in turns with products and sums: eight `relu` took TVM's analyzer for ever."""
    x, y = input_("x", dtype, (SEQ, 4)), input_("y", dtype, (4,))
    long = (
        "abs",
        "neg",
        "relu",
        "minimum",
        "maximum",
        "clip",
        "square",
        "sqrt",
        "floor",
        "sign",
        "mul",
        "add",
        "sub",
    )
    nodes = {}
    for op in (op for op in long if op in OPS):
        read = (0, 1) if legal(op, (x, y)) else (0,)
        if legal(op, (x, y)[: len(read)]) is None:
            continue
        alone = [(op, read, ()), *((op, (-i, *read[1:]), ()) for i in range(1, 16))]
        twice = [(op, (-i, -i), ()) if len(read) == 2 else step for i, step in enumerate(alone) if i]
        turns = [step for i in range(0, 15, 3) for step in in_turns(op, read, i)]
        nodes |= {f"{op}_{i}": tuple(b) for i, b in enumerate((alone, [alone[0], *twice], turns))}
    rng = np.random.default_rng(0)
    values = [rng.integers(-3, 4, size).astype(DTYPES[dtype]) for size in ((17, 4), 4)]
    made = {name: make("chain", (x, y), body=body) for name, body in nodes.items()}
    check(kernels, made, dict(zip("xy", values, strict=True)))


def in_turns(op: str, read: tuple[int, ...], i: int) -> list[Any]:
    """The op of the last value, a product with y, and a sum with x."""
    return [(op, (-i or 0, *read[1:]), ()), ("mul", (-i - 1, 1), ()), ("add", (-i - 2, 0), ())]


@pytest.mark.parametrize("dtype", ["f32", "i64"])
def test_conditions_in_long_chains(kernels: Lab, dtype: str) -> None:
    """At every place of a chain, and at its end: MPT's mask is a comparison, a choice, and that unlike 0."""
    x, y, zero = input_("x", dtype, (SEQ, 1)), input_("y", dtype, (1, SEQ)), input_("z", dtype, ())
    body = (
        ("le", (0, 1), ()),
        ("where", (-1, 2, 1), ()),
        ("cast", (-2,), (("dtype", "bool"),)),
        ("not", (-3,), ()),
        ("and", (-4, -1), ()),
        ("where", (-5, -2, 0), ()),
        ("ne", (-6, 2), ()),
        ("xor", (-7, -3), ()),
        ("cast", (-8,), (("dtype", "f32"),)),
    )
    nodes = {f"{count}": make("chain", (x, y, zero), body=body[:count]) for count in range(1, len(body) + 1)}
    for size in (1, 5, 37):
        row = (np.arange(size) - 2).astype(DTYPES[dtype])
        check(kernels, nodes, {"x": row[:, None], "y": row[None], "z": np.zeros((), DTYPES[dtype])})


def test_what_is_bounded_times_a_number_that_is_read(kernels: Lab) -> None:
    """Apertus' and LeViT's activations, FNet's angles: TVM's analyzer failed on the product."""
    x, c = input_("x", "f32", (SEQ, 8)), input_("c", "f32", ())
    i, n = input_("i", "i64", (SEQ, 8)), input_("n", "i64", ())
    bodies = {
        "minimum": (("minimum", (0, 1), ()), ("mul", (-1, 1), ())),
        "maximum": (("maximum", (0, 1), ()), ("mul", (-1, 1), ())),
        "where": (("gt", (0, 1), ()), ("where", (-1, 0, 1), ()), ("mul", (-2, 1), ())),
    }
    inputs = {
        "x": np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32),
        "c": np.float32(0.3).reshape(()),
        "i": np.arange(40).reshape(5, 8) - 20,
        "n": np.int64(7).reshape(()),
    }
    rest = (("mod", (0, 1), ()), ("cast", (-1,), (("dtype", "f32"),)), ("mul", (-2, 2), ()))
    nodes = {name: make("chain", (x, c), body=body) for name, body in bodies.items()}
    check(kernels, {**nodes, "rest": make("chain", (i, n, c), body=rest)}, inputs)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0, 4.0, -1.0, 0.5, 0.0])
def test_constant_exponent(kernels: Lab, exponent: float) -> None:
    x = input_("x", "f32", (20,))
    values = np.random.default_rng(2).normal(0, 5, 20).astype(np.float32)
    check(kernels, {"out": make("pow", (x, constant(np.float32(exponent))))}, {"x": values})


def test_sine_and_cosine(kernels: Lab) -> None:
    values = np.concatenate(
        [np.linspace(-20, 20, 999), 10.0 ** np.arange(15), [np.nan, np.inf, -np.inf, -0.0]]
    )
    nodes = {op: make(op, (input_("x", "f32", (values.size,)),)) for op in ("sin", "cos")}
    check(kernels, nodes, {"x": values.astype(np.float32)})
    half = {op: make(op, (input_("x", "f16", (999,)),)) for op in ("sin", "cos")}
    check(kernels, half, {"x": values[:999].astype(np.float16)})


LIMITS = {
    "tanh": (-1, 1),
    "erf": (-1, 1),
    "gelu": (0, None),
    "silu": (0, None),
    "exp": (0, np.inf),
    "sigmoid": (0, 1),
}


@pytest.mark.parametrize("op", list(LIMITS))
def test_limits_are_exact(kernels: Lab, op: str) -> None:
    low, high = LIMITS[op]
    values = np.array([-np.inf, -3e38, -500.0, 500.0, 3e38, np.inf, np.nan], np.float32)
    x = input_("x", "f32", (7,))
    approximations: list[dict[str, str]] = [{}, {"approximate": "tanh"}] if op == "gelu" else [{}]
    for attributes in approximations:
        graph = Graph((x,), {"y": make(op, (x,), **attributes)})
        y = run_all(kernels, graph, {"x": values})["y"]
        assert np.all(y[:3] == low), y
        assert np.allclose(y[3:6], values[3:6] if high is None else high, rtol=3e-7), y
        assert high is None or np.all(y[3:6] == high)
        assert np.isnan(y[6])


@pytest.mark.parametrize(
    ("op", "reference"),
    [("sin", np.sin), ("cos", np.cos), ("log", np.log), ("exp", np.exp), ("tanh", np.tanh)],
)
def test_accuracy_over_the_range(
    run_kernels: Callable[..., Any], op: str, reference: Callable[[Array], Array]
) -> None:
    """Relative error where the value is not tiny, absolute below 1e-3."""
    rng = np.random.default_rng(4)
    ranges = {"sin": 1e6, "cos": 1e6, "log": 1e30, "exp": 87.0, "tanh": 10.0}
    values = rng.uniform(1e-6 if op == "log" else -ranges[op], ranges[op], 50000).astype(np.float32)
    x = input_("x", "f32", (values.size,))
    y = run_kernels(Graph((x,), {"y": make(op, (x,))}), {"x": values})["y"]
    expected = reference(values.astype(np.float64))
    error = np.abs(y - expected) / np.maximum(np.abs(expected), 1e-3)
    assert error.max() < 5e-7, error.max()
