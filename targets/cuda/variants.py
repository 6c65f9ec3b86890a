"""The GPUs that kernels are compiled for, and the targets that have them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llmc.targets.target import LINUX_X86, Target

# Those that nvcc 12 and 13 both know.
GPUS: Mapping[str, str] = MappingProxyType(
    {
        "sm_75": "Turing: T4, RTX 20",
        "sm_80": "Ampere: A100, A30",
        "sm_86": "Ampere: A10, A40, RTX 30",
        "sm_89": "Ada: L4, L40, RTX 40",
        "sm_90": "Hopper: H100, H200",
    }
)


def _target(name: str, description: str, *architectures: str) -> Target:
    return Target(name, description, *LINUX_X86, architectures=architectures, backend="cuda")


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "cuda": _target("cuda", "NVIDIA GPUs from Turing on, x86-64 host", *GPUS),
        **{
            f"cuda-{sm}": _target(f"cuda-{sm}", f"NVIDIA {what}, x86-64 host", sm)
            for sm, what in GPUS.items()
        },
    }
)
