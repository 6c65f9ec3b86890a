"""Gradient of ONNX's training domain, against PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from llmc.compiler.frontends.dispatch import load
from llmc.compiler.interpret import run
from llmc.errors import LlmcError

NODE, INFO = helper.make_node, helper.make_tensor_value_info
F = np.float32
W = np.linspace(-1, 2, 12, dtype=F).reshape(4, 3)


def gradient(xs: list[str], given: list[str] | None = None, zs: list[str] | None = None, y: str = "y") -> Any:
    more = {"zs": zs} if zs else {}
    outputs = [f"d{x}" for x in xs]
    inputs = given or [*xs, *(zs or [])]
    return NODE("Gradient", inputs, outputs, domain="ai.onnx.preview.training", xs=xs, y=y, **more)


def saved(folder: Path, nodes: list[Any], outputs: list[str], shape: list[Any]) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [INFO(name, T.FLOAT, shape) for name in "ab"],
        [INFO(name, T.FLOAT, None) for name in outputs],
        [
            numpy_helper.from_array(W, "w"),
            numpy_helper.from_array(F(3), "three"),
            numpy_helper.from_array(W[0], "bias"),
        ],
    )
    opsets = [helper.make_opsetid("", 12), helper.make_opsetid("ai.onnx.preview.training", 1)]
    path = folder / "m.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=7).SerializeToString())
    return path


def total(*nodes: Any) -> list[Any]:
    """y: the sum of what `nodes` call v."""
    return [*nodes, NODE("ReduceSum", ["v"], ["y"], keepdims=0)]


Formula = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
CASES: dict[str, tuple[list[Any], Formula]] = {
    "products": ([NODE("Add", ["a", "b"], ["c"]), NODE("Mul", ["c", "a"], ["v"])], lambda a, b: (a + b) * a),
    "quotients": (
        [NODE("Exp", ["b"], ["e"]), NODE("Sub", ["a", "b"], ["c"]), NODE("Div", ["c", "e"], ["v"])],
        lambda a, b: (a - b) / b.exp(),
    ),
    "curves": (
        [
            *(NODE(op, ["a"], [op]) for op in ("Sin", "Cos", "Tanh", "Sigmoid", "Relu")),
            NODE("Sum", ["Sin", "Cos", "Tanh", "Sigmoid", "Relu"], ["s"]),
            NODE("Mul", ["s", "b"], ["v"]),
        ],
        lambda a, b: (a.sin() + a.cos() + a.tanh() + a.sigmoid() + a.relu()) * b,
    ),
    "roots": (
        [
            NODE("Mul", ["a", "a"], ["q"]),
            NODE("Exp", ["b"], ["e"]),
            NODE("Add", ["q", "e"], ["p"]),
            NODE("Sqrt", ["p"], ["r"]),
            NODE("Log", ["p"], ["l"]),
            NODE("Add", ["r", "l"], ["v"]),
        ],
        lambda a, b: (a * a + b.exp()).sqrt() + (a * a + b.exp()).log(),
    ),
    "broadcast": (
        [
            NODE("ReduceMean", ["a"], ["m"], axes=[1], keepdims=1),
            NODE("ReduceSum", ["b"], ["t"], axes=[0], keepdims=0),
            NODE("Mul", ["m", "t"], ["v"]),
        ],
        lambda a, b: a.mean(1, keepdim=True) * b.sum(0),
    ),
    "products of matrices": (
        [
            NODE("MatMul", ["a", "w"], ["h"]),
            NODE("Transpose", ["b"], ["bt"], perm=[1, 0]),
            NODE("MatMul", ["bt", "h"], ["k"]),
            NODE("Relu", ["k"], ["u"]),
            NODE("Mul", ["u", "k"], ["v"]),
        ],
        lambda a, b: (b.T @ (a @ torch.from_numpy(W))).relu() * (b.T @ (a @ torch.from_numpy(W))),
    ),
    "a product of computed rows": (
        [
            NODE("Gemm", ["a", "b"], ["g"], transB=1),
            NODE("Flatten", ["g"], ["f"], axis=0),
            NODE("Mul", ["f", "f"], ["v"]),
        ],
        lambda a, b: (a @ b.T) ** 2,
    ),
    "a layer": (
        [
            NODE("Gemm", ["a", "w", "bias"], ["g"]),
            NODE("Gemm", ["b", "w"], ["h"]),
            NODE("Mul", ["g", "h"], ["v"]),
        ],
        lambda a, b: (a @ torch.from_numpy(W) + torch.from_numpy(W[0])) * (b @ torch.from_numpy(W)),
    ),
    "an average repeated": (
        [
            NODE("ReduceMean", ["a"], ["m"], axes=[0], keepdims=1),
            NODE("Shape", ["b"], ["s"]),
            NODE("Expand", ["m", "s"], ["e"]),
            NODE("Mul", ["e", "b"], ["v"]),
        ],
        lambda a, b: a.mean(0, keepdim=True) * b,
    ),
    "choices": (
        [
            NODE("Less", ["a", "b"], ["flag"]),
            NODE("Pow", ["a", "three"], ["p"]),
            NODE("Where", ["flag", "p", "b"], ["v"]),
        ],
        lambda a, b: torch.where(a < b, a**3, b),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_pytorchs(name: str, tmp_path: Path) -> None:
    nodes, formula = CASES[name]
    path = saved(tmp_path, [gradient(["a", "b"]), *total(*nodes)], ["y", "da", "db"], ["n", 4])
    rng = np.random.default_rng(5)
    a, b = (rng.normal(size=(3, 4)).astype(F) for _ in range(2))

    got = run(load(path).graph, {"a": a, "b": b})

    ta, tb = (torch.tensor(v, requires_grad=True) for v in (a, b))
    y = formula(ta, tb).sum()
    y.backward()
    assert ta.grad is not None
    assert tb.grad is not None
    for key, wanted in (("y", y.detach()), ("da", ta.grad), ("db", tb.grad)):
        np.testing.assert_allclose(got[key], wanted.numpy(), rtol=2e-5, atol=1e-5)


def test_the_second_derivative(tmp_path: Path) -> None:
    """y = sum(a a b): dy/da = 2 a b, and the sum of that by b is 2 a."""
    nodes = [
        *total(NODE("Mul", ["a", "a"], ["q"]), NODE("Mul", ["q", "b"], ["v"])),
        gradient(["a"], zs=["b"]),
        NODE("ReduceSum", ["da"], ["s"], keepdims=0),
        gradient(["b"], zs=["a"], y="s"),
    ]
    a, b = np.array([[1, 2, -3, 0.5]], F), np.array([[2, 1, 1, 4]], F)
    got = run(load(saved(tmp_path, nodes, ["da", "db"], [1, 4])).graph, {"a": a, "b": b})
    np.testing.assert_array_equal(got["da"], 2 * a * b)
    np.testing.assert_array_equal(got["db"], 2 * a)


def test_what_y_does_not_depend_on_has_a_gradient_of_zero(tmp_path: Path) -> None:
    nodes = [*total(NODE("Neg", ["a"], ["v"])), gradient(["a", "b"])]
    got = run(
        load(saved(tmp_path, nodes, ["da", "db"], [2, 4])).graph, dict.fromkeys("ab", W[:2, [0, 1, 2, 0]])
    )
    np.testing.assert_array_equal(got["da"], np.full((2, 4), -1, F))
    np.testing.assert_array_equal(got["db"], np.zeros((2, 4), F))


PRODUCT = total(NODE("Mul", ["a", "b"], ["v"]))


@pytest.mark.parametrize(
    ("nodes", "problem"),
    [
        ([*PRODUCT, gradient(["a"], given=["b"])], "at other values than those of the graph"),
        ([*total(NODE("MatMul", ["a", "w"], ["v"])), gradient(["w"])], "a gradient by a constant"),
        ([*PRODUCT, gradient(["a", "v"])], "values that depend on each other"),
        ([NODE("Identity", ["a"], ["i"]), *PRODUCT, gradient(["a", "i"])], "one value twice"),
        ([*PRODUCT, gradient(["a"], y="v")], "the gradient of more than one number"),
        ([*total(NODE("Floor", ["a"], ["v"])), gradient(["a"])], "the gradient of floor"),
        ([*total(NODE("Exp", ["a"], ["e"]), NODE("Pow", ["e", "a"], ["v"])), gradient(["a"])], "by such an input"),
    ],
)  # fmt: skip
def test_what_has_no_gradient_here_is_refused(nodes: list[Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match="Gradient") as caught:
        load(saved(tmp_path, nodes, [nodes[-1].output[0]], [2, 4]))
    assert problem in f"{caught.value.problem} {caught.value.found}"
