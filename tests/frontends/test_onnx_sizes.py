"""Sizes of ONNX files that once were taken for others: of a Resize, of axes called alike, of sums over no axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from llmc.compiler.frontends.dispatch import load
from llmc.compiler.interpret import run
from llmc.errors import LlmcError

NODE, INFO = helper.make_node, helper.make_tensor_value_info
Shape = list[Any]


def saved(folder: Path, nodes: list[Any], shape: Shape, weights: dict[str, Any]) -> Path:
    """A file of nodes that make `out` of `x`."""
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "g", [INFO("x", T.FLOAT, shape)], [INFO("out", T.FLOAT, None)], tensors)
    path = folder / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def both(folder: Path, node: Any, x: Any, weights: dict[str, Any], shape: Shape | None = None) -> Any:
    """The answers of llmc and of onnx's own evaluator."""
    path = saved(folder, [node], list(x.shape) if shape is None else shape, weights)
    (wanted,) = ReferenceEvaluator(onnx.load(path)).run(None, {"x": x})
    return run(load(path).graph, {"x": x})["out"], wanted


def image(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_a_resize_to_a_size_of_an_open_axis_is_refused(mode: str, tmp_path: Path) -> None:
    node = NODE("Resize", ["x", "", "", "sizes"], ["out"], mode=mode)
    with pytest.raises(LlmcError, match="Resize") as caught:
        load(saved(tmp_path, [node], [1, 1, "h", "w"], {"sizes": np.array([1, 1, 4, 4])}))
    assert "Resize of a dynamic size" in (caught.value.found or "")


def test_a_resize_to_twice_an_open_axis(tmp_path: Path) -> None:
    nodes = [
        NODE("Shape", ["x"], ["size"]),
        NODE("Mul", ["size", "twice"], ["sizes"]),
        NODE("Resize", ["x", "", "", "sizes"], ["out"], mode="nearest"),
    ]
    path = saved(tmp_path, nodes, [1, 1, "h"], {"twice": np.array([1, 1, 2])})
    got = run(load(path).graph, {"x": image(1, 1, 3)})["out"]
    np.testing.assert_array_equal(got, np.repeat(image(1, 1, 3), 2, 2))


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_a_resize_that_keeps_the_size_but_not_the_places(mode: str, tmp_path: Path) -> None:
    """2 elements times 1.3 are 2 elements, at other places."""
    scales = {"scales": np.array([1, 1, 1.3], np.float32)}
    node = NODE("Resize", ["x", "", "scales"], ["out"], mode=mode, nearest_mode="floor")
    got, wanted = both(tmp_path, node, image(1, 1, 2), scales)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


@pytest.mark.parametrize("op", ["ReduceSumSquare", "ReduceLogSum", "ReduceL1"])
def test_sums_over_no_axes(op: str, tmp_path: Path) -> None:
    for x, more in ((np.float32(2.5), {}), (image(2, 3) ** 2 + 1, {"noop_with_empty_axes": 1})):
        got, wanted = both(tmp_path, NODE(op, ["x"], ["out"], **more), np.asarray(x), {})
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_a_transposed_convolution_of_less_than_its_result(tmp_path: Path) -> None:
    """What no window reaches lies at the end, as in TensorFlow and ONNX Runtime."""
    node = NODE("ConvTranspose", ["x", "w"], ["out"], strides=[2], auto_pad="SAME_UPPER")
    path = saved(tmp_path, [node], [1, 1, 2], {"w": np.ones((1, 1, 1), np.float32)})
    got = run(load(path).graph, {"x": np.array([[[3, 4]]], np.float32)})["out"]
    np.testing.assert_array_equal(got, [[[3, 0, 4, 0]]])


@pytest.mark.parametrize("axis", [0, 1])
def test_an_axis_that_doubles_and_doubles_is_refused(axis: int, tmp_path: Path) -> None:
    """Of an open axis, too: it is at least 1."""
    nodes = [NODE("Concat", [f"t{i}"] * 2, [f"t{i + 1}"], axis=axis) for i in range(40)]
    nodes = [NODE("Relu", ["x"], ["t0"]), *nodes, NODE("Relu", ["t40"], ["out"])]
    with pytest.raises(LlmcError, match="Concat") as caught:
        load(saved(tmp_path, nodes, ["n", 6], {}))
    found = (
        "a tensor of 6442450944 elements"
        if axis == 0
        else "an axis of 3221225472 elements; at most 2147483647"
    )
    assert found in (caught.value.found or "")


def test_sizes_of_powers_without_end_are_refused(tmp_path: Path) -> None:
    """n to the power of two to the 40th: nothing may be worked out of that."""
    nodes = [NODE("Mul", [f"t{i}"] * 2, [f"t{i + 1}"]) for i in range(40)]
    nodes = [NODE("Shape", ["x"], ["t0"]), *nodes, NODE("Cast", ["t40"], ["out"], to=T.FLOAT)]
    with pytest.raises(LlmcError, match="Mul") as caught:
        load(saved(tmp_path, nodes, ["n", 6], {}))
    assert "a size that no tensor has" in (caught.value.found or "")


@pytest.mark.parametrize("name", ["x", "w"])
def test_a_node_does_not_make_what_is_there(name: str, tmp_path: Path) -> None:
    nodes = [NODE("Neg", ["w"], [name]), NODE("Add", ["x", "w"], ["out"])]
    with pytest.raises(LlmcError, match=f"a node makes '{name}', which is an input or a weight"):
        load(saved(tmp_path, nodes, [3], {"w": np.ones(3, np.float32)}))


@pytest.mark.parametrize("place", ["n" * 5000, "circle"])
def test_files_of_weights_that_no_system_opens(place: str, tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    path = saved(tmp_path, [NODE("Add", ["x", "w"], ["out"])], [3], {"w": np.ones(3, np.float32)})
    model = onnx.load(path)
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = T.EXTERNAL
    weight.external_data.add(key="location", value=place)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(LlmcError, match="cannot read the file with weight 'w'"):
        load(path)


# --- indices


@pytest.mark.parametrize(
    ("node", "shape", "low", "high"),
    [
        (NODE("Gather", ["x", "index"], ["out"], axis=1), [2, 6], -6, 5),
        (NODE("GatherElements", ["x", "index"], ["out"], axis=1), [2, 6], -6, 5),
        (NODE("GatherND", ["x", "index"], ["out"]), [4, 6], -4, 3),
        (NODE("ScatterElements", ["x", "index", "y"], ["out"], axis=1), [2, 6], -6, 5),
        (NODE("ScatterND", ["x", "index", "z"], ["out"]), [4, 6], -4, 3),
    ],
)
def test_indices_beyond_their_axis_are_refused(
    node: Any, shape: Shape, low: int, high: int, tmp_path: Path
) -> None:
    index = np.full((2, 1), high)
    weights = {"y": np.ones((2, 1), np.float32), "z": np.ones((2, 6), np.float32)}
    path = saved(tmp_path, [node], shape, weights)
    model = onnx.load(path)
    model.graph.input.append(INFO("index", T.INT64, [2, 1]))
    onnx.save(model, path)
    graph, x = load(path).graph, image(*shape)
    (wanted,) = ReferenceEvaluator(model).run(None, {"x": x, "index": index})
    np.testing.assert_array_equal(run(graph, {"x": x, "index": index})["out"], wanted)
    for beyond in (high + 1, low - 1):
        with pytest.raises(LlmcError, match=f"{beyond}"):
            run(graph, {"x": x, "index": np.full((2, 1), beyond)})


def test_an_index_of_which_a_part_is_used_is_not_bounded(tmp_path: Path) -> None:
    nodes = [NODE("Slice", ["x", "zero", "one"], ["i"]), NODE("Gather", ["table", "i"], ["out"])]
    weights = {"zero": np.array([0]), "one": np.array([1]), "table": np.ones((3, 2), np.float32)}
    path = saved(tmp_path, nodes, [4], weights)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = T.INT64
    onnx.save(model, path)
    assert run(load(path).graph, {"x": np.array([2, 9, 9, 9])})["out"].shape == (1, 2)


# --- names of axes


def taken(path: Path, **dims: Any) -> str:
    return str(load(path, dims=dims).graph.inputs[0].type)


def test_axes_that_are_called_alike_are_two(tmp_path: Path) -> None:
    """llmc calls the first one batch; the file calls another one so."""
    path = saved(tmp_path, [NODE("Relu", ["x"], ["out"])], ["n", 3, "batch", "a-b", "a_b"], {})
    assert taken(path) == "f32[batch, 3, batch_, a_b, a_b_]"
    with pytest.raises(LlmcError, match="'batch' names two axes") as caught:
        taken(path, batch=2)
    assert caught.value.hint == "they are batch (in the file n) and batch_ (in the file batch)"
    assert taken(path, n=2, batch_=4) == "f32[2, 3, 4, a_b, a_b_]"


def test_an_axis_has_one_size(tmp_path: Path) -> None:
    path = saved(tmp_path, [NODE("Relu", ["x"], ["out"])], ["n", 3], {})
    assert taken(path, n=7, batch=7) == "f32[7, 3]"
    with pytest.raises(LlmcError, match="batch=8 and n=7 are sizes of one axis"):
        taken(path, n=7, batch=8)


@pytest.mark.parametrize("size", [-1, 0, 1 << 40, 1.5, True])
def test_sizes_that_are_none(size: Any, tmp_path: Path) -> None:
    path = saved(tmp_path, [NODE("Relu", ["x"], ["out"])], ["n", 3], {})
    with pytest.raises(LlmcError, match=f"n = {size} is no size"):
        taken(path, n=size)
