"""ONNX's Gradient: what a number depends on, differentiated backwards and written in plain ops.

Rules are by op of the IR, so whatever a converter wrote in these ops has a derivative; all other ops are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from llmc.compiler.dims import product
from llmc.compiler.frontends.composed import size
from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.frontends.onnx_values import Value
from llmc.compiler.frontends.parts import inverse
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops.reduction import reduced

# call, node, gradient of its result -> gradients of its inputs, in their order; None: not known
Rule = Callable[[Call, Node, Node], Sequence["Node | None"]]


@onnx_op("ai.onnx.preview.training.Gradient")
def _gradient(call: Call) -> tuple[Node, ...]:
    """d y / d x for each of `xs`, at the values that the graph itself has."""
    xs, zs = call.attributes["xs"], call.attribute("zs", [])
    given = [call.value(i) for i in range(len(call.inputs))]
    named = [call.scope.value(name) for name in (*xs, *zs)]
    same = len(given) == len(named) and all(a is b for a, b in zip(given, named, strict=True))
    call.require(same, "a gradient at other values than those of the graph")
    leaves = [_leaf(call, value) for value in given[: len(xs)]]
    around = [value for value in given[len(xs) :] if isinstance(value, Node)]
    _want_independent(call, [*leaves, *around])
    y = call.data(call.scope.value(call.attributes["y"]))
    call.require(y.dtype == "f32" and product(y.shape) == 1, "the gradient of more than one number", "sum it")
    found = _backwards(call, y, leaves, around)
    zero = call.number(0, "f32")
    return tuple(found[x] if x in found else call.expand(zero, x.shape) for x in leaves)


def _leaf(call: Call, value: Value) -> Node:
    """A constant may be gone from what was computed with it, which would give a gradient of 0."""
    x = call.data(value)
    call.require(x.dtype == "f32", f"a gradient by numbers of {x.dtype}")
    call.require(x.op != "constant", "a gradient by a constant", "make it an input of the graph")
    return x


def _want_independent(call: Call, leaves: Sequence[Node]) -> None:
    others = set(leaves)
    call.require(len(others) == len(leaves), "a gradient by one value twice")
    for leaf in leaves:
        before = set(Graph((), {"x": leaf}).nodes) - {leaf}
        call.require(before.isdisjoint(others), "a gradient by values that depend on each other")


def _backwards(call: Call, y: Node, leaves: Sequence[Node], around: Sequence[Node]) -> Mapping[Node, Node]:
    """Node -> the gradient of y by it, for those of `leaves` that y depends on."""
    order = Graph((), {"y": y}).nodes
    varies = _varying(order, set(leaves), set(around))
    found = {y: call.expand(call.number(1, "f32"), y.shape)} if y in varies else {}
    for node in reversed(order):
        if node not in found or node in leaves:
            continue
        rule = _RULES.get(node.op)
        call.require(rule is not None, f"the gradient of {node.op}")
        assert rule is not None
        for x, part in zip(node.inputs, rule(call, node, found[node]), strict=True):
            if x not in varies:
                continue
            call.require(part is not None, f"the gradient of {node.op} by such an input")
            assert part is not None
            part = _summed(call, part, x)
            found[x] = call.op("add", found[x], part) if x in found else part
    return found


def _varying(order: Sequence[Node], leaves: set[Node], around: set[Node]) -> set[Node]:
    """Nodes that depend on leaves smoothly: flags and whole numbers stay as they are nearly everywhere."""
    found = set(leaves)
    for node in order:
        if node not in around and node.dtype in ("f32", "results") and not found.isdisjoint(node.inputs):
            found.add(node)
    return found


def _summed(call: Call, gradient: Node, x: Node) -> Node:
    """What was broadcast is added up again."""
    more = gradient.type.rank - x.type.rank
    if more > 0:
        gradient = call.op("sum", gradient, axes=tuple(range(more)), keepdims=False)
    pairs = enumerate(zip(gradient.shape, x.shape, strict=True))
    axes = tuple(axis for axis, (wide, narrow) in pairs if narrow == 1 and wide != 1)
    return call.op("sum", gradient, axes=axes, keepdims=True) if axes else gradient


# --- rules


def _mul(call: Call, node: Node, g: Node) -> Sequence[Node | None]:
    a, b = node.inputs
    return call.op("mul", g, b), call.op("mul", g, a)


def _div(call: Call, node: Node, g: Node) -> Sequence[Node | None]:
    """d(a / b) = da / b - (a / b) db / b"""
    by = call.op("div", g, node.inputs[1])
    return by, call.op("neg", call.op("mul", by, node))


def _pow(call: Call, node: Node, g: Node) -> Sequence[Node | None]:
    """d(x ** n) = n x ** (n - 1) dx"""
    x, n = node.inputs
    less = call.op("pow", x, call.op("sub", n, call.number(1, "f32")))
    return call.op("mul", g, call.op("mul", n, less)), None


def _exp(call: Call, node: Node, g: Node) -> Sequence[Node | None]:
    return (call.op("mul", g, node),)


def _log(call: Call, node: Node, g: Node) -> Sequence[Node | None]:
    return (call.op("div", g, node.inputs[0]),)


def _sqrt(call: Call, node: Node, g: Node) -> Sequence[Node | None]:
    return (call.op("div", g, call.op("add", node, node)),)


def _tanh(call: Call, node: Node, g: Node) -> Sequence[Node | None]:
    left = call.op("sub", call.number(1, "f32"), call.op("mul", node, node))
    return (call.op("mul", g, left),)


def _sigmoid(call: Call, node: Node, g: Node) -> Sequence[Node | None]:
    left = call.op("sub", call.number(1, "f32"), node)
    return (call.op("mul", g, call.op("mul", node, left)),)


def _sin(call: Call, node: Node, g: Node) -> Sequence[Node | None]:
    return (call.op("mul", g, call.op("cos", node.inputs[0])),)


def _cos(call: Call, node: Node, g: Node) -> Sequence[Node | None]:
    return (call.op("neg", call.op("mul", g, call.op("sin", node.inputs[0]))),)


def _relu(call: Call, node: Node, g: Node) -> Sequence[Node | None]:
    zero = call.number(0, "f32")
    return (call.op("where", call.op("gt", node.inputs[0], zero), g, zero),)


def _where(call: Call, node: Node, g: Node) -> Sequence[Node | None]:
    condition, zero = node.inputs[0], call.number(0, "f32")
    return None, call.op("where", condition, g, zero), call.op("where", condition, zero, g)


def _sum(call: Call, node: Node, g: Node) -> Sequence[Node | None]:
    (x,) = node.inputs
    return (call.expand(call.reshape(g, reduced(x.shape, node.attributes["axes"], True)), x.shape),)


def _mean(call: Call, node: Node, g: Node) -> Sequence[Node | None]:
    count = product(node.inputs[0].shape[a] for a in node.attributes["axes"])
    return _sum(call, node, call.op("div", g, call.cast(size(call, count), "f32")))


def _reshape(call: Call, node: Node, g: Node) -> Sequence[Node | None]:
    return (call.reshape(g, node.inputs[0].shape),)


def _transpose(call: Call, node: Node, g: Node) -> Sequence[Node | None]:
    return (call.transpose(g, inverse(node.attributes["perm"])),)


def _matmul(call: Call, node: Node, g: Node) -> Sequence[Node | None]:
    a, b = (_turned(call, x) for x in node.inputs)
    return call.op("matmul", g, b), call.op("matmul", a, g)


def _linear(call: Call, node: Node, g: Node) -> Sequence[Node | None]:
    """x w^T, with a bias or without."""
    call.require(node.attributes["epilogue"] in ((), ("bias",)), "the gradient of a linear with an epilogue")
    x, w = node.inputs[:2]
    rows = [call.reshape(n, (product(n.shape[:-1]), n.shape[-1])) for n in (g, x)]
    by_x = call.reshape(call.op("matmul", rows[0], w), x.shape)
    return (by_x, call.op("matmul", _turned(call, rows[0]), rows[1]), g)[: len(node.inputs)]


def _turned(call: Call, x: Node) -> Node:
    rank = x.type.rank
    return call.transpose(x, (*range(rank - 2), rank - 1, rank - 2))


_RULES: Mapping[str, Rule] = {
    "add": lambda call, node, g: (g, g),
    "sub": lambda call, node, g: (g, call.op("neg", g)),
    "neg": lambda call, node, g: (call.op("neg", g),),
    "expand": lambda call, node, g: (g,),
    **{"mul": _mul, "div": _div, "pow": _pow, "exp": _exp, "log": _log, "sqrt": _sqrt, "tanh": _tanh},
    **{"sigmoid": _sigmoid, "sin": _sin, "cos": _cos, "relu": _relu, "where": _where},
    **{"sum": _sum, "mean": _mean, "reshape": _reshape, "transpose": _transpose},
    **{"matmul": _matmul, "linear": _linear},
}
