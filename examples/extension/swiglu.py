"""An op that works on rows, with a kernel of its own: swiglu(x) = silu(left half) * right half.

llmc compile MODEL -x swiglu.py -x to_swiglu.py --add-pass to_swiglu -o m.llmc
"""

from typing import Any

import numpy as np

from llmc import Extension, LlmcError
from llmc.compiler.calls import Call, Kernel
from llmc.compiler.dims import product
from llmc.compiler.graph import Node, TensorType
from llmc.compiler.ops.declare import define
from llmc.compiler.ops.traits import Rows


def reference(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    left, right = np.split(x.astype(np.float64), 2, axis=-1)
    return np.asarray(left / (1 + np.exp(-left)) * right).astype(x.dtype)


@define("swiglu", reference, traits={"accuracy": "close", "rows": Rows((0,), sliced=True)})
def swiglu(x: TensorType) -> TensorType:
    if x.dtype != "f32" or not x.rank or not isinstance(x.shape[-1], int) or x.shape[-1] % 2:
        raise LlmcError("it takes f32 [..., 2 k], k a number")
    return TensorType("f32", (*x.shape[:-1], x.shape[-1] // 2))


def lower(node: Node) -> Call:
    """One work item is one row; `cost`, `flops` and `bytes` are for the threads and the profile."""
    from llmc.targets.tir import emit, grid, math

    k, rows = int(node.shape[-1]), product(node.shape[:-1])

    def kernel(symbol: str, cpu: Any) -> Any:
        e = emit.Emitter(symbol)
        x, y = e.pointer("x", "f32"), e.pointer("y", "f32")
        with e.loop(e.begin, e.end) as row:

            def some(at: Any, mask: Any) -> None:  # 16 columns at a time
                left = e.load(x, row * (2 * k) + at, emit.LANES, mask)
                right = e.load(x, row * (2 * k) + k + at, emit.LANES, mask)
                e.store(y, row * k + at, math.silu(e, left) * right, mask)

            grid.columns(e, k, some)
        return e.function()

    code = Kernel("swiglu", k, ("f32", "f32"), 0, kernel)
    return Call(code, (*node.inputs, node), (), rows, 2 * k, 22 * k * rows, 12 * k * rows, node.source)


extension = Extension("swiglu", ops=(swiglu,), kernels={"cpu": {"swiglu": lower}})
