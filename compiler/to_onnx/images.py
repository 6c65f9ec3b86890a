"""Convolution and pooling; images with channels last are turned on the way in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmc.compiler.graph import Node
from llmc.compiler.ops import make
from llmc.compiler.ops.conv import TO_FIRST, TO_LAST
from llmc.compiler.ops.linear import EXTRAS
from llmc.compiler.to_onnx.emitter import Emitter
from llmc.compiler.to_onnx.products import epilogue
from llmc.compiler.to_onnx.table import exports


@exports("conv2d")
def _conv2d(e: Emitter, node: Node) -> str:
    x, w, *extras = node.inputs
    a, steps = node.attributes, node.attributes["epilogue"]
    first = extras[:1] if steps[:1] == ("bias",) else []
    operands = [_image(e, x, node), e.value(w), *map(e.value, first)]
    made = e.op(
        "Conv",
        *operands,
        kernel_shape=w.shape[2:],
        strides=a["stride"],
        pads=a["padding"],
        dilations=a["dilation"],
        group=a["groups"],
    )
    rest, more = steps[len(first) :], extras[len(first) :]
    if a["channels_last"]:
        return epilogue(e, e.transpose(made, TO_LAST), rest, more)
    return epilogue(e, made, rest, _columns(rest, more))


def _columns(steps: Sequence[str], extras: Sequence[Node]) -> list[Node]:
    """What is added where channels are first."""
    reading = [step for step in steps if step in EXTRAS]
    return [
        make("reshape", (x,), shape=(x.shape[0], 1, 1)) if step == "bias" else x
        for step, x in zip(reading, extras, strict=True)
    ]


def _image(e: Emitter, x: Node, node: Node) -> str:
    return e.transpose(e.value(x), TO_FIRST) if node.attributes["channels_last"] else e.value(x)


@exports("max_pool2d")
def _max_pool(e: Emitter, node: Node) -> str:
    return _pooled(e, node, "MaxPool", {"dilations": node.attributes["dilation"]})


@exports("avg_pool2d")
def _avg_pool(e: Emitter, node: Node) -> str:
    return _pooled(e, node, "AveragePool", {"count_include_pad": 1})


def _pooled(e: Emitter, node: Node, kind: str, more: Mapping[str, Any]) -> str:
    a = node.attributes
    window = {"kernel_shape": a["kernel"], "strides": a["stride"], "pads": a["padding"]}
    made = e.op(kind, _image(e, node.inputs[0], node), **window, **more)
    return e.transpose(made, TO_LAST) if a["channels_last"] else made
