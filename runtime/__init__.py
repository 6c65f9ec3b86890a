"""Run compiled models: needs NumPy, and `tokenizers` when text is given.

model = load("model.llmc")
logits = model(input_ids=ids, attention_mask=mask)["logits"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmc.runtime.model import Model, check, load
from llmc.runtime.signature import TensorInfo

if TYPE_CHECKING:
    from llmc.runtime.benchmark import BenchmarkReport, compare

__all__ = ["BenchmarkReport", "Model", "TensorInfo", "check", "compare", "load"]


def __getattr__(name: str) -> Any:
    if name not in ("BenchmarkReport", "compare"):
        raise AttributeError(f"module 'llmc.runtime' has no attribute {name!r}")
    from llmc.runtime import benchmark

    return getattr(benchmark, name)
