"""A kernel call on a GPU: `Call.items` counts blocks, `Kernel.threads` the threads of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llmc.compiler.calls import Call, Kernel, Operand, Packed
from llmc.compiler.dims import Dim, ceil_div, dim, product
from llmc.compiler.graph import DTYPES, Node
from llmc.errors import LlmcError
from llmc.targets.cuda.emit import GridEmitter

MOST_ARGUMENTS = 48  # of a kernel, as in runtime/c/cuda.c
FLAT = 256  # threads of a block whose threads work on their own


def launch(
    node: Node,
    family: str,
    key: tuple[Any, ...],
    emit: Callable[[GridEmitter], None],
    scalars: Sequence[Dim],
    blocks: Dim,
    *,
    threads: int = FLAT,
    operands: Sequence[Operand] | None = None,
    dtypes: Sequence[str] | None = None,
    flops: Dim = 0,
) -> Call:
    """The call that computes `node`; `emit` writes the block's code.

    Args:
        key: with `family` and the dtypes, everything the code depends on.
        operands: what it reads, the node's inputs if None; `dtypes` are theirs as stored.

    Raises:
        LlmcError: the kernel would take too many arguments.
    """
    reads = tuple(node.inputs if operands is None else operands)
    stored = tuple(_dtype(o) for o in reads) if dtypes is None else tuple(dtypes)

    def function(symbol: str, cpu: Any) -> Any:
        k = GridEmitter(symbol, threads)
        emit(k)
        return k.function()

    pointers = (*stored, node.dtype)
    if len(pointers) + len(scalars) > MOST_ARGUMENTS:
        raise LlmcError(f"{node.op}: {len(node.inputs)} inputs are too many for a GPU kernel")
    kernel = Kernel(family, ("cuda", key, pointers), pointers, len(scalars), function, threads=threads)
    moved = sum(product(n.shape) * DTYPES[n.dtype].itemsize for n in (*node.inputs, node))
    return Call(
        kernel,
        (*reads, node),
        tuple(dim(s) for s in scalars),
        dim(blocks),
        1,
        dim(flops),
        dim(moved),
        node.source,
    )


def _dtype(operand: Operand) -> str:
    assert not isinstance(operand, Packed), "say the stored dtypes of packed operands"
    return operand.dtype


def flat(
    node: Node,
    family: str,
    key: tuple[Any, ...],
    emit: Callable[[GridEmitter], None],
    scalars: Sequence[Dim],
    items: Dim,
    flops: Dim = 0,
) -> Call:
    """A call whose threads each do one of `items` items."""
    return launch(node, family, key, emit, scalars, ceil_div(dim(items), FLAT), flops=flops)
