"""The text form of a graph: one line for each node, readable, and read back exactly.

    dims batch=1..8, seq=1..512
    %0 = input() {name="ids", dtype="i64", shape=(batch, seq)} : i64[batch, seq]
    %w0 = constant() {value=weight("embeddings.weight", "8c5f1e0a7d3b9f42")} : f32[30522, 384]
    %1 = embedding(%w0, %0) : f32[batch, seq, 384]  # embeddings (modeling_bert.py:101)
    return {"hidden": %1}

A body of a loop or branch stands before the graph, as `graph 0` and its lines up to `return`; the attribute names it:

    graph 0
      %0 = input() {name="x", dtype="f32", shape=(batch, 8)} : f32[batch, 8]
      %1 = tanh(%0) : f32[batch, 8]
      return {"x": %1}
    %1 = loop(%0) {body=graph(0), count=seq, carried=1} : (f32[batch, 8])

A function with states says in the last line which nodes are their next values: `return {...} update {"keys": %7}`.

Attributes at their defaults are left out. Constants of up to 8 elements are written out, larger ones are
named by the first 16 digits of their digest. A `#` line is a comment; hand-written text may leave out types.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import sympy

from llmc.compiler.dims import dim, dim_text
from llmc.compiler.equality import same_value
from llmc.compiler.graph import DECLARED, DTYPES, Graph, Node, Weight, dtype_name
from llmc.html import Table

INLINE = 8  # elements of the largest constant that is written out
DIGITS = 16  # of a digest


def weights_of(graph: Graph) -> dict[str, Weight]:
    """digest -> Weight of every constant, as `parse_graph` wants them."""
    values = (value for node in graph.everywhere() for value in node.attributes.values())
    return {value.digest: value for value in values if isinstance(value, Weight)}


def print_graph(graph: Graph) -> str:
    """`graph` as text, ending in a newline."""
    dims = ", ".join(f"{name}={low}..{high}" for name, (low, high) in graph.dims.items())
    bodies: dict[Graph, int] = {}
    for body in _bodies(graph):
        bodies.setdefault(body, len(bodies))
    lines = [*_origins(graph), f"dims {dims}".rstrip()]
    for body, number in bodies.items():
        lines += [f"graph {number}", *(f"  {line}" for line in _lines(body, bodies))]
    return "\n".join([*lines, *_lines(graph, bodies), ""])


def _bodies(graph: Graph) -> Iterator[Graph]:
    """The bodies in `graph`, inner ones first."""
    for node in graph.nodes:
        for body in node.bodies:
            yield from _bodies(body)
            yield body


def node_lines(graph: Graph) -> dict[Node, str]:
    """Each node's line, the bodies in it numbered as `print_graph` does."""
    bodies: dict[Graph, int] = {}
    for body in _bodies(graph):
        bodies.setdefault(body, len(bodies))
    names = node_names(graph)
    return {node: _node_line(node, names, bodies) for node in graph.nodes}


def facts_of(graph: Graph) -> dict[str, object]:
    """The signature, for pages."""
    facts: dict[str, object] = {f"dim {name}": f"{low}..{high}" for name, (low, high) in graph.dims.items()}
    facts |= {f"{node.op} {node.attributes['name']}": node.type for node in (*graph.inputs, *graph.states)}
    return facts | {f"output {name}": node.type for name, node in graph.outputs.items()}


def table_of(graph: Graph, title: str = "") -> Table:
    """The nodes, for pages."""
    rows = [line.partition("  # ")[::2] for line in node_lines(graph).values()]
    return Table(("node", "source"), rows, title)


def node_names(graph: Graph) -> dict[Node, str]:
    """The names by which the text calls the nodes."""
    names: dict[Node, str] = {}
    constants = 0
    for node in graph.nodes:
        is_constant = node.op == "constant"
        names[node] = f"%w{constants}" if is_constant else f"%{len(names) - constants}"
        constants += is_constant
    return names


def _lines(graph: Graph, bodies: Mapping[Graph, int]) -> list[str]:
    """The nodes and the `return` of a graph."""
    names = node_names(graph)
    update = f" update {_named_nodes(graph.updates, names)}" if graph.updates else ""
    lines = [_node_line(node, names, bodies) for node in graph.nodes]
    return [*lines, f"return {_named_nodes(graph.outputs, names)}{update}"]


def _named_nodes(nodes: Mapping[str, Node], names: Mapping[Node, str]) -> str:
    return f"{{{', '.join(f'{_quoted(name)}: {names[node]}' for name, node in nodes.items())}}}"


def _origins(graph: Graph) -> list[str]:
    """Comments that say where the ops come from that llmc itself has not."""
    named = {name for node in graph.everywhere() for name in _texts((node.op, *node.attributes.values()))}
    return [
        f"# op {n} is of {origin}" for n in sorted(named) if (origin := n in DECLARED and DECLARED[n].origin)
    ]


def _texts(value: Any) -> Iterator[str]:
    """The texts in an attribute value: a chain's hold the ops of its steps."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _texts(part)


def _node_line(node: Node, names: Mapping[Node, str], bodies: Mapping[Graph, int]) -> str:
    declared = DECLARED.get(node.op)
    defaults = declared.defaults if declared else {}
    given = [
        (k, v) for k, v in node.attributes.items() if k not in defaults or not same_value(v, defaults[k])
    ]
    attributes = ", ".join(
        f"{k}={f'graph({bodies[v]})' if isinstance(v, Graph) else value_text(v)}" for k, v in given
    )
    arguments = ", ".join(names[i] for i in node.inputs)
    line = f"{names[node]} = {node.op}({arguments}){f' {{{attributes}}}' if given else ''} : {node.type}"
    source = " ".join(str(node.source).split())
    return f"{line}  # {source}" if source else line


def value_text(value: Any) -> str:
    """An attribute value as text in Python's syntax; `inf` and `nan` are names."""
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(value_text, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, Weight):
        return _weight_text(value)
    if isinstance(value, sympy.Expr):
        return dim_text(dim(value))
    return repr(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _weight_text(weight: Weight) -> str:
    if not written_out(weight):
        return f"weight({_quoted(weight.name)}, {_quoted(weight.digest[:DIGITS])})"
    array = weight.array
    parts = (weight.name, dtype_name(array.dtype), array.shape, _values(array))
    return f"tensor({', '.join(map(value_text, parts))})"


def written_out(weight: Weight) -> bool:
    """Whether the text holds the values: those of small ones, but a NaN with unusual bits has no text of its own."""
    array = weight.array
    if array.size > INLINE:
        return False
    return array_of(dtype_name(array.dtype), array.shape, _values(array)).tobytes() == array.tobytes()


def _values(array: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    return tuple(math.nan if v != v else v for v in array.ravel().tolist())


def array_of(dtype: str, shape: tuple[int, ...], values: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    """The array that a `tensor(...)` stands for."""
    return np.array(values, DTYPES[dtype]).reshape(shape)
