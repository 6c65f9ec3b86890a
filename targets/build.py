"""TIR functions to object code: the only file that calls TVM's code generator."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tvm
from tvm import tirx

from llmc.targets import Cpu


def llvm_target(triple: str, cpu: Cpu) -> Any:
    """TVM's target for one instruction set."""
    return tvm.target.Target(
        {"kind": "llvm", "mtriple": triple, "mcpu": cpu.mcpu, "mattr": list(cpu.attributes), "opt-level": 3}
    )


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
        return path.read_bytes()


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
