"""Ops of ONNX Runtime's own domain, by the formulas of its documentation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from llmc.compiler.frontends.dispatch import load
from llmc.compiler.interpret import run
from llmc.errors import LlmcError

F = np.float32
RNG = np.random.default_rng(5)
KINDS = {
    np.dtype(F): T.FLOAT,
    np.dtype(np.int64): T.INT64,
    np.dtype(np.int32): T.INT32,
    np.dtype(np.uint8): T.UINT8,
}


def made(folder: Path, op: str, inputs: dict[str, Any], outputs: int = 1, **attributes: Any) -> list[Any]:
    """All outputs of a node; inputs called `x...` are the graph's, others weights, None is left out."""
    names = [name if value is not None else "" for name, value in inputs.items()]
    node = helper.make_node(
        op, names, [f"y{i}" for i in range(outputs)], domain="com.microsoft", **attributes
    )
    live = {k: np.asarray(v) for k, v in inputs.items() if v is not None and k.startswith("x")}
    weights = [
        numpy_helper.from_array(np.asarray(v), k)
        for k, v in inputs.items()
        if v is not None and k not in live
    ]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(k, KINDS[v.dtype], v.shape) for k, v in live.items()],
        [helper.make_tensor_value_info(f"y{i}", T.UNDEFINED, None) for i in range(outputs)],
        weights,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    (folder / "m.onnx").write_bytes(helper.make_model(graph, opset_imports=opsets).SerializeToString())
    found = run(load(folder / "m.onnx").graph, live)
    return [found[f"y{i}"] for i in range(outputs)]


def normal(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(F)


def gelu(x: Any) -> Any:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def norm(x: Any, scale: Any, shift: Any, eps: float = 1e-12) -> Any:
    away = x - x.mean(-1, keepdims=True)
    return away / np.sqrt((away**2).mean(-1, keepdims=True) + eps) * scale + shift


def softmax(x: Any) -> Any:
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def close(got: Any, wanted: Any) -> None:
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)


def test_activations(tmp_path: Path) -> None:
    x, bias = normal(2, 3, 4), normal(4)
    close(made(tmp_path, "Gelu", {"x": x})[0], gelu(x))
    close(made(tmp_path, "BiasGelu", {"x": x, "b": bias})[0], gelu(x + bias))
    tanh = (
        0.5 * (x + bias) * (1 + np.tanh(math.sqrt(2 / math.pi) * ((x + bias) + 0.044715 * (x + bias) ** 3)))
    )
    close(made(tmp_path, "FastGelu", {"x": x, "b": bias})[0], tanh)
    close(made(tmp_path, "QuickGelu", {"x": x}, alpha=1.5)[0], x / (1 + np.exp(-1.5 * x)))
    close(made(tmp_path, "BiasAdd", {"x": x, "b": bias, "xs": 2 * x})[0], 3 * x + bias)
    close(
        made(tmp_path, "BiasSplitGelu", {"x": x, "b": bias})[0],
        (x + bias)[..., :2] * gelu((x + bias)[..., 2:]),
    )


def test_norms_of_sums(tmp_path: Path) -> None:
    x, skip, scale, shift, bias = normal(2, 3, 4), normal(2, 3, 4), normal(4), normal(4), normal(4)
    inputs = {"x": x, "xs": skip, "g": scale, "s": shift, "b": bias}
    node = helper.make_node(
        "SkipLayerNormalization", list(inputs), ["y0", "", "", "y3"], domain="com.microsoft"
    )
    assert node.output[3] == "y3"
    close(made(tmp_path, "SkipLayerNormalization", inputs)[0], norm(x + skip + bias, scale, shift))
    total = x + skip
    rms = total / np.sqrt((total**2).mean(-1, keepdims=True) + 1e-5) * scale
    simple = {"x": x, "xs": skip, "g": scale}
    close(made(tmp_path, "SkipSimplifiedLayerNormalization", simple, epsilon=1e-5)[0], rms)


def test_embeddings(tmp_path: Path) -> None:
    ids, segments = np.array([[3, 1, 0]], np.int32), np.array([[0, 1, 1]], np.int32)
    words, places, kinds, scale, shift = normal(5, 4), normal(8, 4), normal(2, 4), normal(4), normal(4)
    mask = np.array([[1, 1, 0]], np.int32)
    inputs = {
        "x": ids,
        "xs": segments,
        "w": words,
        "p": places,
        "k": kinds,
        "g": scale,
        "s": shift,
        "xm": mask,
    }
    y, kept, total = made(tmp_path, "EmbedLayerNormalization", inputs, outputs=3)
    wanted = words[ids] + places[:3] + kinds[segments]
    close(total, wanted)
    close(y, norm(wanted, scale, shift))
    assert kept.tolist() == [2]


def attended(q: Any, k: Any, v: Any, mask: Any, heads: int) -> Any:
    q, k, v = (t.reshape(*t.shape[:2], heads, -1).transpose(0, 2, 1, 3) for t in (q, k, v))
    scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1]) + mask
    y = (softmax(scores) @ v).transpose(0, 2, 1, 3)
    return y.reshape(*y.shape[:2], -1)


def test_attention(tmp_path: Path) -> None:
    x, weight, bias = normal(2, 5, 4), normal(4, 12), normal(12)
    q, k, v = np.split(x @ weight + bias, 3, -1)
    kept = np.array([5, 3], np.int32)
    mask = np.where(np.arange(5) < kept[:, None], 0, -10000)[:, None, None]
    inputs = {"x": x, "w": weight, "b": bias, "xm": kept}
    close(made(tmp_path, "Attention", inputs, num_heads=2)[0], attended(q, k, v, mask, 2))
    rows = (np.arange(5) < kept[:, None]).astype(np.int32)
    close(made(tmp_path, "Attention", {**inputs, "xm": rows}, num_heads=2)[0], attended(q, k, v, mask, 2))
    causal = np.where(np.tri(5) > 0, 0, -10000)
    del inputs["xm"]
    y, present = made(tmp_path, "Attention", inputs, outputs=2, num_heads=2, unidirectional=1)
    close(y, attended(q, k, v, causal, 2))
    close(present[0], k.reshape(2, 5, 2, 2).transpose(0, 2, 1, 3))


def test_multi_head_attention(tmp_path: Path) -> None:
    q, k, v, bias = normal(2, 3, 4), normal(2, 5, 4), normal(2, 5, 4), normal(12)
    shifted = [t + b for t, b in zip((q, k, v), np.split(bias, 3), strict=True)]
    inputs = {"x": q, "xk": k, "xv": v, "b": bias}
    close(made(tmp_path, "MultiHeadAttention", inputs, num_heads=2)[0], attended(*shifted, 0, 2))
    more = normal(2, 2, 3, 5)
    full = {**inputs, "xm": np.array([5, 2], np.int32), "xa": more}
    mask = np.where(np.arange(5) < np.array([[5], [2]]), 0, -10000)[:, None, None] + more
    close(made(tmp_path, "MultiHeadAttention", full, num_heads=2)[0], attended(*shifted, mask, 2))


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary(interleaved: int, tmp_path: Path) -> None:
    x, angles = normal(1, 3, 8), normal(6, 2)
    places = np.array([[4, 0, 2]])
    inputs = {"x": x, "xp": places, "c": np.cos(angles), "s": np.sin(angles)}
    (got,) = made(tmp_path, "RotaryEmbedding", inputs, interleaved=interleaved)
    heads = x.reshape(1, 3, 2, 4)
    a, b = (heads[..., 0::2], heads[..., 1::2]) if interleaved else (heads[..., :2], heads[..., 2:])
    turn = np.exp(1j * angles[places])[:, :, None] * (a + 1j * b)
    parts = np.stack([turn.real, turn.imag], -1 if interleaved else -2)
    close(got, parts.reshape(x.shape))


def test_products(tmp_path: Path) -> None:
    a, b = normal(2, 3, 4), normal(5, 4)
    (got,) = made(tmp_path, "FusedMatMul", {"x": a, "b": b}, transB=1, alpha=0.5)
    close(got, a @ b.T / 2)
    close(made(tmp_path, "TransposeMatMul", {"x": a, "b": b}, transB=1)[0], a @ b.T)
    bias = normal(5)
    close(
        made(tmp_path, "FusedGemm", {"x": a[0], "b": b.T.copy(), "c": bias}, activation="Relu")[0],
        np.maximum(a[0] @ b.T + bias, 0),
    )
    image, kernel, rest = normal(1, 2, 3, 3), normal(4, 2, 1, 1), normal(1, 4, 3, 3)
    wanted = np.einsum("bchw,oc->bohw", image, kernel[:, :, 0, 0]) + rest
    (got,) = made(tmp_path, "FusedConv", {"x": image, "w": kernel, "b": None, "z": rest}, activation="Relu")
    close(got, np.maximum(wanted, 0))


def codes(x: Any, scale: float, zero: int) -> Any:
    return np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.uint8)


def test_quantised_ops(tmp_path: Path) -> None:
    a, b = RNG.integers(0, 255, (2, 4)).astype(np.uint8), RNG.integers(0, 255, (2, 4)).astype(np.uint8)
    s, z = F(0.1), np.uint8(100)
    va, vb = ((t.astype(F) - 100) * s for t in (a, b))
    pair = {"x": a, "s": s, "z": z, "xb": b, "s2": s, "z2": z, "sy": F(0.5), "zy": np.uint8(90)}
    for op, wanted in (("QLinearAdd", va + vb), ("QLinearMul", va * vb)):
        near = np.abs(made(tmp_path, op, pair)[0].astype(int) - codes(wanted, 0.5, 90))
        assert near.max() <= 1
    one = {"x": a, "s": s, "z": z, "sy": F(0.01), "zy": np.uint8(0)}
    for op, wanted, more in (
        ("QLinearSigmoid", 1 / (1 + np.exp(-va)), {}),
        ("QLinearLeakyRelu", np.where(va > 0, va, 0.25 * va), {"alpha": 0.25}),
        ("QLinearSoftmax", softmax(va), {"axis": -1, "opset": 13}),
    ):
        near = np.abs(made(tmp_path, op, one, **more)[0].astype(int) - codes(wanted, 0.01, 0))
        assert near.max() <= 1
    image = {**one, "x": a.reshape(1, 2, 2, 2)}
    (got,) = made(tmp_path, "QLinearGlobalAveragePool", image)
    assert (
        np.abs(got.astype(int) - codes(va.reshape(1, 2, 2, 2).mean((2, 3), keepdims=True), 0.01, 0)).max()
        <= 1
    )
    parts = {"sy": F(0.2), "zy": np.uint8(90), "x": a, "s": s, "z": z, "xb": b, "s2": s, "z2": z}
    (got,) = made(tmp_path, "QLinearConcat", parts, axis=1)
    assert np.abs(got.astype(int) - codes(np.concatenate([va, vb], 1), 0.2, 90)).max() <= 1


def test_products_of_integers(tmp_path: Path) -> None:
    a = RNG.integers(0, 255, (3, 700)).astype(np.uint8)
    b = RNG.integers(-127, 127, (700, 2)).astype(np.int8)
    scales = {"sa": F(0.1), "sb": F(0.01), "za": np.uint8(3), "zb": np.int8(0), "bias": normal(2)}
    (got,) = made(tmp_path, "MatMulIntegerToFloat", {"x": a, "b": b, **scales})
    wanted = (a.astype(np.int64) - 3) @ b.astype(np.int64) * 0.001 + scales["bias"]
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    x = normal(3, 700)
    (got,) = made(tmp_path, "DynamicQuantizeMatMul", {"x": x, "b": b, "s": F(0.01), "z": np.int8(0)})
    exact = x @ b.astype(F) * 0.01
    assert np.abs(got - exact).max() < 0.02 * np.abs(exact).max()


def test_quantise_and_back(tmp_path: Path) -> None:
    x = normal(2, 3)
    (q,) = made(tmp_path, "QuantizeLinear", {"x": x, "s": F(0.02), "z": np.uint8(128)})
    np.testing.assert_array_equal(q, codes(x, F(0.02), 128))
    (back,) = made(tmp_path, "DequantizeLinear", {"x": q, "s": F(0.02), "z": np.uint8(128)})
    assert np.abs(back - np.clip(x, -2.56, 2.54)).max() <= 0.0101


STEPS, WIDTH, UNITS = 5, 6, 4


def by_its_range(x: Any) -> Any:
    """What is left of x quantised to 8 bits by the range of all of it."""
    low, high = min(x.min(), F(0)), max(x.max(), F(0))
    scale = (high - low) / F(255) if high > low else F(1)
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale


def lstm(x: Any, w: Any, r: Any, bias: Any, h: Any, c: Any) -> tuple[Any, Any, Any]:
    """One direction; gates are i, o, f, g."""
    given, outputs = by_its_range(x) @ w, []
    for step in given:
        i, o, f, g = np.split(step + by_its_range(h) @ r + bias, 4, axis=-1)
        i, o, f = (1 / (1 + np.exp(-gate)) for gate in (i, o, f))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs), h, c


def lstm_weights(dtype: Any, by_column: bool) -> dict[str, Any]:
    size = (2, 4 * UNITS) if by_column else (2,)
    levels = [RNG.integers(20, 120, (2, n, 4 * UNITS)).astype(dtype) for n in (WIDTH, UNITS)]
    zero = np.full(size, 70 if dtype == np.uint8 else 0, dtype)
    scales = [RNG.uniform(0.005, 0.01, size).astype(F) for _ in range(2)]
    return dict(
        zip(("w", "r", "sw", "zw", "sr", "zr"), (*levels, scales[0], zero, scales[1], zero), strict=True)
    )


@pytest.mark.parametrize(("dtype", "by_column"), [(np.uint8, True), (np.int8, False)])
def test_an_lstm_quantises_its_input_and_each_state(dtype: Any, by_column: bool, tmp_path: Path) -> None:
    x, bias = normal(STEPS, 2, WIDTH), normal(2, 8 * UNITS) / 4
    h, c = normal(2, 2, UNITS), normal(2, 2, UNITS)
    held = lstm_weights(dtype, by_column)
    first = {"x": x, "w": held["w"], "r": held["r"], "b": bias, "none": None, "h": h, "c": c, "no": None}
    made_of = {"direction": "bidirectional", "hidden_size": UNITS}
    got = made(tmp_path, "DynamicQuantizeLSTM", first | held, 3, **made_of)

    def meant(levels: Any, d: int) -> Any:
        zero = held["zw"].astype(F)[d]
        return (held[levels][d].astype(F) - zero) * held["s" + levels][d]

    ways = [
        lstm(x[::way], meant("w", d), meant("r", d), bias[d].reshape(2, -1).sum(0), h[d], c[d])
        for d, way in enumerate((1, -1))
    ]
    close(got[0], np.stack([ways[0][0], ways[1][0][::-1]], axis=1))
    close(got[1:], [np.stack([way[place] for way in ways]) for place in (1, 2)])


def test_an_lstm_by_integers_of_rows_with_lengths_is_refused(tmp_path: Path) -> None:
    held = {k: v[:1] for k, v in lstm_weights(np.int8, False).items()}
    x, no = normal(STEPS, 2, WIDTH), {"h": None, "c": None, "p": None}
    inputs = {"x": x, "w": held.pop("w"), "r": held.pop("r"), "b": None, "x_lengths": np.int32([3, 5]), **no}
    with pytest.raises(LlmcError, match="rows with lengths of their own"):
        made(tmp_path, "DynamicQuantizeLSTM", inputs | held, 1, hidden_size=UNITS)
