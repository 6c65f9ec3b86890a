"""A text as it comes, and what is known of it when it has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from llmc.runtime.detokenizer import Detokenizer, StopStrings
from llmc.runtime.generation import FINISHES, Generation, Token, Usage


@dataclass(frozen=True)
class Generated:
    """A new text.

    Args:
        text: without the prompt, special tokens, and the stop string that ended it; empty where there is no tokenizer.
        tokens: all that were made, the one that ends the text included.
        finish: "stop" at a token or a text that ends it, "length" at the bound asked for or the model's.
        usage: what it took.
        seed: that drew it; None where the likeliest tokens were taken.
        prompt: the tokens before it.
        score: of a beam: the sum of logarithms over the length to the power of length_penalty.
    """

    text: str
    tokens: tuple[Token, ...] = field(repr=False)
    finish: str
    usage: Usage
    seed: int | None
    prompt: tuple[int, ...] = field(repr=False)
    score: float | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def message(self) -> dict[str, str]:
        """As a conversation goes on with it."""
        return {"role": "assistant", "content": self.text}

    @property
    def ids(self) -> list[int]:
        """The numbers of its tokens."""
        return [token.id for token in self.tokens]


class TextStream(Iterator[str]):
    """Pieces of a text, each as soon as it is certain; none ends within a character. `result` is all that has come."""

    def __init__(
        self,
        generation: Generation,
        prompt: Sequence[int],
        decode: Callable[[Sequence[int]], str] | None,
        stops: Sequence[str],
        seed: int | None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._generation, self._prompt, self._seed, self._ended = generation, tuple(prompt), seed, ended
        self._text = Detokenizer(decode) if decode else None
        self._stops = StopStrings(stops)
        self._tokens: list[Token] = []
        self._pieces: list[str] = []
        self._open = True

    def __next__(self) -> str:
        """
        Raises:
            LlmcError: see `Generation`.
        """
        while self._open:
            if piece := self._advance():
                self._pieces.append(piece)
                return piece
        raise StopIteration

    def _advance(self) -> str:
        try:
            token = next(self._generation, None)
        except BaseException:
            self.close()
            raise
        return self._add(token)

    def take(self, token: Token | None) -> None:
        """What a run of several texts has found for this one; None: its end."""
        if self._open and (piece := self._add(token)):
            self._pieces.append(piece)

    @property
    def is_open(self) -> bool:
        """Whether more may come."""
        return self._open

    def _add(self, token: Token | None) -> str:
        if token is None:
            return self._last()
        self._tokens.append(token)
        piece = self._stops.add(self._text.add(token.id)) if self._text and not token.stops else ""
        if self._stops.found is not None:
            self.close()
        return piece

    def _last(self) -> str:
        piece = self._stops.add(self._text.finish()) if self._text else ""
        if self._stops.found is None:
            piece += self._stops.finish()
        self.close()
        return piece

    def close(self) -> None:
        """End the text here; what it has become stays in `result`."""
        if self._open:
            self._open = False
            self._ended()

    def __del__(self) -> None:
        if getattr(self, "_open", False):
            self.close()

    @property
    def result(self) -> Generated:
        """What has come so far."""
        generation = self._generation
        finish = "stop" if self._stops.found is not None else FINISHES[generation.report.finish]
        tokens = tuple(self._tokens)
        return Generated("".join(self._pieces), tokens, finish, generation.usage, self._seed, self._prompt)

    def all(self) -> Generated:
        """Wait for the end."""
        for _ in self:
            pass
        return self.result
