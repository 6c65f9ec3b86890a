"""Beam search: the likeliest texts as a whole, several at a time, with the scores and the stops of transformers' own.

Each beam is a session; one that goes on in two ways is forked.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.errors import LlmcError
from llmc.runtime.generated import Generated
from llmc.runtime.generation import Token, Usage
from llmc.runtime.generation_options import ALONE
from llmc.runtime.looking import Looked, look
from llmc.runtime.penalties import Penalties
from llmc.runtime.scoring import log_softmax, next_logits_of_all
from llmc.runtime.source import hold

if TYPE_CHECKING:
    from llmc.runtime.generation_entry import GenerationEntry
    from llmc.runtime.generation_options import GenerationOptions
    from llmc.runtime.model import Model
    from llmc.runtime.session import Session

_NEVER = -1e9  # added to what must not be taken, as transformers does
MOST_BEAMS = 64
MOST_POWER = 40  # of a text's length


@dataclass(frozen=True)
class Search:
    """How to search.

    Args:
        num_beams: texts that go on at a time.
        num_return_sequences: of the best that are given.
        length_penalty: scores are divided by the number of new tokens to this power.
        early_stopping: True: end when as many texts as beams are finished; False: when those that go on are worse,
            by their length now; "never": by the most tokens that they may have.
        renormalize_logits: make probabilities of what penalties and suppressed tokens leave.
    """

    num_beams: int = 4
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    renormalize_logits: bool = False

    def __post_init__(self) -> None:
        for name, most in (("num_beams", MOST_BEAMS), ("num_return_sequences", self.num_beams)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise LlmcError(f"{name} is {value!r}, must be within 1..{most}")
        power = self.length_penalty
        if isinstance(power, bool) or not isinstance(power, int | float) or not abs(power) <= MOST_POWER:
            raise LlmcError(f"length_penalty is {power!r}, must be within {-MOST_POWER}..{MOST_POWER}")
        if self.early_stopping not in (True, False, "never"):
            raise LlmcError(f'early_stopping is {self.early_stopping!r}, must be True, False or "never"')
        if type(self.renormalize_logits) is not bool:
            raise LlmcError(f"renormalize_logits is {self.renormalize_logits!r}, must be True or False")


@dataclass(frozen=True)
class _Beam:
    """A text so far: its new tokens, the sum of their logarithms, and the session that holds all but the last."""

    tokens: tuple[int, ...]
    score: float
    session: Session


@dataclass(frozen=True)
class _Finished:
    tokens: tuple[int, ...]
    score: float
    is_text: bool  # else a place that none has taken yet


class BeamSearch:
    """One search; `run` gives the best texts, best first, and their scores."""

    def __init__(
        self,
        model: Model,
        entry: GenerationEntry,
        ids: Sequence[int],
        options: GenerationOptions,
        search: Search,
        source: Sequence[int] = (),
        looked: Looked | None = None,
    ) -> None:
        self._source, self._looked, self._adapter = source, looked, options.adapter
        self._model, self._entry, self._ids, self._search = model, entry, list(ids), search
        room = entry.max_length - len(ids) if entry.length else options.new_tokens(len(ids))
        self._most = min(options.new_tokens(len(ids)), room)
        self._stops = frozenset(entry.eos if options.eos_token_id is None else options.eos_token_id)
        barred = options.barred(entry, ids, source)
        self._penalties = Penalties.of(options, self._ids, self._stops, barred)
        self._kept = max(2, 1 + len(self._stops)) * search.num_beams
        self._finished = [_Finished((), _NEVER, False)] * search.num_beams
        self._may_improve = True
        self.runs = 0

    def run(self) -> list[tuple[tuple[int, ...], float]]:
        """
        Raises:
            LlmcError: the model gives no numbers, or there is no memory for so many sessions.
        """
        beams = [_Beam((), 0.0, self._begun())]
        while True:
            options = self._continuations(beams)
            ended = [self._ends(tokens) for _, tokens, _ in options]
            beams = self._next_beams(beams, options, ended)
            self._take_finished(options, ended)
            if self._is_over(beams, all(ended)):
                return self._best()

    def _best(self) -> list[tuple[tuple[int, ...], float]]:
        best = self._finished[: self._search.num_return_sequences]
        if not any(text.is_text for text in best):
            raise LlmcError("no token is left to choose from", hint="bias or suppress fewer tokens")
        return [(text.tokens, text.score) for text in best if text.is_text]

    def _begun(self) -> Session:
        session = self._model.session(adapter=self._adapter)
        if self._entry.encoder is not None and self._source:
            hold(session, self._entry.encoder, self._source)
        look(session, self._entry, self._looked)
        return session

    def _continuations(self, beams: Sequence[_Beam]) -> list[tuple[int, tuple[int, ...], float]]:
        """The best ways to go on: number of the beam, its tokens with the next one, their score."""
        rows = []
        texts = [(beam.session, beam.tokens[-1:] or self._ids) for beam in beams]
        found, runs = next_logits_of_all(self._model, texts)
        self.runs += runs
        for beam, logits in zip(beams, found, strict=True):
            if not np.isfinite(logits.max()) or np.isnan(logits).any():
                raise LlmcError("the model gave logits that are no numbers", at=str(self._model.path))
            scores = self._penalties.on(log_softmax(logits).astype(np.float32), beam.tokens)
            if self._search.renormalize_logits:
                scores = log_softmax(scores).astype(np.float32)
            rows.append(scores + np.float32(beam.score))
        flat = np.concatenate(rows)
        best = np.argsort(-flat, kind="stable")[: self._kept]
        size = len(rows[0])
        return [(int(i) // size, (*beams[i // size].tokens, int(i) % size), float(flat[i])) for i in best]

    def _ends(self, tokens: Sequence[int]) -> bool:
        return tokens[-1] in self._stops or len(tokens) >= self._most

    def _next_beams(
        self,
        beams: Sequence[_Beam],
        options: Sequence[tuple[int, tuple[int, ...], float]],
        ended: Sequence[bool],
    ) -> list[_Beam]:
        """The best that have not ended. The first of a beam's takes its session, the others fork it."""
        going = [option for option, end in zip(options, ended, strict=True) if not end][
            : self._search.num_beams
        ]
        taken: set[int] = set()
        found = []
        for number, tokens, score in going:
            session = beams[number].session
            found.append(_Beam(tokens, score, session.fork() if number in taken else session))
            taken.add(number)
        for number, beam in enumerate(beams):
            if number not in taken:
                beam.session.close()
        return found

    def _take_finished(
        self, options: Sequence[tuple[int, tuple[int, ...], float]], ended: Sequence[bool]
    ) -> None:
        """Only those count that are among the best `num_beams`."""
        if not self._may_improve or (self._search.early_stopping is True and self._is_full):
            return
        new = [
            _Finished(tokens, score / len(tokens) ** self._search.length_penalty, True)
            for (_, tokens, score), end in list(zip(options, ended, strict=True))[: self._search.num_beams]
            if end
        ]
        ranked = sorted(
            [*self._finished, *new], key=lambda f: -f.score
        )  # stable: the first of equal ones stays
        self._finished = ranked[: self._search.num_beams]

    @property
    def _is_full(self) -> bool:
        return all(text.is_text for text in self._finished)

    def _is_over(self, beams: Sequence[_Beam], all_ended: bool) -> bool:
        search = self._search
        if all_ended or not beams:
            return True
        longest = search.early_stopping == "never" and search.length_penalty > 0
        length = self._most if longest else len(beams[0].tokens)
        best = beams[0].score / length**search.length_penalty
        worst = min(text.score for text in self._finished) if self._is_full else _NEVER
        self._may_improve = self._may_improve and best > worst
        return not self._may_improve or (search.early_stopping is True and self._is_full)


def search_beams(
    model: Model,
    entry: GenerationEntry,
    ids: Sequence[int],
    options: GenerationOptions,
    search: Search,
    decode: Any,
    source: Sequence[int] = (),
    looked: Looked | None = None,
) -> list[Generated]:
    """The best texts, best first.

    Args:
        source: of an encoder-decoder, what its encoder is given.
        looked: the images of the prompt.

    Raises:
        LlmcError: options do not go with beams, the prompt is too long, or as `BeamSearch.run`.
    """
    _want(entry, ids, options)
    begin, made = time.perf_counter(), BeamSearch(model, entry, ids, options, search, source, looked)
    best = made.run()
    usage = Usage(
        len(source or ids), 0, sum(len(t) for t, _ in best), made.runs, 0, 0, 0.0, time.perf_counter() - begin
    )
    return [_generated(tokens, score, made._stops, usage, source or ids, decode) for tokens, score in best]


def _want(entry: GenerationEntry, ids: Sequence[int], options: GenerationOptions) -> None:
    idle = (
        "stop_strings",
        "logprobs",
        "top_logprobs",
        "prompt_lookup_num_tokens",
        "prefill_chunk_size",
        "timeout",
        *ALONE,
    )
    used = [name for name in idle if getattr(options, name) not in (None, False, 0, (), [])]
    if options.do_sample:
        used.append("do_sample")
    if used:
        raise LlmcError(f"{', '.join(used)} cannot go with beams", hint="num_beams=1 searches for none")
    want_fits(entry, ids)


def want_fits(entry: GenerationEntry, ids: Sequence[int]) -> None:
    """Refuse a prompt that leaves no room for a new token.

    Raises:
        LlmcError: it is too long.
    """
    if entry.length is not None and len(ids) >= entry.max_length:
        raise LlmcError(
            f"the prompt has {len(ids)} tokens, the model takes at most {entry.max_length}, new ones included",
            hint="give a shorter prompt, or compile the model with a larger bound (--max-seq)",
        )


def _generated(
    tokens: Sequence[int], score: float, stops: frozenset[int], usage: Usage, ids: Sequence[int], decode: Any
) -> Generated:
    ended = bool(tokens) and tokens[-1] in stops
    made = tuple(Token(token, i, ended and i == len(tokens) - 1) for i, token in enumerate(tokens))
    text = decode(tokens[:-1] if ended else tokens) if decode else ""
    own = replace(usage, new_tokens=len(tokens))
    return Generated(text, made, "stop" if ended else "length", own, None, tuple(ids), score)
