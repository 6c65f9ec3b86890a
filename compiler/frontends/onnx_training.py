"""ONNX's steps of optimisers: plain arithmetic on a weight, its gradient and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable

from llmc.compiler.frontends.onnx_call import Call, onnx_op
from llmc.compiler.graph import Node

_DOMAIN = "ai.onnx.preview.training."
Step = Callable[[Call, Node, Node, Node, list[Node]], list[Node]]


def _steps(call: Call, kept: int, step: Step) -> tuple[Node, ...]:
    """Inputs are the rate, the number of the step, all weights, all gradients, and what is kept, kind by kind."""
    rate, time, *tensors = call.nodes()
    count = len(tensors) // (2 + kept)
    groups = [tensors[i * count : (i + 1) * count] for i in range(2 + kept)]
    made = [step(call, rate, time, group[0], list(group[1:])) for group in zip(*groups, strict=True)]
    return tuple(node for kind in zip(*made, strict=True) for node in kind)


def _f(call: Call, name: str, default: float) -> Node:
    return call.number(call.attribute(name, default), "f32")


def _decayed(call: Call, x: Node, gradient: Node) -> Node:
    return call.op("add", call.op("mul", _f(call, "norm_coefficient", 0.0), x), gradient)


def _adagrad(call: Call, rate: Node, time: Node, x: Node, rest: list[Node]) -> list[Node]:
    gradient, squares = rest
    slower = call.op("mul", call.cast(time, "f32"), _f(call, "decay_factor", 0.0))
    rate = call.op("div", rate, call.op("add", call.number(1, "f32"), slower))
    gradient = _decayed(call, x, gradient)
    squares = call.op("add", squares, call.op("mul", gradient, gradient))
    scale = call.op("add", call.op("sqrt", squares), _f(call, "epsilon", 1e-6))
    return [call.op("sub", x, call.op("div", call.op("mul", rate, gradient), scale)), squares]


def _momentum(call: Call, rate: Node, time: Node, x: Node, rest: list[Node]) -> list[Node]:
    gradient, held = rest
    gradient = _decayed(call, x, gradient)
    alpha, beta = _f(call, "alpha", 0.0), _f(call, "beta", 0.0)
    first = call.op("gt", call.cast(time, "i64"), call.number(0, "i64"))
    beta = call.op("where", first, beta, call.number(1, "f32"))
    after = call.op("add", call.op("mul", alpha, held), call.op("mul", beta, gradient))
    mode = call.attributes["mode"]
    call.require(mode in ("standard", "nesterov"), f"Momentum of mode {mode!r}")
    step = after if mode == "standard" else call.op("add", gradient, call.op("mul", alpha, after))
    return [call.op("sub", x, call.op("mul", rate, step)), after]


def _adam(call: Call, rate: Node, time: Node, x: Node, rest: list[Node]) -> list[Node]:
    gradient, mean, square = rest
    gradient, one = _decayed(call, x, gradient), call.number(1, "f32")
    alpha, beta = _f(call, "alpha", 0.9), _f(call, "beta", 0.999)
    steps = call.cast(time, "f32")
    mean, square = (
        call.op("add", call.op("mul", share, old), call.op("mul", call.op("sub", one, share), new))
        for share, old, new in ((alpha, mean, gradient), (beta, square, call.op("mul", gradient, gradient)))
    )
    low, high = (call.op("sub", one, call.op("pow", share, steps)) for share in (alpha, beta))
    fair = call.op("mul", rate, call.op("div", call.op("sqrt", high), low))
    begun = call.op("gt", steps, call.number(0, "f32"))
    rate = call.op("where", begun, fair, rate)
    scale = call.op("add", call.op("sqrt", square), _f(call, "epsilon", 0.0))
    x = call.op("sub", x, call.op("div", call.op("mul", rate, mean), scale))
    left = call.op("sub", one, _f(call, "norm_coefficient_post", 0.0))
    return [call.op("mul", left, x), mean, square]


@onnx_op(f"{_DOMAIN}Adagrad")
def _of_adagrad(call: Call) -> tuple[Node, ...]:
    return _steps(call, 1, _adagrad)


@onnx_op(f"{_DOMAIN}Momentum")
def _of_momentum(call: Call) -> tuple[Node, ...]:
    return _steps(call, 1, _momentum)


@onnx_op(f"{_DOMAIN}Adam")
def _of_adam(call: Call) -> tuple[Node, ...]:
    return _steps(call, 2, _adam)
