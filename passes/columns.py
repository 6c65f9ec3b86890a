"""Columns of a value that products read: divided by factors where it is made, the products' weights multiplied by them.

What is computed stays the same, so it is free to choose for which factors rounding loses least: the idea of Nagel et
al. 2019, SmoothQuant and AWQ. Norms divide by their own weight and bias, products by rows of their weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmc.compiler.graph import Graph, Node, Weight
from llmc.compiler.ops import constant, make
from llmc.passes.match import is_of_adapter, weight

NORMS = {
    "layer_norm": 2,
    "rms_norm": 1,
    "add_norm": 2,
    "embed_norm": 2,
}  # how many of the last inputs are its own

Array = np.ndarray[Any, Any]
PRODUCTS = frozenset({"linear", "conv2d"})


@dataclass(frozen=True)
class Site:
    """A value whose columns can be divided.

    Args:
        value: what the products read.
        products: all of its readers that multiply it by a weight of floats.
        maker: the product whose rows are divided for it; None: the value is a norm, whose own parameters are.
    """

    value: Node
    products: tuple[Node, ...]
    maker: Node | None = None


def of_norm(graph: Graph, norm: Node) -> Site | str:
    """A norm's site, or why there is none. What else reads the norm will get its values multiplied back."""
    own = own_of(norm)
    if not own:
        return "without a weight"
    if any(weight(part) is None or part.dtype != "f32" for part in own):
        return "whose weight is computed"
    products = tuple(user for user in graph.users[norm] if _multiplies(user, norm))
    if not products:
        return "that no product with a weight of floats reads"
    alone = all(r in products for product in products for r in graph.users[product.inputs[1]])
    return Site(norm, products) if alone else "whose products share weights with others"


def gates(graph: Graph) -> Iterator[Site]:
    """Of mul(gate, linear(..)) that products alone read: the rows of the inner product can be divided."""
    roots = set(graph.roots)
    for node in graph.nodes:
        if node.op != "mul" or node in roots:
            continue
        readers = graph.users[node]
        if not readers or not all(_multiplies(r, node) and _own_weight(graph, r) for r in readers):
            continue
        maker = next((i for i in node.inputs if _plain(graph, i) and i not in roots), None)
        if maker is not None and node.inputs[0] is not node.inputs[1]:
            yield Site(node, readers, maker)


_PLAIN = ((), ("bias",), ("relu",), ("bias", "relu"))  # epilogues that multiply as their product does
_ALIKE = frozenset({"relu", "max_pool2d", "avg_pool2d"})  # ops of each channel that do


def pairs(graph: Graph) -> Iterator[Site]:
    """Of products and convolutions with nothing but relu and pools to the next: the first's rows can be divided."""
    roots = set(graph.roots)
    for maker in graph.nodes:
        if (
            maker.op not in PRODUCTS
            or not _own_floats(graph, maker)
            or maker.attributes["epilogue"] not in _PLAIN
        ):
            continue
        value = maker
        while value not in roots and len(users := graph.users[value]) == 1 and users[0].op in _ALIKE:
            value = users[0]
        readers = graph.users[value]
        if value not in roots and readers and all(_next(graph, maker, value, r) for r in readers):
            yield Site(value, readers, maker)


def by_channel(product: Node) -> bool:
    """Whether it is a convolution of each channel by itself."""
    return product.op == "conv2d" and product.attributes["groups"] > 1


def _next(graph: Graph, maker: Node, value: Node, product: Node) -> bool:
    """Whether a product reads a value once, by columns that are the rows of its maker."""
    if product.op not in PRODUCTS or not _own_floats(graph, product) or product.inputs.count(value) != 1:
        return False
    if product.inputs[0] is not value:
        return False
    layouts = {_channels_last(maker), _channels_last(product)}
    if (
        by_channel(product)
        and len(product.inputs[1].attributes["value"].array) != product.attributes["groups"]
    ):
        return False
    return len(layouts) == 1


def _channels_last(product: Node) -> bool:
    return bool(product.op == "linear" or product.attributes["channels_last"])


def _own_floats(graph: Graph, product: Node) -> bool:
    """Whether weight and bias are constants of floats, the weight for this product alone."""
    parts = product.inputs[1 : 2 + ("bias" in product.attributes["epilogue"])]
    floats = all(part.op == "constant" and part.dtype == "f32" for part in parts)
    return floats and _own_weight(graph, product) and not is_of_adapter(product)


def own_of(norm: Node) -> tuple[Node, ...]:
    """Weight and bias, those that there are, if there is a weight."""
    a = norm.attributes
    if not a.get("has_weight", True):
        return ()
    biased = norm.op != "rms_norm" and a.get("has_bias", True)
    return norm.inputs[-2 if biased else -1 :]


def weights_of(site: Site) -> Array:
    """f32 `[n, k]` of all products together."""
    found = dict.fromkeys(product.inputs[1] for product in site.products)
    return np.concatenate([w.attributes["value"].array for w in found])


def _multiplies(user: Node, value: Node) -> bool:
    w = user.inputs[1] if user.op == "linear" else None
    floats = w is not None and w.op == "constant" and w.dtype == "f32"
    return floats and user.inputs[0] is value and not is_of_adapter(user)


def _own_weight(graph: Graph, product: Node) -> bool:
    return len(graph.users[product.inputs[1]]) == 1


def _plain(graph: Graph, node: Node) -> bool:
    """Whether it is a product that one node reads, with a weight of its own and nothing but a bias."""
    alone = node.op == "linear" and node.attributes["epilogue"] in _PLAIN[:2] and len(graph.users[node]) == 1
    return alone and _own_floats(graph, node)


def divided(graph: Graph, factors: Mapping[Site, Array], suffix: str) -> Graph:
    """Each value divided by its factors f32 `[k]`, and what reads it multiplied.

    norm(x, g, b) -> f * norm(x, g / f, b / f), linear(f * norm(..), w) -> linear(norm(..), w * f);
    mul(gate, linear(x, v, b)) -> mul(gate, linear(x, v / f, b / f)), linear(mul(..), w) -> linear(mul(..), w * f)
    """
    norms = {site.value: f for site, f in factors.items() if site.maker is None}
    rows = {site.maker: 1 / f for site, f in factors.items() if site.maker is not None}
    columns = {product: f for site, f in factors.items() for product in site.products}
    made: dict[Node, Node] = {}  # weights that several products of a norm share

    def scaled(node: Node, by: Array) -> Node:
        value = node.attributes["value"]
        array = value.array * by.astype(np.float32)
        return constant(Weight(array, f"{value.name.removesuffix(suffix)}{suffix}"), source=node.source)

    def change(before: Node, node: Node) -> Node:
        if before in norms:
            own = tuple(scaled(part, 1 / norms[before]) for part in own_of(node))
            norm = node.with_inputs((*node.inputs[: -len(own)], *own))
            back = constant(norms[before].astype(np.float32), source=node.source)
            return make("mul", (norm, back), node.source)
        if before not in rows and before not in columns:
            return node
        x, w, *extras = node.inputs
        if before in columns:
            x = x.inputs[0] if before.inputs[0] in norms else x
            if w not in made:
                made[w] = scaled(w, _along(before, columns[before], 0 if by_channel(before) else 1))
            w = made[w]
        if before in rows:
            w = scaled(w, _along(before, rows[before], 0))
            extras = [scaled(b, rows[before]) for b in extras]
        return make(node.op, (x, w, *extras), node.source, **node.attributes)

    return graph.rebuild(change)


def _along(product: Node, factors: Array, axis: int) -> Array:
    """Factors for an axis of a weight."""
    rank = product.inputs[1].type.rank
    return factors.reshape(-1, *(1,) * (rank - 1 - axis))
