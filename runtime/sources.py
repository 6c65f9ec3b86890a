"""Which C files make which part of an artifact, for whoever builds one."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "c"
HEADER = FOLDER / "llmc.h"  # copied into the artifact
MODULE_SOURCES = tuple(
    FOLDER / f"{name}.c"
    for name in ("benchmark", "cpu", "error", "open", "peak", "pool", "run", "sha256", "stats", "workload")
)
BENCH_SOURCES = tuple(FOLDER / f"{name}.c" for name in ("bench_load", "bench_main", "bench_print", "sha256"))
