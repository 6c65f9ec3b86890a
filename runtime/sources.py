"""Which C files make which part of an artifact, for whoever builds one."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "c"  # goes on the include path: generated code includes module.h
HEADER = FOLDER / "llmc.h"  # copied into the artifact

MODULE_SOURCES = tuple(
    FOLDER / f"{name}.c"
    for name in ("benchmark", "cpu", "error", "open", "peak", "pool", "run", "sha256", "stats", "workload")
)
CUDA_SOURCES = (*MODULE_SOURCES, FOLDER / "cuda.c")
# -Bsymbolic: several modules in one process must each use their own functions.
_EXPORTS = (
    "-Xlinker",
    f"--version-script={FOLDER / 'module.map'}",
)  # kernels are objects: no flag hides them
MODULE_FLAGS = (
    "-std=c99",
    "-O2",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-Wl,-Bsymbolic",
    *_EXPORTS,
    "-s",
)
MODULE_LIBRARIES = ("-lm", "-lpthread")
CUDA_LIBRARIES = (*MODULE_LIBRARIES, "-ldl")

BENCH_SOURCES = tuple(FOLDER / f"{name}.c" for name in ("bench_load", "bench_main", "bench_print", "sha256"))
BENCH_FLAGS = ("-std=c99", "-O2", "-s")
BENCH_LIBRARIES = ("-ldl",)


def bench_definition(module_sha256: str) -> str:
    """The flag that makes `bench` refuse every module.so but the one with this hash."""
    return f'-DLLMC_MODULE_SHA256="{module_sha256}"'
