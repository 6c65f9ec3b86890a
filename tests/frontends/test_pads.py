"""Padding by elements of the axis itself, as ONNX Runtime and PyTorch pad, or refused as they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from llmc.compiler.frontends.dispatch import load
from llmc.compiler.interpret import run
from llmc.errors import LlmcError

# mode, pads before and after, what becomes of 0 1 2 3 4 5
ONNX = [
    ("wrap", (2, -1), "3 4 0 1 2 3 4"),
    ("wrap", (-1, 4), "1 2 3 4 5 1 2 3 4"),
    ("wrap", (7, 0), "5 0 1 2 3 4 5 0 1 2 3 4 5"),
    ("wrap", (-2, -1), "2 3 4"),
    ("reflect", (2, -1), "2 1 0 1 2 3 4"),
    ("reflect", (-1, 4), "1 2 3 4 5 4 3 2 1"),
    ("edge", (2, -1), "0 0 0 1 2 3 4"),
    ("edge", (-1, 2), "1 2 3 4 5 5 5"),
]
SIX = np.arange(6, dtype=np.float32)


def padded(path: Path, mode: str, pads: tuple[int, int] | None, length: int | str, result: Any = None) -> Any:
    """A graph of Pad with those pads, or with pads that are an input."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [length])]
    if pads is None:
        inputs.append(helper.make_tensor_value_info("p", TensorProto.INT64, [2]))
    weights = [] if pads is None else [numpy_helper.from_array(np.array(pads), "p")]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, [result])]
    node = helper.make_node("Pad", ["x", "p"], ["out"], mode=mode)
    graph = helper.make_graph([node], "g", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return load(path).graph


@pytest.mark.filterwarnings("ignore:.*the shape that the file declares")
@pytest.mark.parametrize(("mode", "pads", "wanted"), ONNX)
@pytest.mark.parametrize("way", ["fixed", "open", "running"])
def test_what_is_cut_off_is_not_repeated(
    mode: str, pads: tuple[int, int], wanted: str, way: str, tmp_path: Path
) -> None:
    """The numbers are ONNX Runtime's, which cuts off first."""
    numbers = [float(n) for n in wanted.split()]
    open_, running = way == "open", way == "running"
    graph = padded(
        tmp_path / "m.onnx",
        mode,
        None if running else pads,
        "n" if open_ else 6,
        len(numbers) if running else None,
    )
    given = {"x": SIX, **({"p": np.array(pads)} if running else {})}
    assert run(graph, given)["out"].tolist() == numbers


@pytest.mark.parametrize("pads", [(4, 0), (0, 4), (-1, 4)])
def test_an_axis_that_is_too_short_to_be_mirrored(pads: tuple[int, int], tmp_path: Path) -> None:
    graph = padded(tmp_path / "m.onnx", "reflect", pads, "n")
    least, kept = (6, SIX[1:]) if pads[0] < 0 else (5, SIX[:5])
    wanted = np.pad(kept, np.maximum(pads, 0), "reflect")
    assert run(graph, {"x": SIX[:least]})["out"].tolist() == wanted.tolist()
    for length in range(1, least):
        with pytest.raises(LlmcError, match="is below"):
            run(graph, {"x": SIX[:length]})


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
@pytest.mark.parametrize("pads", [(2, 1), (-1, 3), (3, -2), (-1, -1)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_as_pytorch_pads(mode: str, pads: tuple[int, int], dynamic: bool, tmp_path: Path) -> None:
    class Padded(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.pad(x, pads, mode=mode)

    x = torch.arange(6.0)[None, None]
    shapes = {"x": {2: torch.export.Dim("t", min=6, max=50)}} if dynamic else None
    torch.export.save(torch.export.export(Padded(), (x,), dynamic_shapes=shapes), tmp_path / "m.pt2")
    graph = load(tmp_path / "m.pt2").graph
    (found,) = run(graph, {graph.inputs[0].attributes["name"]: x.numpy()}).values()
    np.testing.assert_array_equal(found, Padded()(x).numpy())
