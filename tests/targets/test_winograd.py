"""Convolutions by tiles: every step to the bit on every CPU variant, near the op's reference, at all edges of tiles."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
import pytest
from kernel_lab import Lab, assert_as_reference, check_no_contraction, cpus, guarded, run_all, same_bits

from llmc.compiler.dims import evaluate, symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.ops.float_steps import fma32
from llmc.targets import TARGETS
from llmc.targets.cpu.conv.winograd import lower_winograd

B, H, W = symbol("batch"), symbol("height"), symbol("width")
RNG = np.random.default_rng(0)
SAME = (1, 1, 1, 1)

# channels, outputs, size of the image, padding, epilogue
CASES = [
    (16, 16, (8, 8), SAME, ()),
    (
        17,
        50,
        (9, 23),
        SAME,
        ("bias", "residual", "relu"),
    ),  # a channel more than a vector, odd sizes, padded panels
    (5, 7, (6, 4), SAME, ("bias", "gelu")),  # less than a vector; a long activation
    (30, 33, (7, 5), (0, 0, 0, 0), ("residual", "bias")),  # nothing around the image
    (12, 48, (5, 12), (0, 1, 2, 0), ("bias", "relu6")),  # other than the other side
    (260, 64, (5, 9), SAME, ("bias",)),  # sums wait between blocks of k
    (40, 130, (11, 3), (1, 2, 0, 3), ("sigmoid",)),  # three panels, more around the image than taps reach
    (8, 8, (1, 1), SAME, ("bias",)),
    (8, 8, (3, 3), (0, 0, 0, 0), ()),  # one pixel
    (9, 20, (2, 31), (3, 3, 3, 3), ("bias",)),  # whole tiles lie beside the image
]
IDS = [f"{c}-{o}-{h}x{w}" for c, o, (h, w), *_ in CASES]


def floats(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def convolution(case: Any, batch: int = 2, size: Any = None) -> tuple[Node, dict[str, Any]]:
    c, o, (h, w), padding, epilogue = case
    x, weight = (
        input_("x", "f32", (B, *(size or (h, w)), c)),
        constant(floats(o, c, 3, 3) / np.float32(c**0.5)),
    )
    a = {"padding": padding, "channels_last": True, "winograd": True}
    shape = make("conv2d", (x, weight), **a).shape
    extras, inputs = [], {"x": floats(batch, h, w, c)}
    for step in epilogue:
        if step == "bias":
            extras.append(constant(floats(o)))
        elif step == "residual":
            extras.append(input_("r", "f32", shape))
            inputs["r"] = floats(batch, h + padding[0] + padding[2] - 2, w + padding[1] + padding[3] - 2, o)
    return make("conv2d", (x, weight, *extras), **a, epilogue=epilogue), inputs


def graph_of(node: Node) -> Graph:
    leaves = [i for i in node.inputs if i.op == "input"]
    return Graph(tuple(leaves), {"y": node}, {"batch": (1, 9)})


def tile(d: Any) -> Any:
    """B^T d, along the first axis."""
    return np.stack([d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]])


def weights(g: Any) -> Any:
    """G g, along the first axis."""
    return np.stack([g[0], ((g[0] + g[1]) + g[2]) / 2, ((g[0] - g[1]) + g[2]) / 2, g[2]])


def pixels(m: Any) -> Any:
    """A^T m, along the first axis."""
    return np.stack([(m[0] + m[1]) + m[2], (m[1] - m[2]) - m[3]])


def by_tiles(x: Any, w: Any, padding: Any) -> Any:
    """What docs/numerics.md says, step by step in float32: columns of a tile first, then rows, sums in order."""
    top, left, bottom, right = padding
    b, h, across, c = x.shape
    height, width = h + top + bottom - 2, across + left + right - 2
    wide = np.pad(x, ((0, 0), (top, bottom + height % 2), (left, right + width % 2), (0, 0)))
    views = [[wide[:, r : r + height : 2, i : i + width : 2] for i in range(4)] for r in range(4)]
    d = tile(np.stack([np.stack(row) for row in views]))
    v = tile(d.swapaxes(0, 1)).swapaxes(0, 1)
    u = (
        weights(weights(w.transpose(2, 3, 0, 1).astype(np.float64)).swapaxes(0, 1))
        .swapaxes(0, 1)
        .astype(np.float32)
    )
    m = np.zeros((*v.shape[:-1], len(w)), np.float32)
    for k in range(c):
        m = fma32(v[..., k, None], u[:, :, None, None, None, :, k], m)
    y = pixels(pixels(m).swapaxes(0, 1)).swapaxes(0, 1)
    whole = y.transpose(2, 3, 0, 4, 1, 5).reshape(b, y.shape[3] * 2, y.shape[4] * 2, len(w))
    return whole[:, :height, :width]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_near_the_reference_on_every_variant(kernels: Lab, case: Any) -> None:
    node, inputs = convolution(case)
    found = run_all(kernels, graph_of(node), inputs)["y"]
    assert_as_reference(node, found, inputs, {"batch": 2})


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_bits_are_those_of_the_steps(kernels: Lab, case: Any) -> None:
    node, inputs = convolution((*case[:4], ()))
    expected = by_tiles(inputs["x"], node.inputs[1].attributes["value"].array, case[3])
    assert same_bits(kernels.run(graph_of(node), inputs)["y"], expected)


def test_the_epilogue_follows_in_order(kernels: Lab) -> None:
    node, inputs = convolution((17, 50, (9, 23), SAME, ("residual", "bias", "relu")))
    w, _, bias = (i.attributes["value"].array if i.op == "constant" else None for i in node.inputs[1:])
    expected = np.maximum((by_tiles(inputs["x"], w, SAME) + inputs["r"]) + bias, np.float32(0))
    assert same_bits(kernels.run(graph_of(node), inputs)["y"], expected)


@pytest.mark.parametrize("size", [(H, W), (9, W), (H, 23)], ids=["both", "width", "height"])
def test_dynamic_sizes(kernels: Lab, size: Any) -> None:
    """With the bits of sizes that are known."""
    node, inputs = convolution((17, 50, (9, 23), SAME, ("bias", "relu")), size=size)
    x = input_("x", "f32", (B, 9, 23, 17))
    fixed = kernels.run(graph_of(make("conv2d", (x, *node.inputs[1:]), **node.attributes)), inputs)["y"]
    assert same_bits(run_all(kernels, graph_of(node), inputs)["y"], fixed)


def test_an_image_alone_and_in_a_batch(kernels: Lab) -> None:
    node, inputs = convolution(CASES[1], batch=7)
    graph = graph_of(node)
    whole = kernels.run(graph, inputs)["y"]
    for at in (0, 3, 6):
        alone = kernels.run(graph, {name: value[at : at + 1] for name, value in inputs.items()})["y"]
        assert same_bits(alone[0], whole[at])


def test_what_is_not_finite_stays_within_its_tiles(kernels: Lab) -> None:
    """A pixel reaches the tiles that lie on it: up to two pixels further than its windows."""
    node, inputs = convolution((16, 16, (12, 12), SAME, ()))
    before = kernels.run(graph_of(node), inputs)["y"]
    inputs["x"][0, 5, 5, 3] = np.inf
    after = kernels.run(graph_of(node), inputs)["y"]
    touched = ~np.isfinite(after).all(axis=(0, 3))
    assert touched[4:7, 4:7].all()
    assert not touched[:4].any()
    assert not touched[8:].any()
    assert not touched[:, :4].any()
    assert not touched[:, 8:].any()
    assert same_bits(after[:, ~touched], before[:, ~touched])


def test_nothing_beside_the_image_is_read(kernels: Lab) -> None:
    """It lies between pages that nobody may read: at the end of its own, then at the beginning."""
    node, inputs = convolution((17, 16, (7, 9), SAME, ()))
    call, (x, w, out), size = (
        kernels.call_of(node),
        (inputs["x"], node.inputs[1], (2, 7, 9, 16)),
        mmap.PAGESIZE,
    )
    (function,) = kernels.functions([call.kernel], cpus()[-1])
    expected = kernels.run(graph_of(node), inputs)["y"]
    pages = -(-x.nbytes // size)
    memory = mmap.mmap(-1, (pages + 2) * size)
    whole = np.frombuffer(memory, np.uint8)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for page in (0, pages + 1):
        assert protect(ctypes.c_void_p(whole.ctypes.data + page * size), size, 0) == 0
    packed = call.operands[1].pack(w.attributes["value"].array)
    for begin in (size, (pages + 1) * size - x.nbytes):
        image = whole[begin : begin + x.nbytes].view(np.float32).reshape(x.shape)
        image[...] = x
        found, scratch = np.zeros(out, np.float32), guarded(np.zeros(call.kernel.scratch, np.uint8))
        sizes = [evaluate(s, {"batch": 2}) for s in (*call.scalars, call.items)]
        kernels.call(function, [image, packed, found, *sizes[:-1], scratch, 0, sizes[-1]])
        assert same_bits(found, expected)


def test_scratch_is_bounded() -> None:
    """A megabyte a thread, however many channels."""
    for c, o, size in ((8, 8, (224, 224)), (512, 512, (14, 14)), (1024, 1024, (64, 64)), (1024, 16, (H, W))):
        node, _ = convolution((c, o, (6, 6), SAME, ()), size=size)
        assert lower_winograd(node).kernel.scratch <= 1 << 20


def test_code_for_every_instruction_set(kernels: Lab) -> None:
    """No product of it feeds a sum; what runs here and under qemu has the same bits."""
    node, _ = convolution(CASES[1])
    kernel = kernels.call_of(node).kernel
    for cpu in (*TARGETS["x86"].cpus, *TARGETS["arm"].cpus):
        check_no_contraction(kernel.emit(kernel.symbol, cpu))
