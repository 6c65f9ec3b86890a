"""TIR kernels to CUDA C++ by TVM; `nvcc.py` makes machine code of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

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
