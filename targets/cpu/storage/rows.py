"""Stored rows that are decoded by themselves, such as those looked up in a table."""

from __future__ import annotations

from llmc.compiler.calls import Call, Kernel, Operand
from llmc.compiler.dims import product
from llmc.compiler.graph import Node


def rows_call(node: Node, kernel: Kernel, operands: tuple[Operand, ...], moved: float) -> Call:
    """The call of a kernel whose items are rows.

    Args:
        moved: bytes of a row, as read and as written.
    """
    rows = product(node.shape[:-1])
    return Call(kernel, operands, (), rows, int(node.shape[-1]), 0, rows * int(moved), node.source)
