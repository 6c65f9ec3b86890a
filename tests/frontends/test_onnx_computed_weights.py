"""Convolutions whose weights are inputs become products: kernels of convolutions are made for constant weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper
from onnx.reference import ReferenceEvaluator

from llmc.compiler.frontends.dispatch import load
from llmc.compiler.interpret import run

RNG = np.random.default_rng(7)

CASES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "groups": ("Conv", (2, 4, 7, 6), (6, 2, 3, 2), {"group": 2, "strides": [2, 1], "pads": [1, 0, 2, 1]}),
    "by channel": ("Conv", (1, 3, 5, 5), (3, 1, 3, 3), {"group": 3, "dilations": [2, 2]}),
    "one axis": ("Conv", (2, 3, 9), (4, 3, 3), {"pads": [1, 1]}),
    "three axes": ("Conv", (1, 2, 4, 5, 4), (3, 2, 2, 3, 2), {"strides": [1, 2, 1]}),
    "transposed": (
        "ConvTranspose",
        (1, 4, 4, 3),
        (4, 2, 3, 2),
        {"strides": [2, 1], "output_padding": [1, 0]},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_convolution_by_a_computed_weight_is_a_product(name: str, tmp_path: Path) -> None:
    op, image, kernel, attributes = CASES[name]
    outputs = kernel[1] if op == "ConvTranspose" else kernel[0]
    shapes = {"x": image, "w": kernel, "b": (outputs,)}
    graph = helper.make_graph(
        [helper.make_node(op, [*shapes], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info(k, T.FLOAT, shape) for k, shape in shapes.items()],
        [helper.make_tensor_value_info("y", T.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    inputs = {k: RNG.normal(size=shape).astype(np.float32) for k, shape in shapes.items()}

    made = load(tmp_path / "m.onnx").graph

    (wanted,) = ReferenceEvaluator(model).run(None, inputs)
    np.testing.assert_allclose(run(made, inputs)["y"], wanted, rtol=1e-5, atol=1e-5)
    assert not {"conv2d", "linear"} & {node.op for node in made.nodes}
