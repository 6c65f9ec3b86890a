"""Hold every library of this process to AVX2: by its own switch, and by a CPUID that does not tell of more."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from llmc.targets.host import cpuinfo, host_flags

# Read when the libraries load. MLAS (in ONNX Runtime, and for some products in OpenVINO) has no such switch.
SWITCHES: Mapping[str, str] = MappingProxyType(
    {
        "ONEDNN_MAX_CPU_ISA": "AVX2",  # OpenVINO and PyTorch
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",  # PyTorch
        "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch
    }
)
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16")  # worth naming in a result


def start_again(isa: str) -> None:
    """Replace this process by one in which the switches are set, unless they are; before libraries are loaded."""
    if isa != "avx2" or all(os.environ.get(name) == value for name, value in SWITCHES.items()):
        return
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **SWITCHES})


def hide(isa: str, folder: Path) -> str:
    """Make CPUID tell of AVX2 only, for libraries loaded from now on; a sentence that says what was done."""
    if isa != "avx2":
        return "every library uses the widest instructions it knows"
    from peaks import HERE, build

    if build(HERE / "cpuid.c", folder).hide_wide_vectors() == 0:
        return "AVX2 for all: environment switches, and CPUID hides the rest from libraries without a switch"
    return "AVX2 by environment switches; ONNX Runtime, which has none, uses all that the CPU has"


def machine() -> dict[str, object]:
    """What a result says about the machine: processor and usable cores, no names."""
    flags = host_flags()
    virtual = " (virtual machine)" if "hypervisor" in flags else ""
    return {
        "cpu": (cpuinfo("model name") or platform.machine()) + virtual,
        "family": cpuinfo("cpu family") or "?",
        "model": cpuinfo("model") or "?",
        "cores": len(os.sched_getaffinity(0)),
        "features": [name for name in FEATURES if name in flags],
    }


def machine_text(facts: Mapping[str, object], isa: str) -> str:
    """One line."""
    features = facts["features"]
    assert isinstance(features, list)
    allowed = "held to AVX2" if isa == "avx2" else ", ".join(features)
    return (
        f"{facts['cpu']}, family {facts['family']} model {facts['model']}, {facts['cores']} cores, {allowed}"
    )
