"""`prune`: the weights of smallest magnitude become zero, and zeros are not stored."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llmc.compiler.effects import Verdict, tell, tell_weights
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import make
from llmc.compiler.ops.storage import n_of_m, packed_bytes
from llmc.compiler.pipeline import LOSSY, Keeps, Pass
from llmc.errors import LlmcError, LlmcWarning
from llmc.passes.compress.weights import Array, Product, left, products, replaced, share_of, stored

DEFAULT, DEFAULT_BLOCKS = 0.3, 0.8
# Height of blocks that products skip -> the largest share of blocks left with which no number of rows takes longer than
# the dense product (bench/sparse.py, AVX-512; five rows are the worst).
PAYS = {4: 0.3, 16: 0.5}
PAYS_INT8 = 0.5  # likewise of blocks of 16x4 beside dense int8
_BLOCKS = {"4x1": (4, 1), "16x1": (16, 1), "16x4": (16, 4)}
_NOTHING = 0.01  # of a product's weights
_MOST = 64  # of the weights that N of M are chosen from
_SCOPES = ("global", "layer")
SKIPPING = "products skipping zeros"
_KNOWN = 'use unstructured, 4x1, 16x1, 16x4, or N of M side by side such as "2:4"'


@dataclass(frozen=True)
class Pattern:
    """Which weights of a matrix [n, k] become zero together.

    Args:
        text: "unstructured"; "4x1" or "16x1", blocks of so many rows (outputs) in one column, or "16x4", in four; or
            "N:M", of each M side by side in a row N stay.
        height, width: rows and columns of a block.
        kept, group: N and M; 0 of other patterns.
    """

    text: str
    height: int = 1
    kept: int = 0
    group: int = 0
    width: int = 1

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """The pattern of its text.

        Raises:
            LlmcError: there is none.
        """
        if text == "unstructured":
            return cls(text)
        if text in _BLOCKS:
            height, width = _BLOCKS[text]
            return cls(text, height, width=width)
        if (found := re.fullmatch(r"(\d+):(\d+)", text)) and 1 <= int(found[1]) < int(found[2]) <= _MOST:
            return cls(text, 1, int(found[1]), int(found[2]))
        raise LlmcError("prune: no such pattern", found=text, hint=_KNOWN)

    def share(self, asked: float | None) -> float:
        """Of zeros, where `asked` is what the caller wants, or None.

        Raises:
            LlmcError: it is out of range, or not what N of M means.
        """
        if asked is not None:
            share_of("prune: sparsity", asked)
        if self.group:
            exact = 1 - self.kept / self.group
            if asked is not None and abs(asked - exact) > 0.005:
                raise LlmcError(
                    f"prune: the pattern {self.text} is a sparsity of {exact:g}", found=f"{asked:g}"
                )
            return exact
        return (DEFAULT if self.height == 1 else DEFAULT_BLOCKS) if asked is None else asked

    def lacks(self, shape: Sequence[int]) -> str:
        """What a matrix of this shape would need for the pattern to divide it; empty if it does."""
        n, k = shape
        each = self.group or self.width
        if k % each:
            return f"rows of a multiple of {each} weights"
        return f"a number of outputs that {self.height} divides" if n % self.height else ""

    def check(self, products: Sequence[Product]) -> None:
        """Refuse what the pattern does not divide.

        Raises:
            LlmcError: it names all such products.
        """
        bad = [(p, what) for p in products if (what := self.lacks(p.array.shape))]
        if not bad:
            return
        first, what = bad[0]
        n, k = first.array.shape
        more = f", and {len(bad) - 1} more products that it does not divide" if len(bad) > 1 else ""
        paths = ",".join(f'"{path}"' for path in dict.fromkeys(p.node.source.path or p.place for p, _ in bad))
        raise LlmcError(
            f"prune: the pattern {self.text} needs {what}",
            at=first.place,
            found=f"a weight of [{n}, {k}]{more}",
            hint=f"leave {'it' if len(bad) == 1 else 'them'} out: skip=[{paths}]",
        )


def kept(importance: Sequence[Array], pattern: Pattern, share: float, scope: str = "layer") -> list[Array]:
    """Which weights stay, whatever their importance is measured by: magnitude, or what a pass knows from samples.

    Args:
        importance: of each matrix f32 or f64 [n, k], not negative, in the measure of a magnitude: a block's is the
            root of the mean of its squares.
        share: of zeros, as `Pattern.share` gives it; N of M ignore it.
        scope: "global" ranks all matrices together, "layer" each by itself.

    Returns:
        bool [n, k] of each, True where a weight stays. Of equals the first go first.
    """
    if pattern.group:
        return [_n_of_m(i, pattern) for i in importance]
    blocks = [_of_blocks(i, pattern) for i in importance]
    if scope == "layer":
        found = [_keep_largest(b.reshape(-1), share) for b in blocks]
    elif blocks:
        ends = np.cumsum([b.size for b in blocks])[:-1]
        found = np.split(_keep_largest(np.concatenate([b.reshape(-1) for b in blocks]), share), ends)
    else:
        found = []
    each = (k.reshape(b.shape) for k, b in zip(found, blocks, strict=True))
    return [k if pattern.height == 1 else _spread(k, pattern) for k in each]


@dataclass(frozen=True)
class Prune(Pass):
    """Set weights of products to zero by magnitude; a `bitmask` stores the others and one bit for each.

    Embedding tables, biases and norms stay as they are. Of blocks, products skip the zeros; a weight with so many left
    that this would be slower keeps its zeros as they are.

    Args:
        sparsity: share of zeros, 0 to below 1; default 0.3, of blocks 0.8, and N:M means 1 - N / M.
        pattern: "unstructured"; "4x1" or "16x1": blocks of so many outputs of one input, "16x4" of four; or N:M such
            as "2:4": of each 4 weights in a row the 2 largest stay.
        scope: "global" ranks the weights of all products together, "layer" each product's by themselves.
        skip: patterns of modules to leave out, such as `classifier*`.
        least: products with fewer weights are left out.
        small: whether weights in blocks are stored by a bitmask also where the product gets slower.
        whole: whether zeros stay where they are in plain weights, which can be rounded to int8: such products skip
            blocks of 16x4.
    """

    keeps: ClassVar[Keeps] = LOSSY
    sparsity: float | None = None
    pattern: str = "unstructured"
    scope: str = "global"
    skip: tuple[str, ...] = ()
    least: int = 4096
    small: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        Pattern.parse(self.pattern).share(self.sparsity)
        if self.scope not in _SCOPES:
            raise LlmcError("prune: no such scope", found=self.scope, hint="use global or layer")

    def enters(self) -> bool:
        """Weights are ranked over a whole graph."""
        return False

    def run(self, graph: Graph) -> Graph:
        """Choose the zeros, then the smaller way to store each weight."""
        chosen = self.chosen(graph)
        masks = self.masks(chosen)
        warn_of_emptied(chosen, masks)
        return self.with_zeros(graph, [(p, k) for p, k in zip(chosen, masks, strict=True) if not k.all()])

    def with_zeros(self, graph: Graph, found: Sequence[tuple[Product, Array]]) -> Graph:
        """`graph` with what these products keep, stored as suits the pattern; tells of all weights.

        Args:
            found: products, with the values that stay, and which these are: bool [n, k].
        """
        pattern = Pattern.parse(self.pattern)
        height = pattern.height
        found = [(p, k if height == 1 else _whole_blocks(k, pattern)) for p, k in found]
        made = {p.weight: self._stored(p, k, height) for p, k in found}
        tell_weights(graph, made, lambda weight: self._left(graph, weight))
        if height > 1 or pattern.group:
            told = [(p, self._not_skipped(k, pattern)) for p, k in found]
            tell(SKIPPING, [Verdict(p.weight, p.array.size, reason) for p, reason in told])
        return replaced(graph, made)

    def _stored(self, product: Product, keep: Array, height: int) -> Node:
        if self.whole or self._slower(keep, height):
            return zeroed(product, keep)
        return stored_sparse(product, keep, height)

    def _not_skipped(self, keep: Array, pattern: Pattern) -> str:
        """Why the zeros of a weight that keeps these are not skipped; empty if they are."""
        if self.whole:
            return self._slower_int8(keep, pattern)
        if not pattern.group:
            return self._slower(keep, pattern.height)
        return "" if n_of_m(keep) else f"of which {pattern.text} stay: up to 4 of 8 are skipped"

    def _slower_int8(self, keep: Array, pattern: Pattern) -> str:
        """Why an int8 product does not skip the zeros of a weight that keeps these; empty if it does."""
        if pattern.width == 1:
            return f"in {pattern.text}: of int8 only 16x4 is skipped"
        return "" if keep.mean() <= PAYS_INT8 else _told(keep, PAYS_INT8)

    def _slower(self, keep: Array, height: int) -> str:
        """Why the zeros of a weight are not skipped; empty if they are, or if bytes are what counts."""
        if height == 1 or self.small or keep.mean() <= PAYS[height]:
            return ""
        return _told(keep, PAYS[height])

    def chosen(self, graph: Graph) -> list[Product]:
        """The products that lose weights."""
        return [p for p in products(graph, self.skip) if self._wanted(graph, p)]

    def masks(self, chosen: Sequence[Product], part: float = 1.0) -> list[Array]:
        """Of each of these, bool [n, k]: True where a weight stays.

        Args:
            part: of the share of zeros, on the way there; N:M has all of them at once.

        Raises:
            LlmcError: the pattern does not divide one.
        """
        pattern = Pattern.parse(self.pattern)
        pattern.check(chosen)
        return kept(
            [np.abs(p.array) for p in chosen], pattern, part * pattern.share(self.sparsity), self.scope
        )

    def _left(self, graph: Graph, weight: Node) -> str:
        """Why a weight stays as it is; empty if no product reads it."""
        if not any(n.op == "linear" and n.inputs[1] is weight for n in graph.users[weight]):
            return ""
        if any(n.op != "linear" for n in graph.users[weight]):
            return "looked up as well"
        return left(graph, weight, self.skip, self.least) or "none of whose values is among the smallest"

    def _wanted(self, graph: Graph, product: Product) -> bool:
        """Large enough, and read by products only: a table that is looked up as well stays."""
        users = graph.users[product.weight]
        in_products = all(u.op == "linear" and u.inputs[0] is not product.weight for u in users)
        return in_products and product.array.size >= self.least


def warn_of_emptied(chosen: Sequence[Product], masks: Sequence[Array]) -> None:
    """Warn of products that keep next to nothing, as those of small weights do that are ranked with others."""
    few = [
        p.node.source.path or p.place for p, keep in zip(chosen, masks, strict=True) if keep.mean() < _NOTHING
    ]
    if few:
        more = f" and {len(few) - 3} more" if len(few) > 3 else ""
        told = f"prune keeps less than {_NOTHING:.0%} of the weights of {', '.join(few[:3])}{more}"
        hint = f'scope="layer" ranks each product by itself, skip=["{few[0]}"] leaves one out'
        warnings.warn(LlmcWarning(f"{told}; {hint}"), stacklevel=2)


def _keep_largest(magnitudes: Array, share: float) -> Array:
    """False at the round(share * n) smallest; of equals the first go first."""
    keep = np.ones(magnitudes.size, bool)
    keep[np.argsort(magnitudes, kind="stable")[: round(share * magnitudes.size)]] = False
    return keep


def _told(keep: Array, pays: float) -> str:
    """A product's time goes by the blocks that are left, and at `pays` it is the dense one's."""
    times = keep.mean() / pays
    return f"whose {keep.mean():.0%} of blocks left take up to {times:.2f} of a dense product's time"


def _in_blocks(array: Array, pattern: Pattern) -> Array:
    """[n, k] -> [n / height, height, k / width, width]."""
    (n, k), height, width = array.shape, pattern.height, pattern.width
    return array.reshape(n // height, height, k // width, width)


def _of_blocks(importance: Array, pattern: Pattern) -> Array:
    """Of [n, k] the root of the mean square of each block: [n / height, k / width]."""
    if pattern.height == 1:
        return importance
    return np.asarray(np.sqrt(np.square(_in_blocks(importance, pattern), dtype=np.float64).mean((1, 3))))


def _spread(blocks: Array, pattern: Pattern) -> Array:
    """What is said of blocks, of each of their weights."""
    return np.repeat(np.repeat(blocks, pattern.height, 0), pattern.width, 1)


def _whole_blocks(keep: Array, pattern: Pattern) -> Array:
    """Of [n, k] all weights of a block where one stays: values that stay may be zero by chance."""
    return _spread(np.asarray(_in_blocks(keep, pattern).any((1, 3))), pattern)


def _n_of_m(importance: Array, pattern: Pattern) -> Array:
    """The N largest of each M in a row; of equals the first stay."""
    n, k = importance.shape
    groups = importance.reshape(n, k // pattern.group, pattern.group)
    keep = np.zeros(groups.shape, bool)
    first = np.argsort(-groups, -1, kind="stable")[..., : pattern.kept]
    np.put_along_axis(keep, first, True, -1)
    return keep.reshape(n, k)


def zeroed(product: Product, keep: Array) -> Node:
    """The weight where `keep`, zero elsewhere, as it is."""
    return stored(np.where(keep, product.array, np.float32(0)), product.weight)


def stored_sparse(product: Product, keep: Array, height: int = 1) -> Node:
    """The weight where `keep`, zero elsewhere: as a bitmask of blocks of `height` rows, or whole if that is smaller."""
    array, columns = product.array, product.array.shape[1]
    bits = keep[::height]
    mask = np.packbits(bits, -1, bitorder="little")
    if packed_bytes(columns, 1) * len(bits) + 4 * int(keep.sum()) >= array.nbytes:
        return zeroed(product, keep)
    blocks = array.reshape(-1, height, columns).swapaxes(1, 2)[bits]
    parts = (stored(mask, product.weight, ".mask"), stored(blocks.reshape(-1), product.weight, ".values"))
    return make("bitmask", parts, product.weight.source, columns=columns, height=height)
