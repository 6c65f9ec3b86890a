"""Values of dtypes that the IR has not, such as float64, and ops that it has not, where all that they read is constant.

PyTorch computes them at import. What a model reads of them is constant again, once it is cast to a dtype of the IR.
A file may state any call: only ops are run that compute each element for itself, are views or are listed here, and only
where their result is small, which is asked of PyTorch without computing it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llmc.compiler.dims import product
from llmc.compiler.frontends.aten import TORCH_DTYPES
from llmc.compiler.frontends.report import UnsupportedError
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.interpret import run
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
_PLAIN = frozenset(
    {
        *("to", "_to_copy", "type_as", "cat", "concat", "stack", "clone", "contiguous", "lift_fresh_copy"),
        *(
            "sum",
            "mean",
            "prod",
            "cumsum",
            "cumprod",
            "matmul",
            "mm",
            "outer",
            "flip",
            "roll",
            "tril",
            "triu",
        ),
        *("repeat", "repeat_interleave", "reshape", "flatten", "full_like", "ones_like", "zeros_like"),
        *_MAKERS,
    }
)


@dataclass(frozen=True)
class Foreign:
    """A constant in a dtype that the IR has not."""

    tensor: torch.Tensor


def is_foreign(meta: Any) -> bool:
    """Whether a fake tensor has a dtype that the IR has not; of complex numbers it has the parts."""
    dtype = getattr(meta, "dtype", torch.float32)
    return dtype not in TORCH_DTYPES and dtype is not torch.complex64


def computed(target: Any, arguments: Mapping[str, Any], source: Source) -> Node | Foreign | None:
    """The value of a call at import; None if it reads anything that is not known yet, or should not be run."""
    given = {name: _known(value) for name, value in arguments.items()}
    if any(value is _UNKNOWN for value in given.values()) or not _may_run(target, given):
        return None
    try:
        with torch.no_grad():
            made = target(**given) if _is_small(target, given) else None
    except Exception:  # what PyTorch raises at arguments that do not fit, which a file may state
        return None
    if not isinstance(made, torch.Tensor) or made.is_complex():
        return None
    return Foreign(made) if is_foreign(made) else constant(np.array(made.numpy()), source=source)


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
            return _of_constants(value)
        case list():
            parts = [_known(v) for v in value]
            return _UNKNOWN if any(p is _UNKNOWN for p in parts) else parts
        case None | bool() | int() | float() | str() | torch.dtype() | torch.device() | torch.layout():
            return value
        case torch.memory_format():
            return value
    return _UNKNOWN


def _of_constants(node: Node) -> Any:
    """The value of a node if it follows from constants, and none on the way is large."""
    graph = Graph((), {"value": node})
    for read in graph.nodes:
        small = all(isinstance(d, int) for d in read.shape) and product(read.shape) <= _MOST
        if not small or read.op in ("input", "state", "dim") or read.bodies:
            return _UNKNOWN
    return torch.tensor(run(graph, {})["value"])


def _may_run(target: Any, given: Mapping[str, Any]) -> bool:
    """Whether an op is one of those that are run, and reads a tensor, unless it makes one of numbers."""
    schema = target._schema
    name = schema.name.removeprefix("aten::")
    reads = any(
        isinstance(t, torch.Tensor) for v in given.values() for t in (v if isinstance(v, list) else [v])
    )
    views = all(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    known = name in _PLAIN or views or torch.Tag.pointwise in target.tags
    return known and not schema.is_mutable and (reads or name in _MAKERS)


def _is_small(target: Any, given: Mapping[str, Any]) -> bool:
    """Whether the result has few elements: asked by a call on tensors without memory."""

    def without(value: Any) -> Any:
        if isinstance(value, list):
            return [without(v) for v in value]
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    asked = {name: without(value) for name, value in given.items()}
    if any(a.name == "device" for a in target._schema.arguments):
        asked["device"] = torch.device("meta")
    return int(target(**asked).numel()) <= _MOST
