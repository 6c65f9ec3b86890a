"""Products that skip the zeros of N of M have the bits of the dense product, at the edges of tiles and of words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_lab import Lab, run_all, same_bits

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import OPS, constant, input_, make, storage
from llmc.targets.cpu.products import n_of_m
from llmc.targets.cpu.products.n_of_m import Form

ROWS = (1, 2, 5, 7, 13, 64, 65)
Array = np.ndarray[Any, Any]


def weight(n: int, k: int, kept: int, group: int, least: int | None = None) -> Node:
    """A bitmask of which groups keep `least` to `kept` of `group`; where `least` is None all keep as many."""
    rng = np.random.default_rng(n + k)
    order = rng.random((n, k // group, group)).argsort(-1)
    count = kept if least is None else rng.integers(least, kept + 1, (n, k // group, 1))
    keep = (order < count).reshape(n, k)
    parts = (np.packbits(keep, -1, bitorder="little"), rng.normal(size=int(keep.sum())).astype(np.float32))
    return make("bitmask", tuple(map(constant, parts)), columns=k, height=1)


def decoded(node: Node) -> Array:
    arrays = [i.attributes["value"].array for i in node.inputs]
    return np.asarray(OPS[node.op].reference(*arrays, **node.attributes))


CASES = [
    ((100, 68, 2, 4), Form(2, 4)),
    ((5, 64, 2, 4, 0), Form(2, 4)),
    ((16, 1636, 2, 4), Form(2, 4)),  # three blocks of k and a rest
    ((64, 76, 1, 4), Form(1, 4)),
    ((33, 40, 4, 8, 2), Form(4, 8)),
    ((48, 56, 3, 8), Form(3, 8)),
    ((16, 72, 1, 8), Form(1, 8)),
]


@pytest.mark.parametrize(("given", "form"), CASES)
def test_the_bits_of_the_dense_product(kernels: Lab, given: Any, form: Form) -> None:
    w, (n, k) = weight(*given), given[:2]
    assert storage.n_of_m(decoded(w)) == (form.kept, form.group)
    rng = np.random.default_rng(k)
    bias = constant(rng.normal(size=n).astype(np.float32))
    x, r = input_("x", "f32", (symbol("m"), k)), input_("r", "f32", (symbol("m"), n))
    outputs = {
        name: make("linear", (x, array, bias, r), epilogue=("bias", "gelu", "residual"))
        for name, array in (("sparse", w), ("dense", constant(decoded(w))))
    }
    assert kernels.call_of(outputs["sparse"]).kernel.family == "linear_n_of_m"
    graph = Graph((x, r), outputs, {"m": (1, 999)})
    for rows in ROWS:
        arrays = {
            name: rng.normal(size=(rows, size)).astype(np.float32) for name, size in (("x", k), ("r", n))
        }
        results = run_all(kernels, graph, arrays)
        assert same_bits(results["sparse"], results["dense"]), rows


def test_no_zero_of_a_group_is_read(kernels: Lab) -> None:
    """What is infinite stays with the outputs that read it: the dense product makes NaN of it everywhere."""
    w = weight(48, 64, 2, 4, least=1)
    x = input_("x", "f32", (symbol("m"), 64))
    graph = Graph((x,), {"y": make("linear", (x, w))}, {"m": (1, 99)})
    for rows in (1, 9):
        given = np.ones((rows, 64), np.float32)
        given[:, 3] = np.inf
        (y,) = run_all(kernels, graph, {"x": given}).values()
        assert np.array_equal(np.isfinite(y), np.broadcast_to(decoded(w)[:, 3] == 0, y.shape))


def test_the_layout_is_the_weight() -> None:
    form, array = Form(3, 8), decoded(weight(20, 72, 3, 8, least=1))
    words = n_of_m.places(array, form=form, width=16).view(np.uint32)
    values = n_of_m.values(array, form=form, width=16)
    assert (words.shape, values.shape) == ((2, 5, 16), (2, 27, 16))
    found = np.zeros((32, 72), np.float32)
    for panel, at, lane in np.ndindex(values.shape):
        group, slot = divmod(at, form.kept)
        place = words[panel, group // form.chunk, lane] >> (
            form.bits * (group % form.chunk * form.kept + slot)
        )
        found[panel * 16 + lane, group * 8 + place % 16] += values[panel, at, lane]
    assert np.array_equal(found[:20], array)


@pytest.mark.parametrize(("given"), [(24, 12, 3, 4), (24, 16, 5, 8), (24, 30, 2, 5)])
def test_what_keeps_more_is_decoded(kernels: Lab, given: Any) -> None:
    node = make("linear", (input_("x", "f32", (symbol("m"), given[1])), weight(*given)))
    assert kernels.call_of(node).kernel.family == "linear_decoded"
