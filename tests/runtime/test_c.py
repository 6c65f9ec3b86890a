"""The C runtime by itself: strict compilers, sanitizers, valgrind, failing allocations, what it links."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache

import pytest

from llmc.runtime.sources import BENCH_SOURCES, FOLDER, HEADER, MODULE_SOURCES

STRICT = ["-Wall", "-Wextra", "-pedantic", "-Werror"]
FOR_TESTS = ("-g", "-DSTREAM_FLOATS=65536")
ADDRESSES = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREADS = ("-fsanitize=thread", "-fno-sanitize-recover=all")
WRAPPED = ("malloc", "calloc", "realloc", "posix_memalign", "mmap", "fallocate", "pthread_create")


DRIVERS = {
    "driver": "tiny",
    "sessions": "tally",
    "generations": "words",
    "blocks": "words",
}  # and the program that each is linked with
# `blocks` is `generations` whose states take many blocks, of a page each, where those of others lie in one piece.
BLOCKS = ("-DBLOCK_BYTES=4096", "-DLEAST_BYTES=4096", "-DWORDS_WIDE=64")


@pytest.fixture
def artifact(tiny, tally, words):
    """The artifact that a driver is for."""
    return lambda name: {"tiny": tiny, "tally": tally, "words": words}[DRIVERS[name]]


def tool(name):
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def run(*command, **options):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """The runtime's objects, compiled once for all drivers: flags -> files."""

    @cache
    def compile_runtime(*flags):
        folder = tmp_path_factory.mktemp("runtime")
        sources = map(str, MODULE_SOURCES)
        command = [tool("gcc"), "-std=c99", "-Wall", "-Wextra", "-Werror", *FOR_TESTS, *flags]
        run(*command, "-c", *sources, cwd=folder)
        objects = sorted(map(str, folder.iterdir()))
        assert len(objects) == len(MODULE_SOURCES)
        return objects

    return compile_runtime


@pytest.fixture(scope="module")
def driver(tmp_path_factory, build, runtime):
    """Compile a driver and its program with the runtime: (name, flags, what only the driver and the linker get)."""

    def compile_driver(name, *flags, own=()):
        output = tmp_path_factory.mktemp("driver") / "driver"
        program, payload = DRIVERS[name], build.weights_payload() if name == "driver" else bytes(64)
        flags = (*flags, *BLOCKS) if name == "blocks" else flags
        sources = [
            build.tiny_c.with_name(f"{n}.c") for n in ("generations" if name == "blocks" else name, program)
        ]
        build.compile_c(
            output,
            *FOR_TESTS,
            build.checksums(payload),
            *flags,
            *own,
            *map(str, sources),
            *runtime(*flags),
            "-lpthread",
            compiler=[tool("gcc")],
        )
        return output

    return compile_driver


@pytest.mark.parametrize(
    "command", [["gcc", "-std=c99"], ["g++", "-std=c++11"], ["gcc", "-std=c11"], ["g++", "-std=c++20"]]
)
def test_header_is_strict(command, tmp_path):
    source = tmp_path / ("use.c" if command[0] == "gcc" else "use.cpp")
    source.write_text(
        '#include "llmc.h"\nint main(void) { llmc_options o = {0, 0, 0, 0, NULL, NULL, 0}; return o.pin; }\n'
    )
    run(tool(command[0]), *command[1:], *STRICT, f"-I{HEADER.parent}", "-c", source, "-o", tmp_path / "use.o")


@pytest.mark.parametrize("source", sorted({*MODULE_SOURCES, *BENCH_SOURCES}), ids=lambda p: p.stem)
def test_sources_are_strict(source, tmp_path):
    run(tool("gcc"), "-std=c99", "-O2", *STRICT, "-Wconversion", "-c", source, "-o", tmp_path / "x.o")


@pytest.mark.slow
def test_compiles_for_arm(build, tmp_path):
    zig = ["-target", "aarch64-linux-gnu.2.17"]
    build.compile_module(tmp_path / "module.so", *zig)


@pytest.mark.slow
@pytest.mark.parametrize("name", DRIVERS)
@pytest.mark.parametrize("sanitizer", [ADDRESSES, THREADS], ids=["address,undefined", "thread"])
def test_sanitizers(driver, artifact, name, sanitizer):
    program = driver(name, *sanitizer)
    # thread sanitizer needs a fixed address layout on kernels with many random bits
    fixed = ["setarch", "-R"] if sanitizer == THREADS and shutil.which("setarch") else []
    steps = [] if name not in ("generations", "blocks") else ["2000"] if sanitizer == THREADS else ["10000"]
    assert run(*fixed, program, artifact(name), *steps).stdout == "done\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", DRIVERS)
def test_valgrind(driver, artifact, name):
    valgrind = [tool("valgrind"), "--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=all", "-q"]
    assert run(*valgrind, driver(name), artifact(name)).stdout == "done\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", DRIVERS)
def test_failing_allocations(driver, artifact, name):
    wrapped = [f"-Wl,--wrap={function}" for function in WRAPPED]
    program = driver(name, *ADDRESSES, own=("-DFAILURES", *wrapped))
    text = run(program, artifact(name), "failures").stdout
    assert int(re.match(r"(\d+) allocations failed", text)[1]) >= 15


@pytest.mark.parametrize("name", ["module.so", "bench"])
def test_needs_the_system_only(tiny, name):
    needed = re.findall(r"NEEDED.*\[(.*)\]", run(tool("readelf"), "-d", tiny / name).stdout)
    assert needed
    assert set(needed) <= {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2"}


def test_module_exports_the_interface_only(tiny):
    text = run(tool("readelf"), "--dyn-syms", "-W", tiny / "module.so").stdout
    exported = {
        row.split()[-1] for row in text.splitlines() if " GLOBAL DEFAULT " in row and " UND " not in row
    }
    declared = set(re.findall(r"LLMC_API [^;(]*?(llmc_\w+)\(", HEADER.read_text()))
    assert exported == declared


CHOICE = [FOLDER / f"{name}.c" for name in ("barred", "choose", "error", "filters", "portable")]


@pytest.mark.parametrize(
    ("compiler", "flags", "runner"),
    [
        ("gcc", ["-O0"], None),
        ("gcc", ["-O3", "-march=native"], None),
        (None, ["-O3", "-mcpu=native"], None),
        (None, ["-O3", "-static", "-target", "aarch64-linux-musl"], "qemu-aarch64"),
    ],
    ids=["gcc", "gcc with all that the processor has", "clang", "ARM"],
)
def test_draws_are_the_same_by_every_compiler(compiler, flags, runner, build, tmp_path):
    """Bits of 60 distributions of 2000 tokens, and what is drawn of them."""
    sources = [build.tiny_c.with_name("draws.c"), *CHOICE]
    own = [tool(compiler)] if compiler else None
    program = build.compile_c(tmp_path / "draws", *flags, *map(str, sources), compiler=own)
    assert run(*([tool(runner)] if runner else []), program).stdout == "ae6f36ecff0dc429\n"
