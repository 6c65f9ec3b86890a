"""`prune-channels`: the output is that of the model whose channels are zero, or the reason why they stay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from llmc.compiler import interpret
from llmc.compiler.dims import symbol
from llmc.compiler.effects import listening
from llmc.compiler.given import Given, giving
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.verify import verify
from llmc.errors import LlmcError
from llmc.passes.compress.prune_channels import PruneChannels, channels_of
from llmc.passes.compress.weights import replaced

Array = np.ndarray[Any, Any]


class Net:
    """Makes tiny networks over images x [batch, 3, 8, 8]."""

    def __init__(self, last: bool = False) -> None:
        self.rng, self.last = np.random.default_rng(7), last
        shape = (8, 8, 3) if last else (3, 8, 8)
        self.x = input_("x", "f32", (symbol("batch"), *shape))

    def weight(self, *shape: int, name: str = "") -> Node:
        return constant(self.rng.normal(size=shape).astype(np.float32), name)

    def conv(self, x: Node, name: str, out: int, kernel: int = 3, groups: int = 1, **more: Any) -> Node:
        channels = int(x.shape[-1 if self.last else 1])
        w = self.weight(out, channels // groups, kernel, kernel, name=f"{name}.weight")
        more = {"epilogue": ("bias", "relu"), "padding": (kernel // 2,) * 4, **more}
        extras = [self.weight(out, name=f"{name}.bias")] if "bias" in more["epilogue"] else []
        extras += more.pop("residual", [])
        given = {"groups": groups, "channels_last": self.last, **more}
        return make("conv2d", (x, w, *extras), Source(name), **given)

    def head(self, x: Node, name: str = "head") -> Node:
        return make("linear", (x, self.weight(5, int(x.shape[-1]), name=f"{name}.weight")), Source(name))

    def graph(self, **outputs: Node) -> Graph:
        graph = Graph((self.x,), outputs, {"batch": (1, 4)})
        verify(graph)
        return graph


def chain(last: bool = False) -> Graph:
    """Two convolutions, one by channel between them, pools, a scale for each channel; flat into a product."""
    net = Net(last)
    y = net.conv(net.x, "a", 16)
    y = net.conv(y, "by", 16, groups=16)
    y = make("max_pool2d", (y,), kernel=(2, 2), stride=(2, 2), channels_last=last)
    y = make("mul", (y, net.weight(*((16,) if last else (16, 1, 1)))))
    y = net.conv(y, "b", 24, epilogue=("bias", "relu6"))
    if last:  # as 1x1 convolutions are after channels-last, and pixels before channels in what is flat
        more = (net.weight(24, 24, name="c.weight"), net.weight(24, name="c.bias"))
        y = make("linear", (y, *more), Source("c"), epilogue=("bias", "relu"))
    y = make("reshape", (y,), shape=(symbol("batch"), 24 * 16))
    return net.graph(y=net.head(y))


def pooled() -> Graph:
    """Two readers of one convolution, a swish, and means that a product reads."""
    net = Net()
    y = net.conv(net.x, "a", 16, epilogue=("bias",))
    y = make("mul", (y, make("sigmoid", (y,))))
    one, two = (make("mean", (net.conv(y, name, 8),), axes=(2, 3)) for name in ("b", "c"))
    return net.graph(y=net.head(one), z=net.head(two, "other"))


def zeroed(graph: Graph, after: Graph) -> Graph:
    """`graph` with zero weights for the channels that `after` has no more, told by their biases."""
    new = {n.source.path: n for n in after.nodes if n.op in ("conv2d", "linear") and n.type.rank == 4}
    table: dict[Node, Node] = {}
    for node in graph.nodes:
        if str(node.source) not in new or node.op not in ("conv2d", "linear"):
            continue
        channels = channels_of(graph, node)
        kept = new[node.source.path].inputs[2].attributes["value"].array  # biases tell which
        bias = node.inputs[2].attributes["value"].array
        gone = ~np.isin(bias, kept)
        for reader, at in channels.readers if gone.any() else ():
            w = table.get(reader.inputs[1], reader.inputs[1])
            array = w.attributes["value"].array.copy()
            array.reshape(len(array), at.outer, len(gone), -1)[:, :, gone] = 0
            table[reader.inputs[1]] = constant(array, w.attributes["value"].name)
    return replaced(graph, table)


def image(shape: tuple[Any, ...], batch: int = 2) -> Array:
    rng = np.random.default_rng(batch)
    return rng.normal(size=(batch, *map(int, shape[1:]))).astype(np.float32)


def sizes(graph: Graph) -> dict[str, tuple[int, ...]]:
    return {
        str(n.source): tuple(map(int, n.inputs[1].shape)) for n in graph.nodes if n.op in ("conv2d", "linear")
    }


@pytest.mark.parametrize("graph", [chain(), chain(last=True), pooled()], ids=["first", "last", "pooled"])
def test_the_output_is_that_of_zero_channels(graph: Graph) -> None:
    after = PruneChannels(0.3, multiple=1).run(graph)
    verify(after)
    x = {"x": image(graph.inputs[0].shape)}
    wanted, found = (interpret.run(g, x) for g in (zeroed(graph, after), after))
    assert all(np.allclose(found[n], wanted[n], rtol=1e-5, atol=1e-5) for n in wanted)
    assert not np.allclose(found["y"], interpret.run(graph, x)["y"], atol=1e-3)


def test_what_shrinks() -> None:
    after = PruneChannels(0.25, multiple=4).run(chain())
    assert sizes(after) == {"a": (12, 3, 3, 3), "by": (12, 1, 3, 3), "b": (20, 12, 3, 3), "head": (5, 320)}


def test_the_channels_that_say_least_go() -> None:
    graph = chain()
    (conv,) = (n for n in graph.nodes if str(n.source) == "a")
    w = conv.inputs[1]
    quiet = w.attributes["value"].array.copy()
    quiet[[2, 5]] *= 1e-3
    graph = replaced(graph, {w: constant(quiet, "a.weight")})
    after = PruneChannels(0.125, multiple=1, skip=("b",)).run(graph)
    kept = next(n for n in after.nodes if str(n.source) == "a").inputs[1].attributes["value"].array
    assert np.array_equal(kept, np.delete(quiet, [2, 5], 0))


def test_by_activations() -> None:
    """A channel that a bias keeps below 0 is never seen, however large its filter is."""
    graph = chain()
    (conv,) = (n for n in graph.nodes if str(n.source) == "a")
    bias = conv.inputs[2]
    silent = bias.attributes["value"].array.copy()
    silent[[3, 11]] = -1e4
    graph = replaced(graph, {bias: constant(silent, "a.bias")})

    def read(graph: Graph) -> Iterator[dict[str, Array]]:
        yield from ({"x": image(graph.inputs[0].shape, 1 + seed)} for seed in range(2))

    # by way of the filters by channel, biases of theirs would be seen
    plain = PruneChannels(0.125, "activations", multiple=1, skip=("b",))
    depthwise = next(n for n in graph.nodes if str(n.source) == "by").inputs[2]
    graph = replaced(graph, {depthwise: constant(np.zeros(16, np.float32), "by.bias")})
    with giving(Given(read)):
        after = plain.run(graph)
    kept = next(n for n in after.nodes if str(n.source) == "a").inputs[2].attributes["value"].array
    assert np.array_equal(kept, np.delete(silent, [3, 11]))


def left(graph: Graph, **options: Any) -> dict[str, int]:
    with listening() as heard:
        PruneChannels(**options).run(graph)
    (effect,) = heard
    return dict(effect.left)


def test_reasons_to_stay() -> None:
    net = Net()
    a = net.conv(net.x, "a", 16)
    added = make("add", (net.conv(a, "b", 16), a))
    assert left(net.graph(y=net.head(make("mean", (added,), axes=(2, 3))))) == {
        "joined with others by add": 2
    }
    inside = net.conv(a, "c", 16, epilogue=("bias", "residual"), residual=[a])
    assert left(net.graph(y=net.head(make("mean", (inside,), axes=(2, 3))))) == {"added to others": 2}
    both = make("concat", (a, net.conv(net.x, "d", 8)), axis=1)
    assert left(net.graph(y=net.conv(both, "e", 8))) == {"read by concat": 2, "seen as an output": 1}
    grouped = net.conv(a, "f", 16, groups=2)
    told = {"read in groups": 1, "in groups, which follow what they read": 1}
    assert left(net.graph(y=net.head(make("mean", (grouped,), axes=(2, 3))))) == told
    mixed = make("softmax", (a,), axis=1)
    assert left(net.graph(y=net.conv(mixed, "g", 8))) == {"read by softmax": 1, "seen as an output": 1}
    assert left(chain(), fraction=0.1) == {
        "of which a multiple of 8 is all": 2,
        "in groups, which follow what they read": 1,
    }


def test_untouched() -> None:
    net = Net()
    graph = net.graph(y=net.conv(net.x, "a", 16))
    assert PruneChannels().run(graph) is graph
    with pytest.raises(LlmcError, match="no convolution fits 'z'"):
        PruneChannels(skip=("z",)).run(graph)
    for options, told in (
        ({"by": "eye"}, "no such measure"),
        ({"multiple": 0}, "at least 1"),
        ({"fraction": 1.0}, "below 1"),
    ):
        with pytest.raises(LlmcError, match=told):
            PruneChannels(**options)
