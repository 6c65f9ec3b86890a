"""Second names of ATen ops: programs keep the one that the model's code used."""

from __future__ import annotations

from llmc.compiler.frontends import aten_math, aten_shape
from llmc.compiler.frontends.aten import TABLE, aten

_NAMED_IN = (aten_math, aten_shape)  # importing them fills TABLE
_ALIASES = {
    **{"multiply": "mul", "subtract": "sub", "divide": "div", "negative": "neg", "absolute": "abs"},
    **{"greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le", "not_equal": "ne"},
    **{"concat": "cat", "concatenate": "cat", "clip": "clamp"},
}


def _aliases() -> None:
    for alias, name in _ALIASES.items():
        found = {k.partition(".")[2]: convert for k, convert in TABLE.items() if k.partition(".")[0] == name}
        for overload in ("default", "Tensor", "Scalar", "Tensor_mode", "Scalar_mode"):
            if overload in found and f"{alias}.{overload}" not in TABLE:
                aten(f"{alias}.{overload}")(found[overload])


_aliases()
