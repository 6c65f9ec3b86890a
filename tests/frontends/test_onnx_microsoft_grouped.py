"""`GroupQueryAttention` against its formula, sequence by sequence, in prompts, next tokens and batches of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from llmc.compiler.frontends.dispatch import load
from llmc.compiler.graph import Graph
from llmc.compiler.interpret import run
from llmc.errors import LlmcError, LlmcWarning

HEADS, GROUPS, WIDTH, LONGEST = 4, 2, 6, 16
RNG = np.random.default_rng(8)
ANGLES = np.arange(LONGEST)[:, None] / 100 ** (np.arange(WIDTH // 2) / WIDTH)
SINK, BIAS = RNG.normal(size=HEADS).astype(np.float32), "bias"
# tokens, what each sequence has of its past, padding behind the tokens of each
CALLS = {
    "a prompt": (5, [0], [0]),
    "the next token": (1, [5], [0]),
    "more of a prompt": (3, [4], [0]),
    "prompts": (6, [0, 0], [0, 2]),
    "next tokens": (1, [7, 4], [0, 0]),
}


def floats(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def value(name: str, kind: int, *shape: Any) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def written(
    folder: Path, packed: bool = False, total: str = "total", lengths: str = "lengths", **how: Any
) -> Path:
    """A file whose attention_mask says how long sequences are, as exporters write it, or whose inputs do."""
    hidden, keys = HEADS * WIDTH, GROUPS * WIDTH
    sizes = {"q": hidden + 2 * keys} if packed else {"q": hidden, "k": keys, "v": keys}
    places = how.pop("places", "")
    optional = {"bias": how.pop("bias", ""), "sink": how.pop("sink", "")}
    tables = ["cos", "sin"] if how.get("do_rotary") else ["", ""]
    counted = [
        helper.make_node("ReduceSum", ["attention_mask", "axis"], ["count"], keepdims=0),
        helper.make_node("Sub", ["count", "one"], ["last"]),
        helper.make_node("Cast", ["last"], ["lengths"], to=T.INT32),
        helper.make_node("Shape", ["attention_mask"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["all"], axis=0),
        helper.make_node("Cast", ["all"], ["total"], to=T.INT32),
    ]
    fed = [*(["q", "", ""] if packed else ["q", "k", "v"]), "past.k", "past.v", lengths, total, *tables]
    fed += [places, optional["bias"], optional["sink"]]
    node = helper.make_node(
        "GroupQueryAttention",
        fed,
        ["y", "present.k", "present.v"],
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=GROUPS,
        **how,
    )
    inputs = [value(name, T.FLOAT, "batch", "new", size) for name, size in sizes.items()]
    inputs += [value(f"past.{name}", T.FLOAT, "batch", GROUPS, "past", WIDTH) for name in "kv"]
    inputs += [value("attention_mask", T.INT64, "batch", "total_sequence_length")]
    inputs += [value(places, T.INT64, "batch", "new")] if places else []
    inputs += (
        [value(BIAS, T.FLOAT, "batch", HEADS, "new", "total_sequence_length")] if optional["bias"] else []
    )
    inputs += [value(total, T.INT32)] if total != "total" else []
    inputs += [value(lengths, T.INT32, "batch")] if lengths != "lengths" else []
    outputs = [value("y", T.FLOAT, "batch", "new", hidden)]
    outputs += [value(f"present.{name}", T.FLOAT, "batch", GROUPS, "total", WIDTH) for name in "kv"]
    weights = {"axis": np.array([1]), "one": np.array(1), "sink": SINK}
    weights |= {"cos": np.cos(ANGLES).astype(np.float32), "sin": np.sin(ANGLES).astype(np.float32)}
    graph = helper.make_graph(
        [*counted, node], "g", inputs, outputs, [numpy_helper.from_array(v, k) for k, v in weights.items()]
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    (folder / "m.onnx").write_bytes(helper.make_model(graph, opset_imports=opsets).SerializeToString())
    return folder / "m.onnx"


def call(new: int, before: list[int], padding: list[int]) -> dict[str, Any]:
    batch, past = len(before), max(before)
    held = np.array(before) + new - np.array(padding)
    given = {"q": floats(batch, new, HEADS * WIDTH)}
    given |= {name: floats(batch, new, GROUPS * WIDTH) for name in "kv"}
    given |= {f"past.{name}": floats(batch, GROUPS, past, WIDTH) for name in "kv"}
    return {**given, "attention_mask": (np.arange(past + new) < held[:, None]).astype(np.int64)}


def turned(x: Any, first: int, interleaved: bool) -> Any:
    """[tokens, heads, d] from position `first` on, by complex numbers."""
    a, b = (x[..., ::2], x[..., 1::2]) if interleaved else np.split(x, 2, -1)
    turn = np.exp(1j * ANGLES[first : first + len(x)])[:, None] * (a + 1j * b)
    return np.stack([turn.real, turn.imag], -1 if interleaved else -2).reshape(x.shape)


def softmax(scores: Any, sinks: Any) -> Any:
    e = np.exp(scores)
    return e / (e.sum(-1, keepdims=True) + (0 if sinks is None else np.exp(sinks)))


def alone(given: dict[str, Any], row: int, before: int, **how: Any) -> tuple[Any, Any, Any]:
    """One sequence: its result `[tokens, hidden]`, its keys and values `[groups, keys, d]`, in float64."""
    new = given["attention_mask"][row].sum() - before
    q, k, v = (given[n][row, :new].astype(float).reshape(new, -1, WIDTH) for n in "qkv")
    if how.get("do_rotary"):
        q, k = (turned(x, before, bool(how.get("rotary_interleaved"))) for x in (q, k))
    past = [given[f"past.{n}"][row, :, :before] for n in "kv"]
    k, v = (np.concatenate([old, x.swapaxes(0, 1)], 1) for old, x in zip(past, (k, v), strict=True))
    wide = [x.repeat(HEADS // GROUPS, 0) for x in (k, v)]
    scores = q.swapaxes(0, 1) @ wide[0].swapaxes(1, 2) * how.get("scale", WIDTH**-0.5)
    if how.get("softcap"):
        scores = np.tanh(scores / how["softcap"]) * how["softcap"]
    if how.get("bias"):
        scores = scores + given[BIAS][row, :, :new, : before + new]
    own, place = before + np.arange(new)[:, None], np.arange(before + new)
    near = place > own - how.get("local_window_size", LONGEST)
    scores = np.where((place <= own) & near, scores, -np.inf)
    sinks = SINK[:, None, None] if how.get("sink") else np.zeros(1) if how.get("smooth_softmax") else None
    y = (softmax(scores, sinks) @ wide[1]).swapaxes(0, 1)
    return y.reshape(new, -1), k, v


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotary": {"do_rotary": 1},
    "pairs": {"do_rotary": 1, "rotary_interleaved": 1},
    "window": {"local_window_size": 3},
    "cap": {"softcap": 0.7, "scale": 0.9},
    "smooth": {"smooth_softmax": 1},
    "sink": {"sink": "sink"},
    "bias": {"bias": BIAS, "local_window_size": 4},
    "all": {"do_rotary": 1, "softcap": 2.0, "sink": "sink", "bias": BIAS, "local_window_size": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_by_the_formula(way: str, tmp_path: Path) -> None:
    graph = load(written(tmp_path, **WAYS[way])).graph
    for new, before, padding in CALLS.values():
        given = call(new, before, padding)
        if "bias" in WAYS[way]:
            given[BIAS] = floats(len(before), HEADS, new, max(before) + new)
        want_rows(graph, given, before, **WAYS[way])


def want_rows(graph: Graph, given: dict[str, Any], before: list[int], **how: Any) -> None:
    found = run(graph, {k: v for k, v in given.items() if k in {n.attributes["name"] for n in graph.inputs}})
    for row, held in enumerate(before):
        y, k, v = alone(given, row, held, **how)
        np.testing.assert_allclose(found["y"][row, : len(y)], y, rtol=1e-5, atol=1e-5)
        for name, wanted in (("k", k), ("v", v)):
            present = found[f"present.{name}"]
            assert present.shape[2] == given["attention_mask"].shape[1]
            np.testing.assert_allclose(present[row, :, : wanted.shape[1]], wanted, rtol=1e-5, atol=1e-5)


def test_packed(tmp_path: Path) -> None:
    graph = load(written(tmp_path, packed=True, do_rotary=1)).graph
    for new, before, padding in CALLS.values():
        given = call(new, before, padding)
        packed = {**given, "q": np.concatenate([given[n] for n in "qkv"], -1)}
        found, wanted = (
            run(graph, {k: packed[k] for k in packed if k not in "kv"}),
            alone(given, 0, before[0], do_rotary=1),
        )
        np.testing.assert_allclose(found["y"][0, : len(wanted[0])], wanted[0], rtol=1e-5, atol=1e-5)


def test_positions_of_their_own(tmp_path: Path) -> None:
    """As the lengths would give them, and others."""
    graph = load(written(tmp_path, places="position_ids", do_rotary=1)).graph
    given = call(3, [4], [0])
    want_rows(graph, {**given, "position_ids": np.array([[4, 5, 6]])}, [4], do_rotary=1)
    moved = run(graph, {**given, "position_ids": np.array([[1, 3, 5]])})
    first = alone(given, 0, 4, do_rotary=1)
    assert np.abs(moved["y"][0] - first[0]).max() > 1e-3


def test_the_mask_is_as_long_as_past_and_new_tokens(tmp_path: Path) -> None:
    graph = load(written(tmp_path)).graph
    mask = next(node for node in graph.inputs if node.attributes["name"] == "attention_mask")
    assert str(mask.shape[1]) == "new + past"
    assert (graph.dims["past"].low, graph.dims["new"].low) == (0, 1)
    given = call(1, [5], [0])
    with pytest.raises(LlmcError, match="attention_mask"):
        run(graph, {**given, "attention_mask": np.ones((1, 8), np.int64)})


def test_a_buffer_of_one_size_is_refused_in_a_call(tmp_path: Path) -> None:
    """ONNX Runtime writes into the past where it is as long as all will be; here it grows."""
    graph = load(written(tmp_path), dims={"total_sequence_length": 8}).graph
    assert run(graph, {**call(1, [7], [0])})["present.k"].shape[2] == 8
    given = {**call(1, [8], [0]), "attention_mask": np.ones((1, 8), np.int64)}
    with pytest.raises(LlmcError, match="8"):
        run(graph, given)


def test_a_length_at_run_time_is_told(tmp_path: Path) -> None:
    with pytest.warns(LlmcWarning, match="total_sequence_length"):
        graph = load(written(tmp_path, total="length")).graph
    given = {**call(1, [5], [0]), "length": np.array(6, np.int32)}
    want_rows(graph, given, [5])


def test_a_bias_has_a_number_for_each_key(tmp_path: Path) -> None:
    """Also where nothing else tells how long its last axis is."""
    with pytest.warns(LlmcWarning, match="total_sequence_length"):
        graph = load(written(tmp_path, total="length", lengths="seqlens_k", bias=BIAS)).graph
    bias = next(node for node in graph.inputs if node.attributes["name"] == BIAS)
    assert str(bias.shape[3]) == "new + past"
    given = {**call(2, [5], [0]), BIAS: floats(1, HEADS, 2, 7), "length": np.array(7, np.int32)}
    want_rows(graph, {**given, "seqlens_k": np.array([6], np.int32)}, [5], bias=BIAS)


@pytest.mark.parametrize(
    ("last", "total", "fits"),
    [(6, 7, True), (2, 7, True), (7, 7, False), (1, 7, False), (-1, 7, False), (6, 8, False), (6, 6, False)],
)
def test_lengths_of_the_caller_that_cannot_be(last: int, total: int, fits: bool, tmp_path: Path) -> None:
    """ONNX Runtime refuses them; here the result of that sequence is no number, the others are what they are."""
    with pytest.warns(LlmcWarning, match="total_sequence_length"):
        graph = load(written(tmp_path, total="length", lengths="seqlens_k", do_rotary=1)).graph
    given = {**call(3, [4, 4], [0, 0]), "length": np.array(total, np.int32)}
    names = {node.attributes["name"] for node in graph.inputs}
    given = {k: v for k, v in given.items() if k in names}
    found = run(graph, {**given, "seqlens_k": np.array([last, 6], np.int32)})["y"]
    assert np.isnan(found[0]).all() == (not fits)
    assert np.isnan(found[1]).any() == (total != 7)


def test_a_table_of_positions_that_is_too_short(tmp_path: Path) -> None:
    graph = load(written(tmp_path, do_rotary=1)).graph
    want_rows(graph, call(1, [LONGEST - 1], [0]), [LONGEST - 1], do_rotary=1)
    with pytest.raises(LlmcError, match="17"):
        run(graph, call(1, [LONGEST], [0]))


@pytest.mark.parametrize(
    ("how", "said"), [({"qk_output": 1}, "scores"), ({"k_quant_type": "PER_TENSOR"}, "quantised keys")]
)
def test_refusals(how: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match=said):
        load(written(tmp_path, **how))


def test_other_attention_begins_without_a_past_too(tmp_path: Path) -> None:
    parts = [value(name, T.FLOAT, "batch", "new", 8) for name in "qkv"]
    past = [value(f"past.{name}", T.FLOAT, "batch", 2, "past", 4) for name in "kv"]
    names = ["q", "k", "v", "", "", "", "past.k", "past.v"]
    results = ["y", "present.k", "present.v"]
    node = helper.make_node("MultiHeadAttention", names, results, domain="com.microsoft", num_heads=2)
    found = [value("y", T.FLOAT, "batch", "new", 8)]
    found += [value(f"present.{name}", T.FLOAT, "batch", 2, "all", 4) for name in "kv"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "g", [*parts, *past], found)
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph, opset_imports=opsets).SerializeToString())
    read = load(tmp_path / "m.onnx").graph
    given = {name: floats(1, 3, 8) for name in "qkv"}
    empty = {f"past.{name}": floats(1, 2, 0, 4) for name in "kv"}
    present = run(read, {**given, **empty})["present.k"]
    np.testing.assert_array_equal(present, given["k"].reshape(1, 3, 2, 4).swapaxes(1, 2))
