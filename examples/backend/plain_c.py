"""A backend that writes its kernels in C: element-wise arithmetic on float32, for any x86-64 Linux.

    llmc compile ./my-model -x plain_c.py --target plain-c -o m.llmc

It compiles graphs of the ops of EXPRESSIONS; of others the message names each.
"""

import tempfile
from functools import partial
from pathlib import Path

from llmc import Extension
from llmc.compiler.calls import Call, Kernel
from llmc.compiler.dims import ceil_div, product
from llmc.compiler.ops.elementwise import chain_value
from llmc.compiler.program import Variant
from llmc.errors import LlmcError
from llmc.targets import Target, toolchain
from llmc.targets.backend import Backend, Code
from llmc.targets.target import LINUX_X86

CHUNK = 1024  # elements of a work item
EXPRESSIONS = {"add": "({0} + {1})", "mul": "({0} * {1})", "relu": "({0} < 0 ? 0 : {0})", "exp": "expf({0})"}
FUNCTION = """#include <math.h>
#include <stdint.h>
int32_t {name}({parameters}, float *y, int64_t n, int64_t begin, int64_t end) {{
    for (int64_t i = begin * {chunk}; i < n && i < end * {chunk}; i++) y[i] = {value};
    return 0;
}}
"""


def lower(node):
    """Items are chunks of the output."""
    if {n.dtype for n in (*node.inputs, node)} != {"f32"} or {i.shape for i in node.inputs} != {node.shape}:
        raise LlmcError(f"{node.op}: no kernel but for float32 of one shape")
    value, size, inputs = value_of(node), product(node.shape), len(node.inputs)
    kernel = Kernel("plain", (value, inputs), ("f32",) * (inputs + 1), 1, partial(source, value, inputs))
    items = ceil_div(size, CHUNK)
    return Call(kernel, (*node.inputs, node), (size,), items, CHUNK, size, 8 * size, node.source)


def value_of(node):
    """C for one element of an op, or of a chain of them that the pass `fuse` made."""
    single = ((node.op, tuple(range(len(node.inputs))), ()),)
    inputs, values = [f"x{i}[i]" for i in range(len(node.inputs))], []
    for op, refs, _ in node.attributes.get("body", single):
        if op not in EXPRESSIONS:
            raise LlmcError(f"no kernel for {op}")
        values.append(EXPRESSIONS[op].format(*(chain_value(r, inputs, values) for r in refs)))
    return values[-1]


def source(value, inputs, symbol, variant):
    parameters = ", ".join(f"const float *x{i}" for i in range(inputs))
    return FUNCTION.format(name=f"{symbol}_{variant}", parameters=parameters, chunk=CHUNK, value=value)


class PlainC(Backend):
    name = "plain-c"

    def variants(self, target):
        return [Variant("c", features=0, peak_flops=0, needs=f"any {target.machine}")]

    def lowerings(self):
        return dict.fromkeys([*EXPRESSIONS, "chain"], lower)

    def compile(self, calls, target, kept):
        texts = {f"{c.kernel.symbol}.c": c.kernel.emit(c.kernel.symbol, "c") for c in calls}
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in texts]
            for file in files:
                file.write_text(texts[file.name])
            flags = ["-c", "-std=c99", "-O2", "-fPIC", "-ffp-contract=off"]
            toolchain.compile_objects(Path(folder), files, Path(folder), flags, target.zig)
            return Code({file.stem: file.with_suffix(".o").read_bytes() for file in files}, sources=texts)

    def runs_here(self, target):
        return ["c"]


TARGET = Target("plain-c", "kernels written in C", *LINUX_X86, backend=PlainC())
extension = Extension("plain-c", targets=(TARGET,))
