"""An ONNX file of doubles, compiled and run: no number becomes float32 on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import llmc
from llmc.cli import main
from llmc.errors import LlmcError

NODE = helper.make_node
W = np.array([1e200, 1 / 3, 5e-324, 7.0])
X = np.array([[1e-310, 1 + 2**-40, 3e-320, -0.0], [2e99, -1 / 7, 4.0, 1e308]])


@pytest.fixture(scope="module")
def doubles(tmp_path_factory: Any) -> Path:
    """x w + x, and (w - x) / w turned round."""
    folder: Path = tmp_path_factory.mktemp("doubles")
    nodes = [
        NODE("Mul", ["x", "w"], ["p"]),
        NODE("Add", ["p", "x"], ["sums"]),
        NODE("Sub", ["w", "x"], ["d"]),
        NODE("Div", ["d", "w"], ["q"]),
        NODE("Transpose", ["q"], ["turned"], perm=[1, 0]),
    ]
    info = helper.make_tensor_value_info
    outputs = [info(name, T.DOUBLE, None) for name in ("sums", "turned")]
    graph = helper.make_graph(
        nodes, "g", [info("x", T.DOUBLE, ["n", 4])], outputs, [numpy_helper.from_array(W, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    llmc.compile(folder / "m.onnx", folder / "m.llmc", target="x86", max_batch=64)
    return folder / "m.llmc"


def wanted(x: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    with np.errstate(all="ignore"):
        return {"sums": x * W + x, "turned": ((W - x) / W).T}


def test_every_variant_has_numpys_answers(doubles: Path, variants: Any, bits_agree: Any) -> None:
    """A product that feeds a sum is not rounded in between, so that sums may differ in the last bit."""
    for x in (X, np.random.default_rng(0).normal(size=(37, 4))):
        runs = []
        for variant in variants(doubles):
            for threads in (1, 3):
                with llmc.load(doubles, threads=threads, variant=variant) as model:
                    runs.append(model(x=x))
        assert bits_agree(runs)
        assert {value.dtype for value in runs[0].values()} == {np.dtype(np.float64)}
        np.testing.assert_array_equal(runs[0]["turned"], wanted(x)["turned"])
        np.testing.assert_allclose(runs[0]["sums"], wanted(x)["sums"], rtol=1e-14, atol=0)


def test_python_numbers_are_doubles(doubles: Path) -> None:
    with llmc.load(doubles) as model:
        np.testing.assert_array_equal(model(x=X.tolist())["turned"], wanted(X)["turned"])
        half = np.full((2, 4), 0.5, np.float32)
        np.testing.assert_array_equal(model(x=half)["turned"], wanted(half.astype(np.float64))["turned"])
        with pytest.raises(LlmcError, match="complex128"):
            model(x=X.astype(complex))


def test_commands(doubles: Path, tmp_path: Path, capsys: Any) -> None:
    """The self-test, a file of the user's, and a race on random numbers."""
    np.save(tmp_path / "x.npy", X)
    given = ["--input", f"x={tmp_path / 'x.npy'}", "--output", str(tmp_path / "o.npz")]
    assert main(["run", str(doubles), "--selftest"]) == 0
    assert main(["run", str(doubles), *given]) == 0
    assert "float64[2x4]" in capsys.readouterr().out
    np.testing.assert_array_equal(np.load(tmp_path / "o.npz")["turned"], wanted(X)["turned"])
    assert main(["bench", str(doubles), "--duration", "0.1s"]) == 0


def test_gpus_refuse_them(doubles: Path, tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match="no kernel") as caught:
        llmc.compile(doubles.with_name("m.onnx"), tmp_path / "m.llmc", target="cuda")
    assert "GPUs have no kernels of f64" in str(caught.value)
