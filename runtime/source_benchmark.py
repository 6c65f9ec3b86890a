"""Sources and new tokens of an encoder-decoder, as `generation_benchmark` times them.

Its prompt is a source, and a test's depth the length of the source behind which tokens are made. A source of speech has
one length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.errors import LlmcError
from llmc.runtime.source import hold

if TYPE_CHECKING:
    from llmc.runtime.generation_entry import EncoderEntry
    from llmc.runtime.model import Model
    from llmc.runtime.session import Session


@dataclass(frozen=True)
class Sources:
    """Sources of a model.

    Args:
        axis: the dim that is their length; None: they have one length.
        longest: the most that there may be along it.
    """

    encoder: EncoderEntry
    shape: tuple[int | str, ...]
    tokens: bool
    axis: str | None
    longest: int

    @staticmethod
    def of(model: Model, encoder: EncoderEntry) -> Sources:
        """Those that a model takes."""
        info = model.functions[encoder.function].inputs[encoder.source]
        axis = next((n for n in info.shape if isinstance(n, str)), None)
        longest = model.dims[axis][1] if axis else int(info.shape[-1])
        return Sources(encoder, info.shape, info.dtype == "i64", axis, longest)

    def want(self, kind: str, tokens: int, depth: int) -> None:
        """Refuse a test that the encoder does not take.

        Raises:
            LlmcError: a source of that length cannot be.
        """
        longest = max(tokens, depth) if kind == "pp" else depth
        if longest > self.longest:
            raise LlmcError(
                f"a source of {longest} tokens is more than the model takes",
                found=f"at most {self.longest}",
                hint="give fewer, or compile it with a larger bound (--max-seq)",
            )

    def length(self, asked: int) -> int:
        """Of the source that stands for so many tokens."""
        return max(asked, 1) if self.axis else self.longest

    def sizes(self, asked: int) -> dict[str, int]:
        """Of its dim."""
        return {self.axis: self.length(asked)} if self.axis else {}

    def encode(self, session: Session, ids: Sequence[int], asked: int) -> float:
        """Begin a session with a source of so many tokens; the seconds that it took."""
        count = self.length(asked)
        shape = tuple(count if n == self.axis else int(n) for n in self.shape)
        given: Any = np.zeros(shape, np.float32) if not self.tokens else np.array([ids[:count]], np.int64)
        return hold(session, self.encoder, given)
