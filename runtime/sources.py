"""Which C files make which part of an artifact, for whoever builds one."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "c"  # goes on the include path: generated code includes module.h
HEADER = FOLDER / "llmc.h"  # copied into the artifact

MODULE_SOURCES = tuple(
    FOLDER / f"{name}.c"
    for name in (
        "adapter",
        "barred",
        "benchmark",
        "bind",
        "blocks",
        "check",
        "choose",
        "cpu",
        "crc32c",
        "error",
        "filters",
        "generator",
        "fork",
        "functions",
        "generate",
        "generations",
        "generate_memory",
        "generate_options",
        "history",
        "hooks",
        "host",
        "logprobs",
        "lookup",
        "memory",
        "names",
        "open",
        "parts",
        "peak",
        "pool",
        "portable",
        "resize",
        "rewind",
        "run",
        "samples",
        "session",
        "session_file",
        "sessions",
        "states",
        "stats",
        "threads",
        "weights",
        "windows",
        "workload",
    )
)
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

BENCH_SOURCES = tuple(FOLDER / f"{name}.c" for name in ("bench_load", "bench_main", "bench_print", "sha256"))
BENCH_FLAGS = ("-std=c99", "-O2", "-fPIE", "-pie", "-s")
BENCH_LIBRARIES = ("-ldl",)


def write_bench_hash(folder: Path, module_sha256: str) -> Path:
    """The source, in `folder`, that makes `bench` refuse every module.so but the one with this hash.

    A file of its own: what compiles `bench` for the next artifact has the other objects already.
    """
    source = folder / "bench_hash.c"
    source.write_text(f'#include "bench.h"\n\nconst char bench_module_hash[] = "{module_sha256}";\n')
    return source


# `run`, the model as one program: the runtime and the kernels are linked in, so it needs no module.so.
RUN_SOURCES = (*MODULE_SOURCES, *(FOLDER / f"{name}.c" for name in ("npy", "run_main")))
# musl gives threads the main thread's stack size as linked, 128 kB by default.
RUN_FLAGS = (
    "-std=c99",
    "-O2",
    "-fPIE",
    "-static-pie",
    "-fvisibility=hidden",
    "-Wl,-z,stack-size=1048576",
    "-s",
)

# libmodel.a: a section for each function, so that a program takes only what it uses.
OBJECT_FLAGS = (
    "-std=c99",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffunction-sections",
    "-fdata-sections",
    "-c",
)
