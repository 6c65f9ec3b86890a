"""Text, token by token: what a model's `generate`, `stream` and `chat` are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ctypes import byref, c_int, c_int64, c_void_p
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llmc.runtime import native
from llmc.runtime.assistant import assistant_of
from llmc.runtime.generation_options import GenerationOptions
from llmc.runtime.generation_structs import Allow, GenerateReport, Guess
from llmc.runtime.generation_structs import Token as CToken
from llmc.runtime.grammar import constraint_of
from llmc.runtime.looking import Looked, look
from llmc.runtime.source import hold

if TYPE_CHECKING:
    from llmc.runtime.generation_entry import GenerationEntry
    from llmc.runtime.session import Session

_ENDED, _TOKEN = 0, 1  # of llmc_next
FINISHES = ("", "stop", "length", "stop")  # of llmc_finish; the caller ends a text at a stop string


@dataclass(frozen=True)
class Token:
    """One new token.

    Args:
        id: its number.
        index: 0 is the first behind the prompt.
        stops: it ends the text.
        logprob: natural logarithm of its probability by the model alone, before penalties and filters; None: not asked.
        top: the likeliest tokens and their logarithms, best first, as many as were asked for.
    """

    id: int
    index: int
    stops: bool
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    """What a text took.

    Args:
        prompt_tokens: of the prompt, or of the source; cached_tokens of them the session held already.
        new_tokens: made, the one that ends the text included.
        runs: of the model.
        guessed, accepted: tokens that look-up or an assistant guessed, and of these the right ones.
        prompt_seconds: until the first token.
        seconds: of all.
    """

    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    runs: int
    guessed: int
    accepted: int
    prompt_seconds: float
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Of those behind the first."""
        spent = self.seconds - self.prompt_seconds
        return (self.new_tokens - 1) / spent if spent > 0 and self.new_tokens > 1 else 0.0


class Generation(Iterator[Token]):
    """The tokens that follow a prompt in a session, each computed when it is asked for.

    The session may hold anything: what it holds of the prompt's beginning is kept, the rest is forgotten.
    """

    def __init__(
        self,
        session: Session,
        entry: GenerationEntry,
        prompt: Sequence[int],
        options: GenerationOptions,
        source: Sequence[int] = (),
        looked: Looked | None = None,
    ) -> None:
        """
        Args:
            source: tokens that the session's encoder is given first, of an encoder-decoder.
            looked: the images of the prompt.

        Raises:
            LlmcError: the prompt is empty, too long or holds a number that is no token's; an option makes no sense; the
                session is in use or closed.
        """
        self._session = session._open_handle()
        self._at = str(session.model.path)
        self._pointer, error = c_void_p(), native.Error()
        library = self._session.library
        self._close = library.generation_close
        asked = options.to_c(entry, prompt, source)
        self._constraint = constraint_of(session.model, entry, options, prompt)
        if self._constraint is not None:
            self._allow = asked.allow = Allow(self._constraint.allow)
        self._assistant = assistant_of(session.model, entry, options, prompt, source, self._constraint)
        if self._assistant is not None:
            self._guess = asked.guess = Guess(self._assistant.guess)
        if entry.images is not None and entry.images.together:
            asked.chunk = entry.max_length  # tokens that attend to later ones are run with them
        self._source, self._held = len(source), look(session, entry, looked)
        if entry.encoder is not None and source:
            self._held = hold(session, entry.encoder, source)
        tokens = (c_int64 * (len(prompt) or 1))(*prompt)
        status = library.generation_open(
            self._session.pointer, byref(asked), tokens, len(prompt), byref(self._pointer), byref(error)
        )
        library.check(status, error, self._at)

    def __next__(self) -> Token:
        """
        Raises:
            LlmcError: the session was cancelled, took too long, or has no memory for more.
        """
        token, more, error = CToken(), c_int(), native.Error()
        library = self._session.library
        if not self._pointer:
            raise StopIteration
        status = library.generation_next(self._pointer, byref(token), byref(more), byref(error))
        self._raise_own()
        library.check(status, error, self._at)
        if not more.value:
            raise StopIteration
        return _token(token)

    def _raise_own(self) -> None:
        """Raise what went wrong in Python while C ran."""
        for part in (self._constraint, self._assistant):
            if part is not None and (error := part.error) is not None:
                part.error = None
                raise error

    @property
    def report(self) -> GenerateReport:
        """So far, as llmc.h has it."""
        report = GenerateReport()
        self._session.library.generation_report(self._pointer, byref(report))
        return report

    @property
    def usage(self) -> Usage:
        """So far."""
        report = self.report
        found = {name: getattr(report, name) for name in Usage.__dataclass_fields__}
        found["prompt_tokens"] = self._source or found["prompt_tokens"]
        found["prompt_seconds"] += self._held
        found["seconds"] += self._held
        return Usage(**found)

    def __del__(self) -> None:
        close: Any = getattr(self, "_close", None)
        if close is not None and self._pointer:
            pointer, self._pointer = self._pointer, c_void_p()
            close(pointer)


def _token(token: CToken) -> Token:
    top = tuple((token.top[i], token.top_logprobs[i]) for i in range(token.n_top))
    known = bool(token.top)
    return Token(token.token, token.index, bool(token.stops), token.logprob if known else None, top)


def next_of_all(generations: Sequence[Generation]) -> list[Token | Literal[False] | None]:
    """One run for all of them, of one model and each in a session of its own: prompts and next tokens together.

    Returns:
        for each its next token; None if it has ended; False if there is none yet.

    Raises:
        LlmcError: as of one generation, and which it is.
    """
    count, first = len(generations), generations[0]
    tokens, found, error = (CToken * count)(), (c_int * count)(), native.Error()
    pointers = (c_void_p * count)(*(g._pointer.value for g in generations))
    library = first._session.library
    status = library.generations_next(pointers, count, tokens, found, byref(error))
    for generation in generations:
        generation._raise_own()
    library.check(status, error, first._at)
    return [
        _token(t) if f == _TOKEN else None if f == _ENDED else False
        for t, f in zip(tokens, found, strict=True)
    ]
