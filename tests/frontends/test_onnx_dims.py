"""Dynamic axes of ONNX files that always have one size, and cuts that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from llmc.cli.fixed_dims import Sized, Valued
from llmc.compiler.dims import dim, symbol
from llmc.compiler.frontends.dispatch import load
from llmc.compiler.frontends.onnx_agreed import multiples
from llmc.compiler.interpret import run
from llmc.compiler.samples import samples
from llmc.errors import LlmcError, LlmcWarning

NODE, INFO = helper.make_node, helper.make_tensor_value_info


def saved(path: Path, nodes: Any, inputs: Any, weights: dict[str, Any]) -> Path:
    """A file of a small graph whose output is `out`."""
    outputs = [INFO("out", TensorProto.FLOAT, None)]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def squeezed(path: Path) -> Path:
    """out = x without its second axis where that is 1, else x: what PyTorch writes for `squeeze` of an open axis."""
    kinds = {"then": NODE("Squeeze", ["x", "one"], ["a"]), "else": NODE("Identity", ["x"], ["b"])}
    bodies = {
        name: helper.make_graph([node], name, [], [INFO(node.output[0], TensorProto.FLOAT, None)])
        for name, node in kinds.items()
    }
    nodes = [
        NODE("Shape", ["x"], ["s"], start=1, end=2),
        NODE("Equal", ["s", "one"], ["q"]),
        NODE("If", ["q"], ["out"], then_branch=bodies["then"], else_branch=bodies["else"]),
    ]
    return saved(path, nodes, [INFO("x", TensorProto.FLOAT, ["n", "t"])], {"one": np.array([1])})


def test_an_axis_that_always_has_one_size(tmp_path: Path) -> None:
    path = squeezed(tmp_path / "m.onnx")
    with pytest.raises(LlmcError, match="cannot be imported") as info:
        load(path)
    assert "--dim seq=SIZE" in str(info.value.hint)
    for name in ("seq", "t"):  # llmc's name of it, and the file's
        assert str(load(path, dims={name: 5}).graph.outputs["out"].type) == "f32[batch, 5]"
    assert str(load(path, dims={"t": 1}).graph.outputs["out"].type) == "f32[batch]"
    with pytest.raises(LlmcError, match="no dynamic axis 'width'") as info:
        load(path, dims={"width": 5})
    assert info.value.hint == "it has batch, n, seq, t"
    with pytest.raises(LlmcError, match="no size"):
        load(path, dims={"t": 0})


def test_a_cut_at_a_billion_is_no_cut(tmp_path: Path) -> None:
    ends = {"zero": np.array([0]), "far": np.array([10**9]), "first": np.array([0])}
    nodes = [NODE("Slice", ["x", "zero", "far", "first"], ["out"])]
    path = saved(tmp_path / "m.onnx", nodes, [INFO("x", TensorProto.FLOAT, ["n", 3])], ends)
    assert str(load(path).graph.outputs["out"].type) == "f32[batch, 3]"
    with pytest.raises(LlmcError, match="at most 1000000000"):
        load(path, max_batch=2 * 10**9)


def test_dims_are_for_onnx(tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match="--dim is for ONNX files"):
        load(tmp_path, dims={"t": 1})


def test_a_remainder_of_a_sum_of_sizes(tmp_path: Path) -> None:
    """(t + 1) % 2 was 0, as the quotient was taken for a whole one."""
    nodes = [
        NODE("Shape", ["x"], ["t"], start=1, end=2),
        NODE("Add", ["t", "one"], ["more"]),
        NODE("Mod", ["more", "two"], ["rest"]),
        NODE("Cast", ["rest"], ["out"], to=TensorProto.FLOAT),
    ]
    weights = {"one": np.array([1]), "two": np.array([2])}
    graph = load(saved(tmp_path / "m.onnx", nodes, [INFO("x", TensorProto.FLOAT, ["n", "t"])], weights)).graph
    for length in (1, 2, 5):
        found = run(graph, {"x": np.zeros((1, length), np.float32)})["out"]
        assert found.tolist() == [(length + 1) % 2]


def halved_and_doubled(path: Path, join: Any) -> Path:
    """out = x joined with every second pixel of x, each twice: as a detector joins levels."""
    nodes = [
        NODE("MaxPool", ["x"], ["half"], kernel_shape=[2, 2], strides=[2, 2]),
        NODE("Resize", ["half", "", "by"], ["again"], mode="nearest"),
        join,
    ]
    image = INFO("x", TensorProto.FLOAT, ["n", 3, "height", "width"])
    return saved(path, nodes, [image], {"by": np.array([1, 1, 2, 2], np.float32)})


@pytest.mark.parametrize(
    "join", [NODE("Mul", ["x", "again"], ["out"]), NODE("Concat", ["again", "x"], ["out"], axis=1)]
)
def test_sizes_that_agree_at_some_sizes_of_the_inputs(tmp_path: Path, join: Any) -> None:
    """The file runs at those, and so does the graph; at others the file cannot run either."""
    path = halved_and_doubled(tmp_path / "m.onnx", join)
    with pytest.warns(LlmcWarning, match="agree for multiples of 2 as height and multiples of 2 as width"):
        graph = load(path).graph
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)
    again = x.reshape(2, 3, 2, 2, 3, 2).max((3, 5)).repeat(2, 2).repeat(2, 3)
    wanted = x * again if join.op_type == "Mul" else np.concatenate([again, x], 1)
    np.testing.assert_array_equal(run(graph, {"x": x})["out"], wanted)
    with pytest.raises(LlmcError, match="the size of axis 2 has to be, height = 5, is above what it is"):
        run(graph, {"x": x[:, :, :1].repeat(5, 2)})
    for session in samples(graph):  # what it is checked with fits
        assert all(not size % 2 for call in session.calls for size in call["x"].shape[2:])


H, W = symbol("height"), symbol("width")


@pytest.mark.parametrize(
    ("pairs", "wanted"),
    [
        ([(H, 3 * (H // 3))], {"height": 3}),
        ([(H, 2 * (H // 2)), (W, 7 * (W // 7))], {"height": 2, "width": 7}),
        ([(H, 32 * (H // 32)), (W, 6 * (W // 6)), (W, 4 * (W // 4))], {"height": 32, "width": 12}),
        ([(H * W, 6 * (H * W // 6))], {"width": 6}),
        ([(H + W, 5 * ((H + W) // 5))], {"height": 5, "width": 5}),
        ([(H, H + 1)], {}),
    ],
    ids=str,
)
def test_multiples_at_which_sizes_agree(pairs: Any, wanted: dict[str, int]) -> None:
    """Those that do together, none larger than it needs to be."""
    assert multiples([(dim(a), dim(b)) for a, b in pairs]) == wanted


@pytest.mark.parametrize(("first", "step"), [(0.0, 1.0), (3.0, 2.0), (0.5, 1.0)])
def test_places_of_a_grid_as_floats(tmp_path: Path, first: float, step: float) -> None:
    """As detectors make them: a size is cast, and counted up to."""
    nodes = [
        NODE("Shape", ["x"], ["sizes"]),
        NODE("Gather", ["sizes", "one"], ["size"], axis=0),
        NODE("Cast", ["size"], ["limit"], to=TensorProto.FLOAT),
        NODE("Range", ["first", "limit", "step"], ["out"]),
    ]
    weights = {"one": np.array(1), "first": np.array(first, np.float32), "step": np.array(step, np.float32)}
    path = saved(tmp_path / "m.onnx", nodes, [INFO("x", TensorProto.FLOAT, ["n", "t"])], weights)
    if first == 0.5:
        with pytest.raises(LlmcError, match="cannot be imported") as info:
            load(path)
        assert "a Range of parts of a size" in str(info.value.found)
        return
    for length in (4, 9):
        found = run(load(path).graph, {"x": np.zeros((2, length), np.float32)})["out"]
        np.testing.assert_array_equal(found, np.arange(first, length, step, dtype=np.float32))


def test_sizes_that_never_agree(tmp_path: Path) -> None:
    """Of axes that have nothing to do with each other, or that differ by one at all sizes."""
    nodes = [NODE("Pad", ["x", "pads"], ["more"]), NODE("Add", ["x", "more"], ["out"])]
    pads = {"pads": np.array([0, 0, 0, 1])}
    with pytest.raises(LlmcError, match="cannot be imported"):
        load(saved(tmp_path / "m.onnx", nodes, [INFO("x", TensorProto.FLOAT, ["n", "t"])], pads))
    others = [INFO("x", TensorProto.FLOAT, ["n", "t"]), INFO("y", TensorProto.FLOAT, ["n", "u"])]
    with pytest.raises(LlmcError, match="cannot be imported"):
        load(saved(tmp_path / "o.onnx", [NODE("Add", ["x", "y"], ["out"])], others, {}))


def test_bounds_of_axes(tmp_path: Path) -> None:
    """Sides of images are longer than texts; what is asked for comes before."""
    image = INFO("x", TensorProto.FLOAT, ["n", 3, "height", "width"])
    path = saved(tmp_path / "m.onnx", [NODE("Relu", ["x"], ["out"])], [image], {})
    assert load(path).graph.dims == {"batch": (1, 1024), "height": (1, 2048), "width": (1, 2048)}
    asked = load(path, dims={"n": (2, 4), "height": (32, 4096), "width": 64}).graph
    assert asked.dims == {"batch": (2, 4), "height": (32, 4096)}
    for wrong in ((0, 4), (5, 4)):
        with pytest.raises(LlmcError, match=f"height = {wrong[0]}..{wrong[1]} is no size"):
            load(path, dims={"height": wrong})
    option = Sized()
    assert [option.convert(text, None, None) for text in ("h=48", "h=3..9")] == [("h", 48), ("h", (3, 9))]
    for wrong in ("h", "h=0", "h=4..3", "h=..9", "h=1..", "=4"):
        with pytest.raises(click.BadParameter, match=r"NAME=LOW\.\.HIGH"):
            option.convert(wrong, None, None)


def of_two_rates(path: Path) -> Path:
    """Two models in a file: a number of the caller's says which is meant. The state has no batch in front."""
    half = NODE("ReduceSum", ["x", "axes"], ["a"], keepdims=0)
    whole = NODE("Gather", ["x", "last"], ["b"], axis=1)
    bodies = {
        name: helper.make_graph([node], name, [], [INFO(node.output[0], TensorProto.FLOAT, None)])
        for name, node in (("then", half), ("else", whole))
    }
    nodes = [
        NODE("Equal", ["rate", "first"], ["is_first"]),
        NODE("If", ["is_first"], ["y"], then_branch=bodies["then"], else_branch=bodies["else"]),
        NODE("ReduceSum", ["state"], ["held"], keepdims=0),
        NODE("Add", ["y", "held"], ["out"]),
    ]
    inputs = [
        INFO("x", TensorProto.FLOAT, [None, None]),
        INFO("state", TensorProto.FLOAT, [2, None, 4]),
        INFO("rate", TensorProto.INT64, []),
    ]
    weights = {"first": np.array(16000), "axes": np.array([1]), "last": np.array([-1])}
    return saved(path, nodes, inputs, weights)


def test_an_input_that_always_has_one_value(tmp_path: Path) -> None:
    """What depends on it is decided at import; an axis that nothing names is another than that of another input."""
    path = of_two_rates(tmp_path / "m.onnx")
    x, state = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 5, 4), np.float32)
    for rate, wanted in ((16000, x.sum(1) + 40), (8000, x[:, -1:] + 40)):
        graph = load(path, fixed={"rate": rate}).graph
        assert [str(n.type) for n in graph.inputs] == ["f32[batch, seq]", "f32[2, state_1, 4]"]
        assert not any(node.op == "branch" for node in graph.nodes)
        np.testing.assert_array_equal(run(graph, {"x": x, "state": state})["out"], wanted)
    for fixed, told in (
        ({"speed": 1}, "no input 'speed'"),
        ({"x": 1}, "'x' cannot have one value"),
        ({"rate": 0.5}, "'rate' of int64 cannot be 0.5"),
        ({"rate": 1e30}, "'rate' of int64 cannot be 10000"),
    ):
        with pytest.raises(LlmcError, match=told):
            load(path, fixed=fixed)
    with pytest.raises(LlmcError, match="--fix is for ONNX files"):
        load(tmp_path, fixed={"rate": 1})
    assert Valued().convert("rate=16000", None, None) == ("rate", 16000)
    for wrong in ("rate", "=3", "rate=fast", "rate=nan"):
        with pytest.raises(click.BadParameter, match="NAME=NUMBER"):
            Valued().convert(wrong, None, None)
    for text, number in (
        ("9007199254740993", 9007199254740993),
        ("9007199254740993.0", 9007199254740993),
        ("1e18", 10**18),
    ):
        assert Valued().convert(f"rate={text}", None, None) == ("rate", number)
        assert type(Valued().convert(f"rate={text}", None, None)[1]) is int
    for lost in ("9007199254740992.5", "1e-400", "1e400"):
        with pytest.raises(click.BadParameter, match="digits that a double holds"):
            Valued().convert(f"rate={lost}", None, None)


def of_a_kind(path: Path, kind: int) -> Path:
    """out = x + float(n), where n is an input of an element type."""
    nodes = [NODE("Cast", ["n"], ["f"], to=TensorProto.FLOAT), NODE("Add", ["x", "f"], ["out"])]
    return saved(path, nodes, [INFO("x", TensorProto.FLOAT, [1]), INFO("n", kind, [1])], {})


FIXED = {
    "int8 beyond": ("INT8", 128, "cannot be 128"),
    "uint8 below": ("UINT8", -1, "cannot be -1"),
    "uint16 beyond": ("UINT16", 65536, "cannot be 65536"),
    "uint32 beyond": ("UINT32", 1 << 32, "cannot be 4294967296"),
    "uint64 beyond": ("UINT64", 1 << 63, "cannot be 9223372036854775808"),
    "int64 beyond": ("INT64", 1 << 63, "cannot be 9223372036854775808"),
    "int4 beyond": ("INT4", 8, "integers from -8 to 7"),
    "bool beyond": ("BOOL", 2, "integers from 0 to 1"),
    "a fraction": ("UINT16", 1.5, "cannot be 1.5"),
    "half infinite": ("FLOAT16", 70000, "nearest value is inf"),
    "half of an integer": ("FLOAT16", 16001, "nearest value is 16000"),
    "half next to zero": ("FLOAT16", 1e-9, "nearest value is 0"),
    "half of few bits": ("FLOAT16", 2.5e-7, "nearest value is 2.38419e-07"),
    "float8 of few bits": ("FLOAT8E4M3FN", 0.3, "nearest value is 0.3125"),
    "float infinite": ("FLOAT", 1e39, "nearest value is inf"),
    "float of an integer": ("FLOAT", (1 << 24) + 1, "nearest value is 1.67772e"),
    "double, computed as a float": ("DOUBLE", (1 << 24) + 1, "nearest value is 1.67772e"),
    "no float at all": ("FLOAT", 10**400, "a number of 401 digits"),
    "not finite": ("FLOAT", float("inf"), "cannot be inf"),
    "not finite, of integers": ("INT64", float("nan"), "cannot be nan"),
    "a text": ("INT64", "7", "cannot be '7'"),
}


@pytest.mark.parametrize("case", FIXED)
def test_a_value_that_the_input_s_type_does_not_hold(case: str, tmp_path: Path) -> None:
    kind, value, told = FIXED[case]
    with pytest.raises(LlmcError, match=f"(?s)input 'n'.*{told}"):
        load(of_a_kind(tmp_path / "m.onnx", getattr(TensorProto, kind)), fixed={"n": value})


@pytest.mark.parametrize(
    ("kind", "value", "held"),
    [
        ("INT64", (1 << 53) + 1, (1 << 53) + 1),
        ("UINT16", 65535, 65535),
        ("UINT64", (1 << 63) - 1, (1 << 63) - 1),
        ("INT4", -8, -8),
        ("FLOAT16", 0.1, float(np.float16(0.1))),
        ("BFLOAT16", 0.1, 0.10009765625),
        ("FLOAT8E4M3FN", 0.3125, 0.3125),
        ("DOUBLE", 0.1, float(np.float32(0.1))),
    ],
)
def test_a_value_is_of_its_input_s_type(kind: str, value: float, held: float, tmp_path: Path) -> None:
    """Rounded as the type rounds; integers keep all digits."""
    number = getattr(TensorProto, kind)
    nodes = [NODE("Concat", ["x", "n"], ["c"], axis=0), NODE("Cast", ["c"], ["out"], to=TensorProto.FLOAT)]
    path = saved(tmp_path / "m.onnx", nodes, [INFO("x", number, [1]), INFO("n", number, [1])], {})
    graph = load(path, fixed={"n": value}).graph
    (weight,) = (
        n.attributes["value"].array for n in graph.everywhere() if n.op == "constant" and n.shape == (1,)
    )
    assert weight.tolist() == [held]


def test_arithmetic_with_a_fixed_value_keeps_the_input_s_bits(tmp_path: Path) -> None:
    """Numbers of 16 bits without sign wrap at 65536, whatever is fixed."""
    kind = TensorProto.UINT16
    nodes = [NODE("Add", ["n", "m"], ["s"]), NODE("Cast", ["s"], ["out"], to=TensorProto.FLOAT)]
    path = saved(tmp_path / "m.onnx", nodes, [INFO("m", kind, [1]), INFO("n", kind, [1])], {})
    graph = load(path, fixed={"n": 65535}).graph
    assert run(graph, {"m": np.array([3], np.int32)})["out"].tolist() == [2.0]


def test_a_mark_of_several_axes_is_no_name(tmp_path: Path) -> None:
    """Paddle writes "?" for each axis that is open: such an image need not be square."""
    image = INFO("x", TensorProto.FLOAT, ["?", 3, "?", "?"])
    path = saved(tmp_path / "m.onnx", [NODE("Relu", ["x"], ["out"])], [image], {})
    (x,) = load(path).graph.inputs
    assert len({str(d) for d in x.shape}) == 4
    one = saved(
        tmp_path / "n.onnx", [NODE("Relu", ["x"], ["out"])], [INFO("x", TensorProto.FLOAT, [2, "?"])], {}
    )
    assert str(load(one, dims={"?": 7}).graph.outputs["out"].type) == "f32[2, 7]"
    named = [INFO("x", TensorProto.FLOAT, ["n", "n"])]
    (x,) = load(saved(tmp_path / "o.onnx", [NODE("Relu", ["x"], ["out"])], named, {})).graph.inputs
    assert x.shape[0] == x.shape[1], "a name is one axis wherever it stands"
