"""The files that say how an ensemble's members are combined: their weights, or a linear head over their answers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmc.compiler.frontends.json_file import read_object
from llmc.compiler.frontends.regular_file import want_regular
from llmc.compiler.frontends.safetensors_file import read_header
from llmc.compiler.frontends.stored_floats import StoredFloats
from llmc.compiler.npz import NpzError, as_npz_errors, open_npz
from llmc.errors import LlmcError

MOST_BYTES = 1 << 28  # of a head
_LOGITS, _PROBABILITIES = "logits", "probabilities"
_KEYS = ("weight", "bias", "inputs")

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Head:
    """A linear layer over the members' answers side by side.

    Args:
        weight: [classes, members * classes].
        bias: [classes], None if there is none.
        probabilities: whether it reads these, not logits.
    """

    file: Path
    weight: Floats
    bias: Floats | None
    probabilities: bool


def read_weights_of(file: Path, names: Sequence[str]) -> tuple[float, ...]:
    """The weight of each member, 1 together: `{"weights": [...]}` in their order, or by name.

    Raises:
        LlmcError: the file is missing or damaged, has not one for each, or one that is no positive number.
    """
    _want_file(file)
    content: Any = read_object(file)
    given = content.get("weights", content)
    if not isinstance(given, list | dict):
        raise _no_weights(file, f"weights: {given!r:.60}")
    if isinstance(given, dict):
        _want_names(file, given, names)
    found = given if isinstance(given, list) else [given[name] for name in names]
    if len(found) != len(names):
        members = f"{len(names)} members, {', '.join(names)}"
        raise LlmcError(f"there are {len(found)} weights for {members}", at=str(file))
    for name, weight in zip(names, found, strict=True):
        if not _is_number(weight) or weight <= 0:
            hint = "leave out a member that is to have none" if weight == 0 else None
            raise LlmcError(
                f"the weight of {name} is no positive number",
                at=str(file),
                found=f"{weight!r:.60}",
                hint=hint,
            )
    most = max(found)
    total = sum(weight / most for weight in found)
    shares = tuple(weight / most / total for weight in found)
    if min(shares) < np.finfo(np.float32).tiny:
        raise LlmcError("a weight is nothing beside the others", at=str(file), found=f"{found!r:.80}")
    return shares


def _no_weights(file: Path, found: str) -> LlmcError:
    hint = '{"weights": [0.5, 0.3, 0.2]} in the order of the members, or {"NAME": 0.5, ...}'
    return LlmcError("the file holds no weights of members", at=str(file), found=found, hint=hint)


def _want_names(file: Path, given: Mapping[str, Any], names: Sequence[str]) -> None:
    if missing := [name for name in names if name not in given]:
        hint = f"it has {', '.join(given)}"[:120] if given else None
        raise LlmcError(f"there is no weight of {missing[0]}", at=str(file), hint=hint)
    if unknown := [name for name in given if name not in names]:
        hint = f"the members are {', '.join(names)}"
        raise LlmcError(f"{unknown[0]!r:.60} is no member's name", at=str(file), hint=hint)


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < 1e300 and not math.isnan(value)


def _want_file(file: Path) -> None:
    if not file.exists():
        raise LlmcError("no such file", at=str(file), hint="is the path of --ensemble right?")


# --- heads


def read_head(file: Path) -> Head:
    """The head in a .json, .npz or .safetensors file: `weight`, `bias` and `inputs`, "logits" or "probabilities".

    Raises:
        LlmcError: the file is missing or damaged, or holds something else.
    """
    readers = {".json": _of_json, ".npz": _of_npz, ".safetensors": _of_safetensors}
    read = readers.get(file.suffix.lower())
    if read is None:
        hint = f"give one that ends in {', '.join(readers)}"
        raise LlmcError("no kind of file that a stack is read from", at=str(file), hint=hint)
    _want_file(file)
    want_regular(file, MOST_BYTES)
    found = read(file)
    if unknown := [name for name in found if name not in _KEYS]:
        hint = f"a stack has {', '.join(_KEYS)}"
        raise LlmcError(f"{unknown[0]!r:.60} is nothing of a stack's", at=str(file), hint=hint)
    if "weight" not in found:
        raise LlmcError("the stack has no weight", at=str(file), found=", ".join(found) or "nothing")
    inputs = found.get("inputs", _LOGITS)
    if inputs not in (_LOGITS, _PROBABILITIES):
        hint = f"use {_LOGITS} or {_PROBABILITIES}"
        raise LlmcError(
            "a stack's inputs are of another kind", at=str(file), found=f"{inputs!r:.60}", hint=hint
        )
    bias = None if found.get("bias") is None else _floats(file, "bias", found["bias"], 1)
    return Head(file, _floats(file, "weight", found["weight"], 2), bias, inputs == _PROBABILITIES)


def _floats(file: Path, name: str, value: Any, rank: int) -> Floats:
    try:
        made = np.asarray(value)
    except ValueError:  # rows of several lengths
        made = np.zeros((), object)
    kind = "rows of one length" if rank == 2 else "a row"
    if made.dtype.kind not in "fiu" or made.ndim != rank:
        found = f"{made.dtype}{list(made.shape)}"
        raise LlmcError(f"the stack's {name} is not {kind} of numbers", at=str(file), found=found)
    with np.errstate(over="ignore"):
        floats = np.ascontiguousarray(made, np.float32)
    if not np.isfinite(floats).all():
        raise LlmcError(f"the stack's {name} holds numbers that are not finite in float32", at=str(file))
    return floats


def _of_json(file: Path) -> dict[str, Any]:
    return read_object(file, MOST_BYTES)


def _of_npz(file: Path) -> dict[str, Any]:
    try:
        with open_npz(file) as arrays:
            for name, rows in arrays.items():
                if math.prod(rows.shape) * rows.dtype.itemsize > MOST_BYTES:
                    raise LlmcError(f"{name:.60} is too large for a stack", at=str(file))
        with as_npz_errors(), np.load(file, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
    except NpzError as error:
        raise LlmcError(f"{file.name} is damaged, or no .npz file: {error}", at=str(file)) from None
    if "inputs" in found:
        found["inputs"] = str(found["inputs"])
    return found


def _of_safetensors(file: Path) -> dict[str, Any]:
    tensors = read_header(file)
    floats = StoredFloats(file)
    if others := sorted(tensors.keys() - floats.shapes.keys()):
        kind = tensors[others[0]].dtype
        raise LlmcError(f"{others[0]!r:.60} of a stack is {kind}", at=str(file), hint="store F32")
    found: dict[str, Any] = {name: floats.read(name) for name in floats.shapes}
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    noted = header.get("__metadata__")
    return found | ({"inputs": noted["inputs"]} if isinstance(noted, dict) and "inputs" in noted else {})
