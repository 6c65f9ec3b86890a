"""Kernels to object code: the only file that calls TVM's code generator.

Each kernel is an object file of its own for each instruction set, so that what another compile has made before is
found again (store.py), and the others are made at the same time, one on each core.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from llmc import __version__
from llmc.compiler.calls import Call
from llmc.targets import elf, store
from llmc.targets.cpu.known import wanted
from llmc.targets.target import Cpu, Target

Emit = Callable[[str, Cpu], Any]


def llvm_target(triple: str, cpu: Cpu) -> Any:
    """TVM's target for one instruction set."""
    return tvm.target.Target(
        {"kind": "llvm", "mtriple": triple, "mcpu": cpu.mcpu, "mattr": list(cpu.attributes), "opt-level": 3}
    )


def compile_calls(calls: Sequence[Call], target: Target, kept: store.Store) -> dict[str, bytes]:
    """Symbol -> object file, of the calls' kernels and the measuring loop for each instruction set."""
    jobs: dict[str, Callable[[], bytes]] = {}
    for symbol, known, emit, cpu in wanted(calls, target):
        function = emit(symbol, cpu)  # Python, so one after the other; LLVM's part runs side by side
        name = store.key(symbol, _content(function), target.triple, repr(cpu), _VERSIONS)
        make = partial(compile_object, {symbol: function}, target.triple, cpu)
        jobs[symbol] = partial(kept.made, name, make)
        if known:
            kept.put(known, name.encode())
    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        objects = dict(zip(jobs, pool.map(lambda job: job(), jobs.values()), strict=True))
    kept.trim()
    return objects


_VERSIONS = f"llmc {__version__} tvm {tvm.__version__} object 2"


def _content(function: Any) -> str:
    """A hash of everything a PrimFunc says."""
    return str(tvm_ffi.structural_hash(function))


def content_version(function: Any) -> str:
    """Names what a PrimFunc says and what compiles it."""
    return store.key(_content(function), _VERSIONS)


def compile_object(functions: Mapping[str, Any], triple: str, cpu: Cpu) -> bytes:
    """Compile kernels (symbol -> PrimFunc) to one object file.

    Kernels come from `Emitter`: flat buffers, explicit vectors, registers on the stack. So of TVM's pipeline only
    the lowering of built-ins is needed, and nothing reorders their arithmetic.
    """
    target = llvm_target(triple, cpu)
    passes = [
        tirx.transform.BindTarget(target),
        tirx.transform.UnrollLoop(),
        tirx.transform.LowerTVMBuiltin(),
        tirx.transform.LowerIntrin(),
    ]
    module = tvm.ir.transform.Sequential(passes)(tvm.IRModule(dict(functions)))
    library = tvm.get_global_func("target.build.llvm")(module, target)
    with _memory_file() as path:
        library.write_to_file(str(path), "o")
        return elf.without_debug(path.read_bytes())


@contextmanager
def _memory_file() -> Iterator[Path]:
    """The path of a file in memory where the system has such, for LLVM aborts the process when a disk is full."""
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryDirectory(prefix="llmc-") as folder:
            yield Path(folder) / "kernels.o"
        return
    descriptor = os.memfd_create("kernels.o")
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
