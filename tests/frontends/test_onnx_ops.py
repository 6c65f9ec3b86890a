"""Every ONNX op that llmc reads, against onnx's reference evaluator, at two sizes of the dynamic dims."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper
from onnx.reference import ReferenceEvaluator

from llmc.compiler.frontends.dispatch import load
from llmc.compiler.frontends.onnx_call import TABLE
from llmc.compiler.interpret import run

F, L = np.float32, np.int64
X = ("x", T.FLOAT, ["n", "m", 6])
Y = ("y", T.FLOAT, ["n", "m", 6])
M = ("m2", T.BOOL, ["n", "m", 6])
K = ("k", T.INT64, ["n", "m", 6])
IMAGE = ("x", T.FLOAT, ["n", 6, 12, 9])
SIGNAL = ("x", T.FLOAT, ["n", 6, 11])
W, B = np.random.default_rng(1).normal(size=(8, 6, 3, 2)).astype(F), np.linspace(-1, 2, 8).astype(F)
A = np.arange


def model(nodes: list[Any], inputs: list[Any], weights: dict[str, Any], opset: int) -> Any:
    """A model whose output `out` is what the last node makes."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info("out", T.UNDEFINED, None)],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def given(inputs: list[Any], n: int, m: int) -> dict[str, Any]:
    rng = np.random.default_rng(n + m)
    values = {}
    for name, kind, shape in inputs:
        sizes = [{"n": n, "m": m}.get(d, d) for d in shape]
        made = rng.normal(size=sizes) * 2
        made = abs(made) if name == "rows" else made
        values[name] = {
            T.FLOAT: lambda v: v.astype(F),
            T.BOOL: lambda v: v > 0,
            T.INT64: lambda v: v.astype(L),
        }[kind](made)
    return values


def case(op: str, *inputs: Any, opset: int = 18, outputs: int = 1, **attributes: Any) -> Any:
    """A node whose inputs are graph inputs (tuples), weights (arrays), or absent ("")."""
    names, live, weights = [], [], {}
    for position, i in enumerate(inputs):
        if isinstance(i, tuple):
            live += [i] if i not in live else []
            names.append(i[0])
        elif isinstance(i, str):
            names.append("")
        else:
            names.append(f"w{position}")
            weights[names[-1]] = i
    made = ["out"] if outputs == 1 else [f"p{i}" for i in range(outputs)]
    nodes = [helper.make_node(op, names, made, **attributes)]
    nodes += [helper.make_node("Concat", made[::-1], ["out"], axis=0)] if outputs > 1 else []
    return pytest.param(
        nodes, live or [X], weights, opset, id=f"{op}-{opset}-{len(attributes)}-{len(inputs)}"
    )


def topk(k: int, **attributes: Any) -> Any:
    """Values and indices in one tensor."""
    nodes = [helper.make_node("TopK", ["x", "k"], ["values", "index"], **attributes)]
    nodes += [helper.make_node("Cast", ["index"], ["number"], to=T.FLOAT)]
    nodes += [helper.make_node("Concat", ["values", "number"], ["out"], axis=0)]
    return pytest.param(nodes, [X], {"k": np.array([k], L)}, 18, id=f"TopK-{k}")


CASES = [
    *(
        case(op, X)
        for op in (
            *("Neg", "Abs", "Sign", "Floor", "Ceil", "Exp"),
            *("Sin", "Cos", "Tanh", "Sigmoid", "Erf", "Relu", "Reciprocal"),
        )
    ),
    *(
        case(op, X)
        for op in (
            *("Softplus", "Softsign", "HardSwish", "Elu"),
            *("LeakyRelu", "HardSigmoid", "Identity", "Dropout", "IsNaN"),
        )
    ),
    case("Log", ("x", T.FLOAT, ["n", 6])),
    case("Sqrt", ("x", T.FLOAT, ["n", 6])),
    case("Not", M),
    *(
        case(op, X, Y)
        for op in (
            *("Add", "Sub", "Mul", "Div", "Less", "LessOrEqual"),
            *("Greater", "GreaterOrEqual", "Max", "Min", "Sum", "Mean"),
        )
    ),
    *(case(op, M, M) for op in ("And", "Or", "Xor", "Equal")),
    case("Equal", K, np.array(1, L)),
    case("Div", K, np.array([-2, 2, 3, -3, 1, 5], L)),
    case("Mod", K, np.array([2, 2, 3, 3, 1, 5], L)),
    *(case("Pow", X, np.array(e, F)) for e in (2.0, 3.0)),
    case("Clip", X, np.array(-1, F), np.array(1, F)),
    case("Clip", X, "", np.array(1, F)),
    case("PRelu", X, A(6, dtype=F)),
    case("Gelu", X, opset=20),
    case("Gelu", X, opset=20, approximate="tanh"),
    case("Where", M, X, np.array(0, F)),
    case("Cast", X, to=T.INT64),
    case("Cast", M, to=T.FLOAT),
    case("CastLike", K, X, opset=19),
    *(case(op, X, np.array([-1], L)) for op in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSumSquare")),
    *(
        case(op, X, np.array([0, 2], L), keepdims=0)
        for op in ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceLogSumExp")
    ),
    case("ReduceMean", X, opset=13, axes=[-1]),
    case("ReduceSum", X),
    case("ReduceSum", X, "", noop_with_empty_axes=1),
    case("ArgMax", X, axis=-1, keepdims=0),
    case("ArgMin", X, axis=1),
    case("CumSum", K, np.array(1, L)),
    case("CumSum", K, np.array(-1, L), exclusive=1),
    case("Softmax", X, axis=1),
    case("LogSoftmax", X),
    case("MatMul", X, A(30, dtype=F).reshape(6, 5)),
    case("MatMul", X, A(6, dtype=F)),
    case("MatMul", A(6, dtype=F), ("x", T.FLOAT, ["n", 6, "m"])),
    case("Gemm", ("x", T.FLOAT, ["n", 6]), A(30, dtype=F).reshape(5, 6), A(5, dtype=F), transB=1),
    case(
        "Gemm",
        ("x", T.FLOAT, [6, "n"]),
        A(30, dtype=F).reshape(6, 5),
        A(5, dtype=F),
        transA=1,
        alpha=0.5,
        beta=2.0,
    ),
    case("LayerNormalization", X, A(6, dtype=F), A(6, dtype=F), epsilon=1e-3),
    case("LayerNormalization", X, A(6, dtype=F)),
    case("RMSNormalization", X, A(6, dtype=F), opset=23),
    case("Shape", X),
    case("Shape", X, start=1, end=-1),
    case("Size", X),
    case("ConstantOfShape", np.array([2, 3], L), value=onnx.numpy_helper.from_array(np.array([7], L))),
    case("Constant", value_floats=[1.0, 2.0]),
    case("Range", np.array(2, L), np.array(9, L), np.array(3, L)),
    case("Trilu", X),
    case("Trilu", X, np.array(-1, L), upper=0),
    case("Reshape", X, np.array([0, -1], L)),
    case("Reshape", X, np.array([-1, 0, 2, 3], L)),
    case("Flatten", X, axis=2),
    case("Flatten", X, axis=-3),
    case("Squeeze", ("x", T.FLOAT, ["n", 1, 6]), np.array([1], L)),
    case("Squeeze", ("x", T.FLOAT, [3, 1, 6])),
    case("Unsqueeze", X, np.array([0, -1], L)),
    case("Unsqueeze", X, opset=11, axes=[0, 4]),
    case("Transpose", X),
    case("Transpose", X, perm=[1, 0, 2]),
    case("Expand", ("x", T.FLOAT, ["n", 1, 6]), np.array([1, 4, 1], L)),
    case("Tile", X, np.array([2, 1, 3], L)),
    case("Slice", X, np.array([1, -2], L), np.array([99, 1 << 62], L), np.array([2, 2], L)),
    case("Slice", X, np.array([0], L), np.array([-1], L), np.array([2], L), np.array([2], L)),
    case("Slice", X, np.array([0], L), np.array([1], L), np.array([1], L)),
    case("Slice", A(6, dtype=F), np.array([-1], L), np.array([-99], L), np.array([0], L), np.array([-1], L)),
    case("Split", X, axis=2, outputs=2, num_outputs=2),
    case("Split", X, np.array([3, 3], L), axis=2, outputs=2),
    case("Split", X, axis=2, outputs=2, split=[3, 3], opset=11),
    case("Concat", X, Y, axis=-1),
    case("Pad", X, np.array([0, 1, 2, 0, 0, 3], L), np.array(5, F)),
    case("Pad", X, np.array([1, 2], L), "", np.array([1], L)),
    case("Gather", X, np.array([[0, 2], [-1, 1]], L), axis=2),
    case("Gather", X, np.array(-1, L), axis=1),
    case("Gather", A(48, dtype=F).reshape(8, 6), ("rows", T.INT64, ["n", "m"])),
    case("GatherElements", ("x", T.FLOAT, [1, 2, 6]), np.array([[[5, -1], [0, 2]]], L), axis=2),
    *(case(op, X) for op in ("Selu", "Celu", "ThresholdedRelu")),
    case("Mish", X, opset=20),
    case("Conv", SIGNAL, W[:, :, 0], B, strides=[2], pads=[1, 0]),
    case("Conv", IMAGE, W, B, strides=[2, 1], pads=[1, 0, 2, 1], dilations=[1, 2]),
    case("Conv", IMAGE, W[:, :3], group=2, auto_pad="SAME_UPPER", strides=[2, 2]),
    case("ConvTranspose", IMAGE, W[:6], strides=[2, 3], pads=[1, 0, 2, 1], output_padding=[1, 0]),
    case("ConvTranspose", SIGNAL, W[:6, :, 0], B[:6], strides=[3]),
    case("MaxPool", IMAGE, kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1, pads=[1, 0, 0, 1]),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("AveragePool", IMAGE, kernel_shape=[2, 2], count_include_pad=1, pads=[0, 1, 0, 1], opset=19),
    *(case(op, IMAGE) for op in ("GlobalAveragePool", "GlobalMaxPool")),
    case("BatchNormalization", IMAGE, B[:6], B[1:7], B[2:], B[:6] ** 2),
    case("InstanceNormalization", SIGNAL, B[:6], B[2:]),
    case("GroupNormalization", IMAGE, B[:6], B[2:], opset=21, num_groups=3),
    case("GroupNormalization", IMAGE, B[:3], B[2:5], opset=18, num_groups=3),
    *(
        case(
            "Resize",
            IMAGE,
            "",
            "",
            np.array([24, 7], L),
            axes=[2, 3],
            mode=mode,
            coordinate_transformation_mode=kind,
        )
        for mode in ("nearest", "linear", "cubic")
        for kind in ("half_pixel", "align_corners", "asymmetric")
    ),
    case("Resize", IMAGE, "", np.array([1, 1, 2, 3], F), nearest_mode="floor"),
    *(
        case("DepthToSpace", ("x", T.FLOAT, ["n", 8, 3, 2]), blocksize=2, mode=mode)
        for mode in ("DCR", "CRD")
    ),
    case("SpaceToDepth", IMAGE, blocksize=3),
    case("Pad", IMAGE, np.array([0, 0, 1, 2, 0, 0, 3, 1], L), np.array(0.5, F)),
    *(case("Pad", SIGNAL, np.array([0, 0, 1, 0, 0, 2], L), mode=mode) for mode in ("reflect", "edge")),
    case("GatherND", ("x", T.FLOAT, [4, 3, "n"]), np.array([[0, 1], [-1, 2]], L)),
    *(topk(k, **extra) for k, extra in ((2, {}), (6, {"largest": 0}), (1, {"axis": 1}))),
    case("ScatterElements", X, ("k", T.INT64, ["n", "m", 1]), ("y1", T.FLOAT, ["n", "m", 1]), axis=2),
    case("ScatterElements", X, np.array([[[1, -1]]], L), np.array([[[5, 7]]], F), axis=-1),
    case("ScatterElements", X, np.array([[[1, 1]]], L), np.array([[[5, 7]]], F), axis=2, reduction="add"),
    case("ScatterND", ("x", T.FLOAT, [4, 3, "n"]), np.array([[0, 1], [-1, 2]], L), ("u", T.FLOAT, [2, "n"])),
    case(
        "ScatterND",
        ("x", T.FLOAT, [4, "n"]),
        np.array([[1], [1]], L),
        ("u", T.FLOAT, [2, "n"]),
        reduction="add",
    ),
    case("OneHot", K, np.array(5, L), np.array([-1, 2], F)),
    case("OneHot", K, np.array(4, L), np.array([0, 1], F), axis=1),
    case("Einsum", X, Y, equation="bsd,btd->bst"),
    case("Einsum", X, A(30, dtype=F).reshape(6, 5), equation="...d,de"),
    case("EyeLike", ("x", T.FLOAT, ["n", 6]), k=1),
    case("EyeLike", ("x", T.FLOAT, [3, "n"]), dtype=T.INT64),
    *(case(f"Bitwise{op}", K, np.array(3, L)) for op in ("And", "Or", "Xor")),
    case("BitwiseNot", K),
    case("ReduceProd", X, np.array([1], L)),
    case("Mod", X, np.array(0.7, F), fmod=1),
]


@pytest.mark.parametrize(("nodes", "inputs", "weights", "opset"), CASES)
def test_op(nodes: Any, inputs: Any, weights: Any, opset: int, tmp_path: Path) -> None:
    made = model(nodes, inputs, weights, opset)
    onnx.save(made, tmp_path / "m.onnx")

    graph = load(tmp_path / "m.onnx").graph

    for n, m in ((1, 1), (2, 3)):
        values = given(inputs, n, m)
        with np.errstate(all="ignore"):
            (expected,) = ReferenceEvaluator(made).run(None, values)
        got = run(graph, values)["out"]
        # the evaluator rounds the weights of a Resize to f32
        atol = 1e-5 if nodes[0].op_type == "Resize" else 2e-6
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=atol)
        assert got.dtype == expected.dtype


def test_every_op_has_a_case() -> None:
    """Here, among the node tests of onnx, or in the tests of bodies, ONNX Runtime's ops and quantised files."""
    from onnx.backend.test.case import node

    texts = [path.read_text() for path in Path(next(iter(node.__path__))).glob("*.py")]
    texts += [
        Path(__file__).with_name(f"test_onnx_{n}.py").read_text()
        for n in (
            "microsoft",
            "microsoft_blocks",
            "microsoft_grouped",
            "blocks",
            "control",
            "quantised",
            "gradient",
        )
    ]
    quoted = set(re.findall(r'"(\w+)"', "".join(texts)))
    tried = {n.op_type for case in CASES for n in case.values[0]} | quoted
    aliases = {"SimplifiedLayerNormalization", "GlobalLpPool"}  # RMSNormalization and LpPool of everything
    assert {name.rpartition(".")[2] for name in TABLE} - aliases - tried == set()


def test_softmax_before_opset_13_is_over_all_axes_behind(tmp_path: Path) -> None:
    made = model([helper.make_node("Softmax", ["x"], ["out"], axis=1)], [X], {}, 11)
    onnx.save(made, tmp_path / "m.onnx")
    x = given([X], 2, 3)["x"]

    got = run(load(tmp_path / "m.onnx").graph, {"x": x})["out"]

    weights = np.exp(x.reshape(2, -1))
    np.testing.assert_allclose(got, (weights / weights.sum(1, keepdims=True)).reshape(x.shape), rtol=1e-5)
