"""ONNX files that once gave wrong numbers without a word, or an error of llmc's own: right numbers, or a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from llmc.compiler.frontends.dispatch import load
from llmc.compiler.interpret import run
from llmc.errors import LlmcError, LlmcWarning

NODE, INFO = helper.make_node, helper.make_tensor_value_info
Arrays = dict[str, Any]


def saved(
    folder: Path, nodes: list[Any], inputs: list[Any], weights: Arrays, outputs: Any = None, **more: Any
) -> Path:
    """A file of a small graph whose output is `out`."""
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        outputs or [INFO("out", T.UNDEFINED, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(d, 1) for d in ("own", "com.microsoft"))]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8, **more)
    path = folder / "m.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def answer(
    folder: Path, nodes: list[Any], x: Any, weights: Arrays, kind: int = T.FLOAT, shape: Any = None
) -> Any:
    """`out` of one input `x`, whose axes are dynamic unless a shape says otherwise."""
    x = np.asarray(x)
    inputs = [INFO("x", kind, [f"d{i}" for i in range(x.ndim)] if shape is None else shape)]
    return run(load(saved(folder, nodes, inputs, weights)).graph, {"x": x})["out"]


def test_a_power_has_the_dtype_of_its_base(tmp_path: Path) -> None:
    x = np.array([2, 3, -5], np.int32)
    got = answer(tmp_path, [NODE("Pow", ["x", "e"], ["out"])], x, {"e": np.float32(1.5)}, T.INT32)
    np.testing.assert_array_equal(got[:2], np.array([2, 5], np.int32))
    assert got.dtype == np.int32
    got = answer(tmp_path, [NODE("Pow", ["x", "e"], ["out"])], x, {"e": np.int64(19)}, T.INT32)
    np.testing.assert_array_equal(got, x**19)


def test_dropout_in_training_is_refused(tmp_path: Path) -> None:
    nodes = [NODE("Dropout", ["x", "ratio", "yes"], ["out"])]
    weights = {"ratio": np.float32(0.5), "yes": np.array(True)}
    with pytest.raises(LlmcError, match="Dropout") as caught:
        answer(tmp_path, nodes, np.ones(3, np.float32), weights)
    assert "training mode" in (caught.value.found or "")
    same = answer(tmp_path, nodes, np.ones(3, np.float32), {**weights, "yes": np.array(False)})
    np.testing.assert_array_equal(same, np.ones(3))


def test_log_sum_exp_of_large_numbers(tmp_path: Path) -> None:
    x = np.array([1000, 1000, 999], np.float32)
    got = answer(tmp_path, [NODE("ReduceLogSumExp", ["x"], ["out"], keepdims=0)], x, {})
    np.testing.assert_allclose(got, 1000 + np.log(2 + np.exp(-1)), rtol=1e-6)


@pytest.mark.parametrize(("kind", "dtype"), [(T.INT32, np.int32), (T.INT8, np.int8)])
def test_quotients_of_the_lowest_number(kind: int, dtype: Any, tmp_path: Path) -> None:
    low = np.iinfo(dtype).min
    x, divisor = np.array([low, low, 7, -7], dtype), np.array([-7, 7, -2, 2], dtype)
    got = answer(tmp_path, [NODE("Div", ["x", "d"], ["out"])], x, {"d": divisor}, kind, [4])
    wanted = [int(a / b) for a, b in zip(x.tolist(), divisor.tolist(), strict=True)]
    np.testing.assert_array_equal(got, wanted)
    rest = answer(tmp_path, [NODE("Mod", ["x", "d"], ["out"], fmod=1)], x, {"d": divisor}, kind, [4])
    np.testing.assert_array_equal(rest, np.fmod(x, divisor))


def test_squeeze_of_axes_that_may_be_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match="Squeeze") as caught:
        answer(tmp_path, [NODE("Squeeze", ["x"], ["out"])], np.ones((1, 3), np.float32), {})
    assert "name the axes" in (caught.value.found or "")


@pytest.mark.parametrize(
    ("op", "divisor", "attributes", "wanted"),
    [("Div", -2, {}, -3), ("Mod", -4, {}, -1), ("Mod", -4, {"fmod": 1}, 3), ("Mod", 4, {}, 3)],
)
def test_quotients_of_sizes(op: str, divisor: int, attributes: Any, wanted: int, tmp_path: Path) -> None:
    nodes = [NODE("Size", ["x"], ["n"]), NODE(op, ["n", "d"], ["out"], **attributes)]
    assert answer(tmp_path, nodes, np.ones(7, np.float32), {"d": np.int64(divisor)}) == wanted


def test_quotients_of_sizes_whose_sign_is_not_known(tmp_path: Path) -> None:
    """(n - 10) / 4 is -0.75 toward zero: 0."""
    nodes = [NODE("Size", ["x"], ["n"]), NODE("Sub", ["n", "ten"], ["m"]), NODE("Div", ["m", "d"], ["out"])]
    weights = {"ten": np.int64(10), "d": np.int64(4)}
    assert answer(tmp_path, nodes, np.ones(7, np.float32), weights) == 0
    assert answer(tmp_path, nodes, np.ones(5, np.float32), weights) == -1


def test_an_index_beyond_its_axis_is_refused(tmp_path: Path) -> None:
    for index in (6, -7, [0, 9]):
        with pytest.raises(LlmcError, match="Gather") as caught:
            answer(
                tmp_path,
                [NODE("Gather", ["x", "i"], ["out"], axis=1)],
                np.ones((2, 6), np.float32),
                {"i": np.array(index)},
                shape=["n", 6],
            )
        assert "beyond an axis of 6" in (caught.value.found or "")


def test_the_sign_of_nothing(tmp_path: Path) -> None:
    got = answer(tmp_path, [NODE("Sign", ["x"], ["out"])], np.array([np.nan, -2, 0], np.float32), {})
    np.testing.assert_array_equal(got, [np.nan, -1, 0])


@pytest.mark.parametrize("bounds", [(-3, 99), (-3, -1), (-100, 2), (3, 1), (1, -1), (-2, 1 << 62)])
@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_slices_of_a_dynamic_axis_are_clamped(bounds: tuple[int, int], size: int, tmp_path: Path) -> None:
    x = np.arange(2 * size, dtype=np.float32).reshape(2, size)
    weights = {"s": np.array([bounds[0]]), "e": np.array([bounds[1]]), "a": np.array([1])}
    got = answer(tmp_path, [NODE("Slice", ["x", "s", "e", "a"], ["out"])], x, weights)
    np.testing.assert_array_equal(got, x[:, bounds[0] : bounds[1]])


def test_slices_that_run_backwards(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    for start, end, step in ((-1, -99, -1), (4, 1, -2), (99, 0, -3), (2, -99, -1)):
        weights = {"s": np.array([start]), "e": np.array([end]), "a": np.array([1]), "t": np.array([step])}
        nodes = [NODE("Slice", ["x", "s", "e", "a", "t"], ["out"])]
        wanted = x[:, start : None if end == -99 else end : step]
        np.testing.assert_array_equal(answer(tmp_path, nodes, x, weights), wanted)
        fixed = answer(tmp_path, nodes, x, weights, shape=[2, 6])
        np.testing.assert_array_equal(fixed, wanted)


@pytest.mark.parametrize("end", [2**31 - 1, 2**63 - 1])
def test_a_slice_backwards_to_the_largest_number_is_refused(end: int, tmp_path: Path) -> None:
    """To the standard nothing is left of the axis, to ONNX Runtime all of it."""
    weights = {"s": np.array([-1]), "e": np.array([end]), "a": np.array([1]), "t": np.array([-1])}
    nodes = [NODE("Slice", ["x", "s", "e", "a", "t"], ["out"])]
    with pytest.raises(LlmcError, match="Slice") as caught:
        answer(tmp_path, nodes, np.ones((2, 6), np.float32), weights)
    assert "a slice backwards to INT_MAX" in str(caught.value.found)


def test_a_size_of_nothing_is_nothing(tmp_path: Path) -> None:
    file = saved(tmp_path, [NODE("ReduceSum", ["x"], ["out"], keepdims=0)], [INFO("x", T.FLOAT, [0, 3])], {})
    graph = load(file).graph
    assert graph.inputs[0].shape == (0, 3)
    assert run(graph, {"x": np.zeros((0, 3), np.float32)})["out"] == 0


def test_doubles_beyond_float32_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match="doubles that are beyond float32"):
        answer(tmp_path, [NODE("Mul", ["x", "w"], ["out"])], np.ones(1, np.float32), {"w": np.float64(1e200)})


def test_integers_keep_to_their_bits(tmp_path: Path) -> None:
    x = np.array([65535, 40000, 3], np.int32)  # unsigned numbers of 16 bits, held in 32
    nodes = [NODE("Mul", ["x", "x"], ["y"]), NODE("Add", ["y", "w"], ["out"])]
    got = answer(tmp_path, nodes, x, {"w": np.array([7, 7, 65530], np.uint16)}, T.UINT16, [3])
    unsigned = x.astype(np.uint16)
    np.testing.assert_array_equal(got, unsigned * unsigned + np.array([7, 7, 65530], np.uint16))


def test_what_is_not_understood_is_refused(tmp_path: Path) -> None:
    nodes = [NODE("Relu", ["x"], ["out"], alpha=0.1)]
    with pytest.raises(LlmcError, match="Relu") as caught:
        answer(tmp_path, nodes, np.ones(1, np.float32), {})
    assert "the attribute alpha" in (caught.value.found or "")
    with pytest.raises(LlmcError, match="Neg") as caught:
        answer(tmp_path, [NODE("Neg", ["x", "x"], ["out"])], np.ones(1, np.float32), {})
    assert "its input 1" in (caught.value.found or "")


# --- files that mean nothing


def refused(folder: Path, nodes: list[Any], weights: Arrays, **more: Any) -> LlmcError:
    inputs = more.pop("inputs", [INFO("x", T.FLOAT, ["n", 6])])
    with pytest.raises(LlmcError) as caught:
        load(saved(folder, nodes, inputs, weights, **more))
    return caught.value


def test_an_output_that_nothing_makes(tmp_path: Path) -> None:
    error = refused(tmp_path, [NODE("Relu", ["x"], ["y"])], {})
    assert error.problem == "nothing makes the output 'out'"


def test_names_are_made_once(tmp_path: Path) -> None:
    twice = [NODE("Relu", ["x"], ["out"]), NODE("Neg", ["x"], ["out"])]
    assert "two nodes make 'out'" in refused(tmp_path, twice, {}).problem
    outputs = [INFO("out", T.FLOAT, None)] * 2
    assert "two outputs are called 'out'" in refused(tmp_path, twice[:1], {}, outputs=outputs).problem


def test_nodes_that_depend_on_themselves(tmp_path: Path) -> None:
    nodes = [NODE("Add", ["x", "b"], ["a"]), NODE("Neg", ["a"], ["b"]), NODE("Neg", ["b"], ["out"])]
    assert "depends on itself" in refused(tmp_path, nodes, {}).problem


def test_functions_without_an_end(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    own = helper.make_function("own", "F", ["a"], ["b"], [NODE("F", ["a"], ["b"], domain="own")], opsets)
    error = refused(tmp_path, [NODE("F", ["x"], ["out"], domain="own")], {}, functions=[own])
    assert error.problem == "the function 'F' calls itself"


def test_functions_that_grow_without_end(tmp_path: Path) -> None:
    """Each of 30 functions calls the next one twice: a file of 2 kB, a thousand million nodes."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    functions = []
    for i in range(30):
        inner = (
            (lambda n: {"op_type": f"F{n}", "domain": "own"}) if i < 29 else (lambda n: {"op_type": "Neg"})
        )
        nodes = [
            NODE(inputs=["a"], outputs=["m"], **inner(i + 1)),
            NODE(inputs=["m"], outputs=["b"], **inner(i + 1)),
        ]
        functions.append(helper.make_function("own", f"F{i}", ["a"], ["b"], nodes, opsets))
    error = refused(tmp_path, [NODE("F0", ["x"], ["out"], domain="own")], {}, functions=functions)
    assert "more than 200000 nodes" in error.problem


def test_names_that_are_no_text(tmp_path: Path) -> None:
    file = saved(tmp_path, [NODE("Relu", ["x"], ["out"])], [INFO("x", T.FLOAT, [6])], {})
    file.write_bytes(file.read_bytes().replace(b"Relu", b"R\xff\xfeu"))
    with pytest.raises(LlmcError, match=r"a name in the file is no text|not an ONNX model"):
        load(file)


@pytest.mark.parametrize("place", ["../m.data", "/etc/hostname", "nul\0byte"])
def test_external_data_of_a_constant_stays_in_the_folder(place: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "m.data").write_bytes(bytes(24))
    tensor = T(data_type=T.FLOAT, dims=[6], data_location=T.EXTERNAL)
    tensor.external_data.add(key="location", value=place)
    nodes = [NODE("Constant", [], ["w"], value=tensor), NODE("Mul", ["x", "w"], ["out"])]
    with pytest.raises(LlmcError, match=r"outside the model's folder|cannot be imported"):
        load(saved(tmp_path / "home", nodes, [INFO("x", T.FLOAT, [6])], {}))


def test_external_data_of_a_constant(tmp_path: Path) -> None:
    np.arange(6, dtype=np.float32).tofile(tmp_path / "m.data")
    tensor = T(data_type=T.FLOAT, dims=[6], data_location=T.EXTERNAL)
    tensor.external_data.add(key="location", value="m.data")
    nodes = [NODE("Constant", [], ["w"], value=tensor), NODE("Mul", ["x", "w"], ["out"])]
    got = answer(tmp_path, nodes, np.full(6, 2, np.float32), {}, shape=[6])
    np.testing.assert_array_equal(got, 2 * np.arange(6))


def test_weights_of_sizes_below_zero(tmp_path: Path) -> None:
    file = saved(
        tmp_path, [NODE("Mul", ["x", "w"], ["out"])], [INFO("x", T.FLOAT, [6])], {"w": np.ones(6, np.float32)}
    )
    made = onnx.load(file)
    made.graph.initializer[0].dims[0] = -1
    file.write_bytes(made.SerializeToString())
    with pytest.raises(LlmcError, match="a size that no tensor has"):
        load(file)


def test_sizes_that_no_tensor_has(tmp_path: Path) -> None:
    error = refused(tmp_path, [NODE("Relu", ["x"], ["out"])], {}, inputs=[INFO("x", T.FLOAT, [1 << 62])])
    assert "a shape that no tensor has" in error.problem


_MANY = 1 << 40


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([NODE("Reshape", ["x", "s"], ["out"])], {"s": np.array([0, 6, *[1] * 4999])}),
        ([NODE("Expand", ["x", "s"], ["out"])], {"s": np.array([_MANY, 1, 1])}),
        ([NODE("Tile", ["x", "s"], ["out"])], {"s": np.array([1, _MANY])}),
        (
            [NODE("Range", ["a", "s", "b"], ["out"])],
            {"a": np.int64(0), "b": np.int64(1), "s": np.int64(_MANY)},
        ),
        (
            [NODE("Range", ["a", "s", "b"], ["out"])],
            {"a": np.float32(0), "b": np.float32(1e-9), "s": np.float32(9)},
        ),
        ([NODE("Pad", ["x", "s"], ["out"])], {"s": np.array([0, 0, 0, _MANY])}),
        ([NODE("ConstantOfShape", ["s"], ["out"])], {"s": np.array([_MANY])}),
        ([NODE("Concat", [f"x{i}"] * 2, [f"x{i + 1}"], axis=1) for i in range(40)], {}),
    ],
)
def test_tensors_that_no_machine_holds(nodes: list[Any], weights: Arrays, tmp_path: Path) -> None:
    if not weights:
        nodes = [NODE("Relu", ["x"], ["x0"]), *nodes, NODE("Neg", ["x40"], ["out"])]
    error = refused(tmp_path, nodes, weights)
    assert "possible" in (error.found or "")


# --- errors by op and reason


def test_the_same_gap_in_every_layer_is_one_line(tmp_path: Path) -> None:
    nodes = [NODE("NonZero", ["x"], [f"y{i}"], name=f"/layer{i}/sub{i}/NonZero") for i in range(40)]
    nodes += [NODE("Sum", [f"y{i}" for i in range(40)], ["out"])]
    error = refused(tmp_path, nodes, {})
    assert (error.found or "").count("\n") == 0
    assert "NonZero x40 at /layer0/sub0/NonZero and 39 other places" in (error.found or "")


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([NODE("Resize", ["x", "", "", "s"], ["out"], mode="linear")], {"s": np.array([1 << 20, 1 << 30])}),
        ([NODE("Resize", ["x", "", "f"], ["out"])], {"f": np.array([1, 1e9], np.float32)}),
        ([NODE("Pad", ["x", "s"], ["out"], mode="edge")], {"s": np.array([0, 0, 0, 1 << 30])}),
        ([NODE("HannWindow", ["s"], ["w"]), NODE("ReduceSum", ["w"], ["out"])], {"s": np.int64(1 << 31)}),
    ],
)
def test_tables_that_are_too_large_are_not_made(nodes: list[Any], weights: Arrays, tmp_path: Path) -> None:
    error = refused(tmp_path, nodes, weights, inputs=[INFO("x", T.FLOAT, [3, 6])])
    assert "possible" in (error.found or "")


def test_a_declared_shape_that_numbers_at_run_time_may_contradict_is_told(tmp_path: Path) -> None:
    inputs = [INFO("x", T.FLOAT, [2, 6]), INFO("s", T.INT64, [2])]
    nodes = [NODE("Reshape", ["x", "s"], ["out"], name="/view")]
    path = saved(tmp_path, nodes, inputs, {}, [INFO("out", T.FLOAT, [3, 4])])
    with pytest.warns(LlmcWarning, match=r"at run time decide: Reshape /view \(a shape\); numbers that"):
        load(path)


@pytest.mark.parametrize("name", ["Asinh", "Acosh"])
def test_an_inverse_of_what_has_no_square(name: str, tmp_path: Path) -> None:
    """1e30 has none in float32: its Asinh was NaN, and infinity's too."""
    x = np.array([1, 1.5, 30, 9e7, 2e8, 1e19, 1e30, 3e38, np.inf], np.float32)
    x = np.concatenate((x, -x, [1e-6, 0])).astype(np.float32) if name == "Asinh" else x
    found = answer(tmp_path, [NODE(name, ["x"], ["out"])], x, {})
    wanted = (np.arcsinh if name == "Asinh" else np.arccosh)(x.astype(np.float64))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
