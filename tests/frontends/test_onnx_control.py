"""If, Loop, Scan, sequences and functions of ONNX files, against onnx's reference evaluator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime import InferenceSession

from llmc.compiler.frontends.dispatch import load
from llmc.compiler.interpret import run
from llmc.errors import LlmcError

NODE, INFO = helper.make_node, helper.make_tensor_value_info
F = np.float32
SEQ = [INFO("x", T.FLOAT, ["n", "m", 4])]


def body(nodes: list[Any], inputs: list[Any], outputs: list[Any], **weights: Any) -> Any:
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    return helper.make_graph(nodes, "body", inputs, [INFO(n, k, None) for n, k in outputs], tensors)


def model(nodes: list[Any], inputs: list[Any], weights: dict[str, Any], functions: Any = ()) -> Any:
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, [INFO("out", T.UNDEFINED, None)], tensors)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=functions)


def same(folder: Path, made: Any, *calls: dict[str, Any], by_reference: bool = True) -> Any:
    """The imported graph, which gives the evaluator's answers, or ONNX Runtime's."""
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    graph = load(folder / "m.onnx").graph
    if not by_reference:  # ONNX Runtime wants to know the type
        made.graph.output[0].type.tensor_type.elem_type = T.FLOAT
    evaluator = ReferenceEvaluator(made) if by_reference else InferenceSession(made.SerializeToString())
    for given in calls:
        (expected,) = evaluator.run(None, given)
        np.testing.assert_allclose(run(graph, given)["out"], expected, rtol=1e-5, atol=1e-6)
    return graph


def x_of(*shape: int) -> dict[str, Any]:
    return {"x": np.random.default_rng(sum(shape)).normal(size=shape).astype(F)}


def if_nodes() -> list[Any]:
    then = body([NODE("Mul", ["x", "w"], ["a"])], [], [("a", T.FLOAT)])
    other = body([NODE("Add", ["x", "y"], ["b"])], [], [("b", T.FLOAT)])
    return [NODE("Neg", ["x"], ["y"]), NODE("If", ["flag"], ["out"], then_branch=then, else_branch=other)]


def test_a_condition_at_run_time_is_a_branch(tmp_path: Path) -> None:
    made = model(if_nodes(), [*SEQ, INFO("flag", T.BOOL, [])], {"w": F(3)})
    graph = same(tmp_path, made, *({**x_of(2, 3, 4), "flag": np.array(f)} for f in (True, False)))
    assert any(n.op == "branch" for n in graph.nodes)


def test_a_condition_that_is_known_is_followed(tmp_path: Path) -> None:
    graph = same(tmp_path, model(if_nodes(), SEQ, {"w": F(3), "flag": np.array(True)}), x_of(1, 2, 4))
    assert {n.op for n in graph.nodes} == {"input", "constant", "mul"}


def loop_body() -> Any:
    """total + x * i, whose sum is stacked; x and w come from outside."""
    nodes = [
        NODE("Cast", ["i"], ["f"], to=T.FLOAT),
        NODE("Mul", ["x", "f"], ["p"]),
        NODE("Mul", ["p", "w"], ["q"]),
        NODE("Add", ["total", "q"], ["after"]),
        NODE("ReduceSum", ["after"], ["row"]),
        NODE("Identity", ["on"], ["still"]),
    ]
    inputs = [INFO("i", T.INT64, []), INFO("on", T.BOOL, []), INFO("total", T.FLOAT, None)]
    return body(nodes, inputs, [("still", T.BOOL), ("after", T.FLOAT), ("row", T.FLOAT)])


@pytest.mark.parametrize(("count", "op"), [(3, "add"), (100, "loop")])
def test_loops_are_written_out_or_kept(count: int, op: str, tmp_path: Path) -> None:
    nodes = [
        NODE("Loop", ["count", "on", "zero"], ["last", "rows"], body=loop_body()),
        NODE("Shape", ["rows"], ["s"]),
        NODE("ReduceSum", ["last"], ["all"], keepdims=0),
        NODE("Add", ["rows", "all"], ["out"]),
    ]
    weights = {"count": np.int64(count), "on": np.array(True), "zero": np.zeros((2, 3, 4), F), "w": F(0.1)}
    made, x = model(nodes, [INFO("x", T.FLOAT, [2, 3, 4])], weights), x_of(2, 3, 4)
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    graph = load(tmp_path / "m.onnx").graph
    rows = np.cumsum(np.arange(count)) * 0.1 * x["x"].sum()
    np.testing.assert_allclose(run(graph, x)["out"].reshape(-1), rows + rows[-1], rtol=1e-4)
    assert op in {n.op for n in graph.nodes}


def test_a_loop_as_long_as_the_sequence(tmp_path: Path) -> None:
    nodes = [
        NODE("Shape", ["x"], ["m"], start=1, end=2),
        NODE("Loop", ["m", "", "zero"], ["out"], body=body(
            [NODE("Gather", ["x", "i"], ["part"], axis=1), NODE("Add", ["total", "part"], ["after"]),
             NODE("Identity", ["on"], ["still"])],
            [INFO("i", T.INT64, []), INFO("on", T.BOOL, []), INFO("total", T.FLOAT, None)],
            [("still", T.BOOL), ("after", T.FLOAT)],
        )),
    ]  # fmt: skip
    made = model(nodes, [INFO("x", T.FLOAT, [2, "m", 4])], {"zero": np.zeros((2, 4), F)})
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    graph = load(tmp_path / "m.onnx").graph
    for m in (1, 5):
        x = x_of(2, m, 4)
        np.testing.assert_allclose(run(graph, x)["out"], x["x"].sum(1), rtol=1e-5, atol=1e-6)


def test_loops_whose_end_is_not_known_are_refused(tmp_path: Path) -> None:
    nodes = [NODE("Loop", ["count", "on", "zero"], ["out", "rows"], body=loop_body())]
    weights = {"on": np.array(True), "zero": np.zeros((2, 3, 4), F), "w": F(0.1)}
    made = model(nodes, [INFO("x", T.FLOAT, [2, 3, 4]), INFO("count", T.INT64, [])], weights)
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(LlmcError, match="Loop") as caught:
        load(tmp_path / "m.onnx")
    assert "length is computed from the values" in (caught.value.found or "")


@pytest.mark.parametrize(("back", "axis"), [(0, 0), (1, 0), (0, 1)])
def test_scans(back: int, axis: int, tmp_path: Path) -> None:
    step = body(
        [
            NODE("Add", ["h", "part"], ["next"]),
            NODE("Mul", ["next", "w"], ["y"]),
            NODE("Identity", ["next"], ["h2"]),
        ],
        [INFO("h", T.FLOAT, None), INFO("part", T.FLOAT, None)],
        [("h2", T.FLOAT), ("y", T.FLOAT)],
    )
    options = {"scan_input_directions": [back], "scan_output_directions": [back], "scan_input_axes": [axis]}
    nodes = [NODE("Scan", ["first", "x"], ["last", "out"], body=step, num_scan_inputs=1, **options)]
    made = model(nodes, [INFO("x", T.FLOAT, [3, 3, 4])], {"first": np.zeros((3, 4), F), "w": F(2)})
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    x = x_of(3, 3, 4)
    order = np.moveaxis(x["x"], axis, 0)[:: -1 if back else 1]
    wanted = (2 * np.cumsum(order, 0))[:: -1 if back else 1]
    np.testing.assert_allclose(run(load(tmp_path / "m.onnx").graph, x)["out"], wanted, rtol=1e-5, atol=1e-6)


def test_sequences(tmp_path: Path) -> None:
    nodes = [
        NODE("SequenceEmpty", [], ["s0"], dtype=T.FLOAT),
        NODE("Neg", ["x"], ["n"]),
        NODE("SequenceInsert", ["s0", "x"], ["s1"]),
        NODE("SequenceInsert", ["s1", "n", "zero"], ["s2"]),
        NODE("SequenceConstruct", ["x", "n", "x"], ["c"]),
        NODE("SequenceErase", ["c", "one"], ["e"]),
        NODE("SequenceAt", ["e", "last"], ["a"]),
        NODE("SequenceLength", ["s2"], ["count"]),
        NODE("Cast", ["count"], ["f"], to=T.FLOAT),
        NODE("ConcatFromSequence", ["s2"], ["joined"], axis=0),
        NODE("ConcatFromSequence", ["c"], ["stacked"], axis=0, new_axis=1),
        NODE("ReduceSum", ["stacked", "zeros"], ["sum"], keepdims=0),
        NODE("Concat", ["joined", "a", "sum"], ["all"], axis=0),
        NODE("Mul", ["all", "f"], ["out"]),
    ]
    weights = {"zero": np.int64(0), "one": np.int64(1), "last": np.int64(-1), "zeros": np.array([0])}
    same(tmp_path, model(nodes, SEQ, weights), x_of(2, 3, 4))


SPLIT = NODE("SplitToSequence", ["y", "sizes"], ["parts"])
PARTS = [INFO("x", T.FLOAT, [2]), INFO("y", T.FLOAT, ["n"]), INFO("sizes", T.INT64, [3])]


def test_parts_whose_sizes_come_at_run_time_can_be_counted(tmp_path: Path) -> None:
    """What they are cut from need not be there."""
    nodes = [
        SPLIT,
        NODE("SequenceInsert", ["parts", "x"], ["more"]),
        NODE("SequenceLength", ["more"], ["count"]),
        NODE("Cast", ["count"], ["f"], to=T.FLOAT),
        NODE("SequenceAt", ["more", "last"], ["own"]),
        NODE("Mul", ["own", "f"], ["out"]),
    ]
    made, x = model(nodes, PARTS, {"last": np.int64(-1)}), np.array([1, 3], F)
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    for sizes in ([0, 0, 0], [2, 0, 5]):
        given = {"x": x, "y": np.zeros(sum(sizes), F), "sizes": np.array(sizes, np.int64)}
        np.testing.assert_array_equal(run(load(tmp_path / "m.onnx").graph, given)["out"], 4 * x)
    asked = load(tmp_path / "m.onnx", dims={"batch": (2, 5)}).graph
    with pytest.raises(LlmcError, match="batch = 0"):
        run(asked, {"x": x, "y": np.zeros(0, F), "sizes": np.zeros(3, np.int64)})


@pytest.mark.parametrize(
    "reader",
    [NODE("SequenceAt", ["parts", "one"], ["out"]), NODE("ConcatFromSequence", ["parts"], ["out"], axis=0)],
)
def test_parts_whose_sizes_come_at_run_time_cannot_be_read(reader: Any, tmp_path: Path) -> None:
    made = model([SPLIT, reader], PARTS, {"one": np.int64(1)})
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(LlmcError, match=reader.op_type) as caught:
        load(tmp_path / "m.onnx")
    assert "a part whose size is computed from the values of tensors" in (caught.value.found or "")


def test_functions_of_the_file(tmp_path: Path) -> None:
    """One calls another, with an attribute handed on and an input left out."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    leaky = NODE("LeakyRelu", ["a"], ["b"])
    leaky.attribute.add(name="alpha", ref_attr_name="slope", type=1)
    inner = helper.make_function("own", "Inner", ["a"], ["b"], [leaky], opsets, ["slope"])
    call = NODE("Inner", ["a"], ["m"], domain="own")
    call.attribute.add(name="slope", ref_attr_name="slope", type=1)
    clip = NODE("Clip", ["m", "low"], ["b"])
    outer = helper.make_function("own", "Outer", ["a", "low"], ["b"], [call, clip], opsets, ["slope"])
    nodes = [
        NODE("Outer", ["x", ""], ["y"], domain="own", slope=0.5),
        NODE("Outer", ["y", "low"], ["out"], domain="own", slope=0.25),
    ]
    made, x = model(nodes, SEQ, {"low": F(-0.05)}, [inner, outer]), x_of(2, 3, 4)
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    wanted = np.maximum(np.where(x["x"] > 0, x["x"], 0.125 * x["x"]), -0.05)
    np.testing.assert_allclose(run(load(tmp_path / "m.onnx").graph, x)["out"], wanted, rtol=1e-6)


# --- loops that count by themselves


def counting(relation: str, step_first: bool, kind: int) -> Any:
    """total @ w + x[i] while a number is below how many rows there are; w is handed on as it is."""
    sides = ["fresh", "top"] if relation.startswith("Less") else ["top", "fresh"]
    nodes = [
        NODE("Gather", ["rows", "i"], ["row"]),
        NODE("MatMul", ["total", "w"], ["turned"]),
        NODE("Add", ["turned", "row"], ["after"]),
        NODE("Add", ["one", "i"] if step_first else ["i", "one"], ["next"]),
        NODE("Cast", ["next"], ["fresh"], to=kind),
        NODE("Cast", ["limit"], ["top"], to=kind),
        NODE(relation, sides, ["still"]),
        NODE("Identity", ["w"], ["same"]),
    ]
    inputs = [INFO("number", T.INT64, []), INFO("on", T.BOOL, []), INFO("i", T.INT64, [])]
    inputs += [INFO(name, T.FLOAT, None) for name in ("total", "w")]
    outputs = [
        ("still", T.BOOL),
        ("next", T.INT64),
        ("after", T.FLOAT),
        ("same", T.FLOAT),
        ("after", T.FLOAT),
    ]
    return body(nodes, inputs, outputs, one=np.int64(1))


def while_nodes(relation: str, less: int, step_first: bool, kind: int) -> tuple[list[Any], dict[str, Any]]:
    nodes = [
        NODE("Transpose", ["x"], ["rows"], perm=[1, 0, 2]),
        NODE("Shape", ["rows"], ["sizes"]),
        NODE("Gather", ["sizes", "zero"], ["count"]),
        NODE("Sub", ["count", "less"], ["limit"]),
        NODE("Gather", ["rows", "zero"], ["first"]),
        NODE("Cast", ["count"], ["many"], to=T.FLOAT),
        NODE("Less", ["nothing", "many"], ["begins"]),
        NODE("Loop", ["", "begins", "zero", "first", "weight"], ["a", "b", "c", "out"],
             body=counting(relation, step_first, kind)),
    ]  # fmt: skip
    weight = np.random.default_rng(1).normal(size=(4, 4)).astype(F) / 2
    return nodes, {"zero": np.int64(0), "less": np.int64(less), "nothing": F(0), "weight": weight}


@pytest.mark.parametrize(
    ("relation", "less", "step_first", "kind"),
    [("Less", 0, False, T.FLOAT), ("Greater", 0, True, T.INT32), ("LessOrEqual", 1, True, T.INT64)],
)
def test_a_loop_that_counts_to_a_size(
    tmp_path: Path, relation: str, less: int, step_first: bool, kind: int
) -> None:
    """What TensorFlow's recurrent layers with a mask become."""
    nodes, weights = while_nodes(relation, less, step_first, kind)
    graph = same(
        tmp_path, model(nodes, SEQ, weights), x_of(2, 5, 4), x_of(1, 1, 4), x_of(3, 9, 4), by_reference=False
    )
    (loop,) = [n for n in graph.nodes if n.op == "loop"]
    assert loop.attributes["carried"] == 2  # the weight is none of them
    assert str(graph.outputs["out"].type) == "f32[m, batch, 4]"


def test_a_loop_that_a_value_ends(tmp_path: Path) -> None:
    """Neither the limit nor how it begins may be a value, nor may the number grow by another step."""
    nodes, weights = while_nodes("Less", 0, False, T.INT64)
    value = [NODE("Cast", ["t"], ["limit"], to=T.INT64) if n.output[0] == "limit" else n for n in nodes]
    unsure = [NODE("Less", ["t", "many"], ["begins"]) if n.output[0] == "begins" else n for n in nodes]
    for made in (value, unsure):
        (tmp_path / "m.onnx").write_bytes(
            model(made, [*SEQ, INFO("t", T.FLOAT, [])], weights).SerializeToString()
        )
        with pytest.raises(LlmcError, match="1 op of the model cannot be imported: Loop") as info:
            load(tmp_path / "m.onnx")
        assert "a Loop whose length is computed from the values of tensors" in str(info.value.found)
    nodes[-1].attribute[0].g.initializer[0].CopyFrom(numpy_helper.from_array(np.int64(2), "one"))
    (tmp_path / "m.onnx").write_bytes(model(nodes, SEQ, weights).SerializeToString())
    with pytest.raises(LlmcError, match="cannot be imported: Loop"):
        load(tmp_path / "m.onnx")


def test_a_loop_of_one_iteration_at_least(tmp_path: Path) -> None:
    """It begins without a condition, and its limit may be reached before."""
    nodes, weights = while_nodes("Less", 3, False, T.INT64)
    nodes[-1].input[1] = ""
    graph = same(
        tmp_path, model(nodes, SEQ, weights), x_of(2, 2, 4), x_of(1, 4, 4), x_of(1, 6, 4), by_reference=False
    )
    assert "Max(1, m - 3)" in str(graph.outputs["out"].type)
