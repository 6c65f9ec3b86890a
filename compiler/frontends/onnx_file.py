"""An .onnx file, read and checked: protobuf, opset, external data, dtypes. Nothing of it is run.

Weights are views of the parsed file or memory-mapped from the files beside it. A file can name any path as
its external data; only files inside the model's own folder are opened.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, defs, numpy_helper

from llmc.compiler.frontends import onnx_check
from llmc.compiler.frontends.imported import LARGEST
from llmc.compiler.frontends.onnx_doubles import in_doubles
from llmc.compiler.frontends.onnx_kinds import DTYPES, RAW, dtype_name, wide
from llmc.compiler.frontends.regular_file import want_regular
from llmc.errors import LlmcError

MOST_BYTES = 2**31 - 1  # of a protobuf message
OPSETS = range(1, defs.onnx_opset_version() + 1)  # versions of the default domain


@dataclass(frozen=True)
class OnnxFile:
    """A parsed file.

    Args:
        path: where it is.
        model: tensors hold no external data.
    """

    path: Path
    model: onnx.ModelProto

    @cached_property
    def doubles(self) -> bool:
        """Whether it is computed in doubles; all other floats of any width are float32."""
        return in_doubles(self.model)

    @property
    def producer(self) -> str:
        """What wrote the file, such as `pytorch 2.13.0`."""
        return f"{self.model.producer_name} {self.model.producer_version}".strip() or "unknown"


def read(path: Path) -> OnnxFile:
    """Parse and check a file.

    Raises:
        LlmcError: it is not ONNX, damaged, of an opset llmc does not know, or its external data is not usable.
    """
    model = _parse(path)
    _want_opset(model, path)
    onnx_check.want_sense(model, path)
    for tensor in model.graph.initializer:
        _check(tensor, path)
    return OnnxFile(path, model)


def _parse(path: Path) -> onnx.ModelProto:
    want_regular(path, MOST_BYTES)
    try:
        model = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise LlmcError(
            "the file is not an ONNX model, or it is damaged",
            at=str(path),
            found=f"{path.stat().st_size} bytes that do not parse",
            hint="export or download it again",
        ) from error
    except OSError as error:
        raise LlmcError(f"cannot read the model: {error.strerror or error}", at=str(path)) from None
    if not model.graph.node or not model.graph.output:
        raise LlmcError(
            "the file holds no ONNX graph",
            at=str(path),
            found=f"{path.stat().st_size} bytes, {len(model.graph.node)} nodes",
            hint="export or download it again",
        )
    return model


def _want_opset(model: onnx.ModelProto, path: Path) -> None:
    versions = {o.version for o in model.opset_import if o.domain in ("", "ai.onnx")}
    if len(versions) > 1 or any(v not in OPSETS for v in versions) or not model.opset_import:
        found = ", ".join(map(str, sorted(versions))) or "no version of ONNX's own ops"
        raise LlmcError(
            f"opset {found} is not supported",
            at=str(path),
            hint=f"export with opset_version from {OPSETS[0]} to {OPSETS[-1]}, best 17 or later",
        )


# --- tensors


def _check(tensor: TensorProto, path: Path) -> None:
    if tensor.data_type not in DTYPES:
        raise LlmcError(
            f"weight {tensor.name!r} has dtype {dtype_name(tensor.data_type)}",
            at=str(path),
            hint="llmc reads weights of floats, integers and bools",
        )
    if any(not 0 <= d <= LARGEST for d in tensor.dims):
        raise LlmcError(
            f"weight {tensor.name!r} has a size that no tensor has",
            at=str(path),
            found=str(list(tensor.dims)),
            hint="the file is damaged: export it again",
        )
    if is_external(tensor):
        _external(tensor, path)


def is_external(tensor: TensorProto) -> bool:
    """Whether the values are in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _external(tensor: TensorProto, path: Path) -> tuple[Path, int, int]:
    """File, offset and bytes of external data, checked.

    Raises:
        LlmcError: the file is not inside the model's folder, cannot be read or is too short.
    """
    try:
        return _found(tensor, path)
    except (
        OSError,
        RuntimeError,
    ) as error:  # a name no system takes, links in a circle, a file of somebody else's
        raise LlmcError(
            f"cannot read the file with weight {tensor.name!r}",
            at=str(path.parent),
            found=f"{getattr(error, 'strerror', None) or 'links in a circle'}: {_location(tensor)[:80]}",
        ) from None


def _location(tensor: TensorProto) -> str:
    return next((e.value for e in tensor.external_data if e.key == "location"), "")


def _found(tensor: TensorProto, path: Path) -> tuple[Path, int, int]:
    entries = {e.key: e.value for e in tensor.external_data}
    location, folder = _location(tensor), path.parent.resolve()
    file = (folder / location).resolve() if "\0" not in location else folder
    if not location or not _may_be_read(folder, location, file):
        raise LlmcError(
            f"the data of weight {tensor.name!r} is outside the model's folder",
            at=str(path),
            found=location or "no location",
            hint="external data must be beside the model",
        )
    if not file.is_file():
        raise LlmcError(
            f"the file {location!r} with the weights is missing",
            at=str(path.parent),
            hint="a model with external data is two files: copy or download both",
        )
    wanted, room = _bytes(tensor), file.stat().st_size
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", wanted))
    except ValueError:
        offset, length = -1, -1
    if offset < 0 or length != wanted or offset + length > room:
        raise LlmcError(
            f"the data of weight {tensor.name!r} does not fit its file",
            at=str(file),
            found=f"{entries.get('length', wanted)} bytes from {offset} on for {wanted}, in a file of {room}",
            hint="the file is cut off or of another model: download both again",
        )
    return file, offset, length


def _may_be_read(folder: Path, location: str, file: Path) -> bool:
    """Whether a file is the model's own: in its folder, or there a link into the cache that the folder is of.

    Hugging Face's cache has `models--NAME/snapshots/REVISION/...` of links into `models--NAME/blobs`.
    """
    if file.is_relative_to(folder):
        return True
    if ".." in Path(location).parts or Path(location).is_absolute():
        return False
    caches = (p.parent.parent for p in (folder, *folder.parents) if p.parent.name == "snapshots")
    return any(file.parent == cache / "blobs" for cache in caches)


def _bytes(tensor: TensorProto) -> int:
    """How many bytes the values take: those of less than 8 bits lie side by side."""
    count = math.prod(tensor.dims)
    if tensor.data_type in RAW:
        return int(count * RAW[tensor.data_type].itemsize)
    name = dtype_name(tensor.data_type)
    width = next((w for end, w in _WIDTHS.items() if end in name), 8)
    return int(-(-count * width // 8))


_WIDTHS = {"BFLOAT16": 16, "FLOAT4": 4, "FLOAT6": 6, "INT4": 4, "INT2": 2}


def values(tensor: TensorProto, path: Path, doubles: bool = False) -> np.ndarray[Any, Any]:
    """The values of a tensor in llmc's dtype for it; a view of the file where no conversion is needed.

    Args:
        doubles: doubles stay what they are.

    Raises:
        LlmcError: the dtype is not supported or the data is damaged.
    """
    _check(tensor, path)
    try:
        array = _array(tensor, path)
        return array if doubles and array.dtype == np.float64 else wide(array)
    except (ValueError, TypeError) as error:
        told = str(error).startswith("the data has")
        raise LlmcError(
            f"weight {tensor.name!r}: {error}"
            if told
            else f"the data of weight {tensor.name!r} does not fit its shape",
            at=str(path),
            found=f"{list(tensor.dims)} of {dtype_name(tensor.data_type)}",
            hint="llmc computes doubles as float32" if told else "the file is damaged: export it again",
        ) from error


def _array(tensor: TensorProto, path: Path) -> np.ndarray[Any, Any]:
    shape = tuple(tensor.dims)
    raw: Any = tensor.raw_data
    if is_external(tensor):
        file, offset, length = _external(tensor, path)
        raw = np.memmap(file, np.uint8, "r", offset, (length,)) if length else b""
    elif not tensor.HasField("raw_data"):
        return np.asarray(numpy_helper.to_array(tensor))
    if tensor.data_type == TensorProto.BFLOAT16:
        # bfloat16 is the upper half of a float32
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
    if tensor.data_type in RAW:
        return np.frombuffer(raw, RAW[tensor.data_type]).reshape(shape)
    inside = TensorProto(data_type=tensor.data_type, dims=shape, raw_data=bytes(raw))
    return np.asarray(numpy_helper.to_array(inside))
