"""Values of dtypes that the IR has not, such as float64, and ops that it has not, where all that they read is constant.

PyTorch computes them at import. What a model reads of them is constant again, once it is cast to a dtype of the IR.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llmc.compiler.frontends.aten import TORCH_DTYPES
from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.graph import Node, Source
from llmc.compiler.ops import constant

_MOST = 1 << 24  # elements of a value
_MAKERS = (  # of nothing but numbers
    *(
        "arange",
        "full",
        "ones",
        "zeros",
        "linspace",
        "logspace",
        "scalar_tensor",
        "tril_indices",
        "triu_indices",
    ),
    *("hann_window", "hamming_window", "blackman_window", "bartlett_window", "kaiser_window"),
)


@dataclass(frozen=True)
class Foreign:
    """A constant in a dtype that the IR has not."""

    tensor: torch.Tensor


def is_foreign(meta: Any) -> bool:
    """Whether a fake tensor has a dtype that the IR has not; of complex numbers it has the parts."""
    dtype = getattr(meta, "dtype", torch.float32)
    return dtype not in TORCH_DTYPES and dtype is not torch.complex64


def computed(target: Any, arguments: Mapping[str, Any], meta: Any, source: Source) -> Node | Foreign | None:
    """The value of a call at import; None if it reads anything that is not known yet, or should not be run."""
    if not isinstance(meta, torch.Tensor) or meta.dtype is torch.complex64 or not _is_small(meta):
        return None
    given = {name: _known(value) for name, value in arguments.items()}
    if any(value is _UNKNOWN for value in given.values()) or not _may_run(target, given):
        return None
    with torch.no_grad():
        made = target(**given)
    if is_foreign(made):
        return Foreign(made)
    return constant(np.ascontiguousarray(made.detach().numpy()), source=source)


def want_native(arguments: Mapping[str, Any]) -> None:
    """Refuse constants of foreign dtypes where they meet values that are computed at run time."""
    for value in arguments.values():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, Foreign):
                dtype = str(part.tensor.dtype).removeprefix("torch.")
                raise UnsupportedError(f"dtype {dtype}", "convert the model with .float() before export")


_UNKNOWN: Any = object()


def _known(value: Any) -> Any:
    """What PyTorch is given for an argument: of a constant its tensor."""
    match value:
        case Foreign():
            return value.tensor
        case Node():
            return torch.tensor(value.attributes["value"].array) if value.op == "constant" else _UNKNOWN
        case list():
            parts = [_known(v) for v in value]
            return _UNKNOWN if any(p is _UNKNOWN for p in parts) else parts
        case None | bool() | int() | float() | str() | torch.dtype() | torch.device() | torch.layout():
            return value
        case torch.memory_format():
            return value
    return _UNKNOWN


def _is_small(meta: Any) -> bool:
    return all(isinstance(d, int) for d in meta.shape) and math.prod(meta.shape) <= _MOST


def _may_run(target: Any, given: Mapping[str, Any]) -> bool:
    """Only what writes into nothing, is not random and reads tensors or is known to make one of numbers."""
    schema = target._schema
    reads = any(isinstance(v, torch.Tensor) for v in given.values())
    makes = schema.name.removeprefix("aten::") in _MAKERS
    random = torch.Tag.nondeterministic_seeded in target.tags
    return not schema.is_mutable and not random and (reads or makes)
