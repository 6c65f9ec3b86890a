"""Run compiled models: needs NumPy, and `tokenizers` when text is given.

    model = load("model.llmc")
    logits = model(input_ids=ids, attention_mask=mask)["logits"]

Names are imported when first used: reading a manifest needs no NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmc.runtime.benchmark import compare
    from llmc.runtime.manifest import Manifest, read_manifest
    from llmc.runtime.model import Model, load
    from llmc.runtime.reports import BenchmarkReport, CompareReport
    from llmc.runtime.session import Session
    from llmc.runtime.signature import Function, StateInfo, TensorInfo
    from llmc.runtime.threads import Threads
    from llmc.runtime.verification import Verification, verify

__all__ = [
    "BenchmarkReport",
    "CompareReport",
    "Function",
    "Manifest",
    "Model",
    "Session",
    "StateInfo",
    "TensorInfo",
    "Threads",
    "Verification",
    "compare",
    "load",
    "read_manifest",
    "verify",
]

_HOME = {
    "BenchmarkReport": "reports",
    "CompareReport": "reports",
    "Function": "signature",
    "Manifest": "manifest",
    "Model": "model",
    "Session": "session",
    "StateInfo": "signature",
    "TensorInfo": "signature",
    "Threads": "threads",
    "Verification": "verification",
    "compare": "benchmark",
    "load": "model",
    "read_manifest": "manifest",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'llmc.runtime' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"llmc.runtime.{_HOME[name]}"), name)
