"""TIR functions to object code: the only file that calls TVM's code generator."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
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
    with tempfile.TemporaryDirectory(prefix="llmc-") as folder:
        path = Path(folder) / "kernels.o"
        library.write_to_file(str(path), "o")
        return path.read_bytes()
