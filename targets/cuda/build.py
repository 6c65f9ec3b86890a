"""TIR kernels to CUDA C++ by TVM, CUDA C++ to a fatbin by nvcc: no GPU and no driver is needed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from llmc.errors import LlmcError
from llmc.targets import store

# What the kernels need of CUDA. TVM's own preamble is longer and holds nothing else that they use.
PREAMBLE = """\
#include <cstdint>
#include <cuda_fp16.h>
#include <math_constants.h>
#include <mma.h>

typedef unsigned char uchar;
typedef unsigned int uint;
"""
_KERNEL = 'extern "C" __global__'

# Multiply-adds are written out: nvcc must contract nothing, so that all GPUs give the same bits.
FLAGS = ("-std=c++17", "-O3", "-fmad=false", "-prec-div=true", "-prec-sqrt=true", "-ftz=false")


def cuda_source(functions: Mapping[str, Any]) -> str:
    """CUDA C++ of kernels (symbol -> PrimFunc).

    They come from `GridEmitter`: flat buffers, explicit vectors and barriers. So of TVM's pipeline only the lowering
    of built-ins is needed.
    """
    target = tvm.target.Target(
        {
            "kind": "cuda",
            "arch": "sm_75",  # the oldest; it decides nothing in the text
            "max_shared_memory_per_block": 49152,
            "max_threads_per_block": 1024,
            "thread_warp_size": 32,
        }
    )
    module = tvm.IRModule({name: legalise(f) for name, f in functions.items()})
    passes = [tirx.transform.BindTarget(target), tirx.transform.LowerIntrin()]
    module = tvm.ir.transform.Sequential(passes)(module)
    text = str(tvm.get_global_func("target.build.cuda")(module, target).inspect_source())
    return PREAMBLE + "\n" + text[text.index(_KERNEL) :]


def legalise(function: Any) -> Any:
    """`function` with what only LLVM or x86 means written for CUDA.

    - `llvm.fma` becomes `fmaf` or `fma`, `llvm.roundeven` `rintf` (the mode is to nearest even, always).
    - A float `max(a, b)` is `a > b ? a : b`, which is b if either is NaN; CUDA's would be the other one.
    """
    lookup = tvm.target.codegen.llvm_lookup_intrinsic_id
    names = {
        (lookup("llvm.fma"), "float32"): "fmaf",
        (lookup("llvm.fma"), "float64"): "fma",
        (lookup("llvm.roundeven"), "float32"): "rintf",
    }

    def call(node: Any) -> Any:
        if getattr(node.op, "name", "") != "tirx.call_llvm_pure_intrin":
            return node
        dtype = str(node.ty.dtype)
        return tirx.call_pure_extern(dtype, names[int(node.args[0].value), dtype], *node.args[1:])

    def pick(compare: Any) -> Any:
        def choose(node: Any) -> Any:
            is_float = str(node.ty.dtype).startswith("float")
            return tirx.Select(compare(node.a, node.b), node.a, node.b) if is_float else node

        return choose

    changes = ((tvm.ir.Call, call), (tirx.Max, pick(tirx.GT)), (tirx.Min, pick(tirx.LT)))
    for change in changes:
        function = tvm_ffi.structural_map(function, change)
    return function


def find_nvcc() -> str:
    """Path of nvcc.

    Raises:
        LlmcError: there is none.
    """
    path = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if path is None:
        raise LlmcError(
            "nvcc is not on the PATH",
            at="--target cuda",
            hint="install the CUDA toolkit (12.0 or later); a GPU or its driver is not needed to compile",
        )
    return path


def fatbin(source: str, architectures: Sequence[str], kept: store.Store) -> bytes:
    """Machine code for each of `architectures` ("sm_80"), and PTX of the last for later ones.

    Raises:
        LlmcError: nvcc is missing, or refuses an architecture.
    """
    nvcc = find_nvcc()
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    name = store.key(source, *architectures, *FLAGS, version)
    return kept.made(name, lambda: _assembled(nvcc, source, architectures))


def _assembled(nvcc: str, source: str, architectures: Sequence[str]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="llmc-") as folder:
        code, output = Path(folder) / "kernels.cu", Path(folder) / "kernels.fatbin"
        code.write_text(source)
        wanted = [f"-gencode=arch=compute_{a[3:]},code={a}" for a in architectures]
        newest = architectures[-1][3:]
        wanted.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
        command = [nvcc, *FLAGS, "--threads", "0", "-fatbin", *wanted, "-o", str(output), str(code)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            raise LlmcError(
                "nvcc failed",
                at=f"{nvcc}, for {', '.join(architectures)}",
                found="\n         ".join(lines[:5]) or f"exit code {done.returncode}",
                hint="does `nvcc --list-gpu-code` know the architecture?",
            )
        return output.read_bytes()
