"""A model as a file, or as two: FILE.onnx, and FILE.onnx.data with the weights where they are many or it is asked for.

Both are written under other names and renamed when they are whole, the weights first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from onnx import StringStringEntryProto, TensorProto

from llmc.compiler.graph import Graph
from llmc.compiler.to_onnx.model import Model, to_model
from llmc.compiler.to_onnx.tensors import Tensor
from llmc.compiler.whole_file import renamed
from llmc.errors import LlmcError

SUFFIX = ".onnx"
MOST_BYTES = 2**31 - 1  # of a protobuf message
_ROOM = 1 << 26  # of these, for all but weights
_INSIDE = 1024  # bytes of the largest tensor that is never apart
_ALIGNED = 64


def data_path(path: Path) -> Path:
    """The file of the weights beside a model."""
    return path.with_name(f"{path.name}.data")


def want_place(path: Path) -> None:
    """Check that a model may be written there.

    Raises:
        LlmcError: one of its files would take the place of a device or a folder.
    """
    for place in (path, data_path(path)):
        if place.exists() and not place.is_file():
            raise LlmcError("the output is there, and is no file", at=str(place), hint="choose another name")


def write(path: Path, graph: Graph, facts: Mapping[str, str], external: bool = False) -> None:
    """Write a verified graph as ONNX.

    Args:
        facts: metadata.
        external: put weights into FILE.onnx.data though one file would hold them.

    Raises:
        LlmcError: as `want_place` and `to_model`; or it cannot be written.
    """
    want_place(path)
    model = to_model(graph, facts, path.stem)
    total = sum(tensor.size for tensor in model.tensors.values())
    try:
        if external or total > MOST_BYTES - _ROOM:
            _write_two(path, model)
        else:
            _write_one(path, model)
    except OSError as error:
        raise LlmcError(f"cannot write the model: {error.strerror or error}", at=str(path)) from error


def _write_one(path: Path, model: Model) -> None:
    for name, tensor in model.tensors.items():
        _inside(model, name, tensor)
    with renamed(path) as file:
        file.write(model.proto.SerializeToString())


def _write_two(path: Path, model: Model) -> None:
    """The model takes its name after the data has: until then one that was there refers to data of its own size."""
    with renamed(path) as file:
        with renamed(data_path(path)) as data:
            for name, tensor in model.tensors.items():
                if tensor.size <= _INSIDE:
                    _inside(model, name, tensor)
                    continue
                data.write(bytes(-data.tell() % _ALIGNED))
                _apart(model, name, tensor, data_path(path).name, data.tell())
                data.write(tensor.bytes().data)
        file.write(model.proto.SerializeToString())


def _inside(model: Model, name: str, tensor: Tensor) -> None:
    model.proto.graph.initializer.append(
        TensorProto(name=name, data_type=tensor.kind, dims=tensor.shape, raw_data=tensor.bytes().tobytes())
    )


def _apart(model: Model, name: str, tensor: Tensor, location: str, offset: int) -> None:
    place = {"location": location, "offset": str(offset), "length": str(tensor.size)}
    model.proto.graph.initializer.append(
        TensorProto(
            name=name,
            data_type=tensor.kind,
            dims=tensor.shape,
            data_location=TensorProto.EXTERNAL,
            external_data=[StringStringEntryProto(key=k, value=v) for k, v in place.items()],
        )
    )
