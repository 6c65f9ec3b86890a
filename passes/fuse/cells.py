"""`expand-cells`: cells of recurrent networks as products and element-wise ops, for targets without kernels of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import make
from llmc.compiler.pipeline import Keeps, Pass, close


@dataclass(frozen=True)
class ExpandCells(Pass):
    """Write out `lstm_cell` and `gru_cell`: the product with the state before, and what the gates do."""

    name = "expand-cells"
    keeps: ClassVar[Keeps] = close(1e-6)

    def run(self, graph: Graph) -> Graph:
        """One walk; both results of an LSTM's cell share its gates."""
        expanded: dict[Node, tuple[Node, Node]] = {}

        def change(node: Node) -> Node:
            match node:
                case Node("result", (Node("lstm_cell") as cell,), {"index": index}):
                    if cell not in expanded:
                        expanded[cell] = _lstm(cell)
                    return expanded[cell][index]
                case Node("gru_cell"):
                    return _gru(node)
            return node

        return graph.replace(change)


def _lstm(cell: Node) -> tuple[Node, Node]:
    """c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c')"""
    x, h, c, w = cell.inputs
    gates = _op(cell, "linear", h, w, x, epilogue=("residual",))
    i, f, g, o = _split(cell, gates, int(c.shape[1]))
    kept = _op(cell, "mul", _op(cell, "sigmoid", f), c)
    new = _op(cell, "mul", _op(cell, "sigmoid", i), _op(cell, "tanh", g))
    after = _op(cell, "add", kept, new)
    return _op(cell, "mul", _op(cell, "sigmoid", o), _op(cell, "tanh", after)), after


def _gru(cell: Node) -> Node:
    """n = tanh(xn + r (hn + bias)), h' = n + z (h - n)"""
    x, h, w, bias = cell.inputs
    units = int(h.shape[1])
    xr, xz, xn = _split(cell, x, units)
    hr, hz, hn = _split(cell, _op(cell, "linear", h, w), units)
    r, z = (_op(cell, "sigmoid", _op(cell, "add", a, b)) for a, b in ((xr, hr), (xz, hz)))
    n = _op(cell, "tanh", _op(cell, "add", xn, _op(cell, "mul", r, _op(cell, "add", hn, bias))))
    return _op(cell, "add", n, _op(cell, "mul", z, _op(cell, "sub", h, n)))


def _split(cell: Node, gates: Node, units: int) -> list[Node]:
    return [
        _op(cell, "slice", gates, axis=1, start=at, stop=at + units)
        for at in range(0, int(gates.shape[1]), units)
    ]


def _op(cell: Node, name: str, *inputs: Node, **attributes: Any) -> Node:
    return make(name, inputs, cell.source, **attributes)
