"""The axes that an ONNX file leaves open: their names, and what is asked for by these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from llmc.compiler.dims import Bounds, Dim, dim, parse_dim, symbol
from llmc.compiler.frontends.axes import Asked, AxisNames
from llmc.compiler.frontends.imported import LARGEST
from llmc.compiler.frontends.onnx_own import Own
from llmc.errors import LlmcError

_RANGE = f"sizes go from 1 to {LARGEST}"
_SIDE = 2048  # of an image, at most, where nothing else is asked for


class Axes:
    """The sizes of axes: symbols, or what is known of those that a file leaves open.

    Args:
        sums: llmc's name of an axis -> what it always is, in other axes.

    Attributes:
        bounds: llmc's name of an axis -> those that are asked for, or usual of its kind.
    """

    def __init__(
        self, at: str, asked: Mapping[str, Asked], said: Own, sums: Mapping[str, Dim] = MappingProxyType({})
    ) -> None:
        self._at, self._names, self._said, self._sums = at, AxisNames(), said, sums
        self._met = dict[str, dict[str, None]]()  # llmc's name of an axis -> all that it is called
        self._asked = {
            name: size if isinstance(size, tuple) else Bounds(size, size) for name, size in asked.items()
        }
        self._fixed = {name: size for name, size in asked.items() if not isinstance(size, tuple)}
        self._marks = frozenset[str]()
        self.bounds: dict[str, Bounds] = {}
        for name, size in asked.items():
            low, high = self._asked[name]
            whole = type(low) is type(high) is int
            self._want(
                whole and 1 <= low <= high <= LARGEST, f"{name} = {_asked_text(size)} is no size", _RANGE
            )

    def told(self, texts: Iterable[str]) -> None:
        """What all axes are called: a mark that several have, such as "?", says that nothing is known of them."""
        count = Counter(text for text in texts if not any(map(str.isalnum, text)))
        self._marks = frozenset(text for text, times in count.items() if times > 1)

    def size(self, tensor: str, axis: int, rank: int, text: str, rows: bool) -> Dim:
        """Of an axis that the file has no number for but calls `text`: either of its names may be told."""
        text = "" if text in self._marks else text
        if self._said.knows(text):
            return self._of_own(parse_dim(text))
        name = self._names.name(tensor, axis, rank, text, rows)
        self._met.setdefault(name, {name: None})[text or name] = None
        self._bound(name, text)
        return self._fixed.get(name, self._fixed.get(text, self._sums.get(name, symbol(name))))

    def is_free(self, size: Dim) -> bool:
        """Whether it is an axis that the file leaves open and nobody asks anything of."""
        return str(size) in self._met and not any(name in self._asked for name in self._met[str(size)])

    def _of_own(self, size: Dim) -> Dim:
        """A size in the dims that llmc itself has named."""
        for name in (s.name for s in size.free_symbols):
            self._met.setdefault(name, {name: None})
            self._bound(name, name)
        return dim(size.subs({symbol(name): value for name, value in self._fixed.items()}))

    def _bound(self, name: str, text: str) -> None:
        asked = self._asked.get(name, self._asked.get(text))
        if asked is not None:
            self.bounds[name] = Bounds(*asked)

    def of_image(self, sides: Sequence[Dim]) -> None:
        """Both sides of an image, where both are open: they are longer than texts."""
        if not any(isinstance(side, int) for side in sides):
            for name in sorted({s.name for side in sides for s in side.free_symbols} - {"batch", "seq"}):
                self.bounds.setdefault(name, Bounds(1, _SIDE))

    def want_met(self) -> None:
        """Each of those that are asked for is there, is one axis, and has one size."""
        known = sorted({called for every in self._met.values() for called in every})
        has = f"it has {', '.join(known)}" if known else "it has none: all sizes are fixed"
        for name in self._asked:
            self._want(name in known, f"the file has no dynamic axis {name!r}", has)
            axes = [_called(every) for every in self._met.values() if name in every]
            self._want(len(axes) == 1, f"{name!r} names two axes", f"they are {' and '.join(axes)}")
        for every in self._met.values():
            told = [f"{name}={_asked_text(self._asked[name])}" for name in every if name in self._asked]
            sizes = {self._asked[name] for name in every if name in self._asked}
            self._want(
                len(sizes) < 2, f"{' and '.join(told)} are sizes of one axis", f"it is {_called(every)}"
            )

    def _want(self, holds: bool, problem: str, hint: str) -> None:
        if not holds:
            raise LlmcError(problem, at=self._at, hint=hint)


def _asked_text(size: Asked) -> str:
    low, high = size if isinstance(size, tuple) else (size, size)
    return str(low) if low == high else f"{low}..{high}"


def _called(names: Iterable[str]) -> str:
    """`batch (in the file n)`"""
    own, *others = names
    return f"{own} (in the file {' or '.join(others)})" if others else own
