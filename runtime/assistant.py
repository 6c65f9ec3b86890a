"""A smaller model that guesses what another says next, so that one run of that one checks several tokens.

The text is the one that the model makes alone: each token is still chosen by its own logits. The assistant draws by the
same options and the same random numbers, so that where the two agree its guesses do too.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from ctypes import byref, c_int, c_void_p
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmc.errors import LlmcError
from llmc.runtime import native
from llmc.runtime.generation_structs import Allow, Token
from llmc.runtime.grammar import Constraint
from llmc.runtime.prompts import encoder_of, generation_of
from llmc.runtime.source import hold

if TYPE_CHECKING:
    from llmc.runtime.generation_entry import GenerationEntry
    from llmc.runtime.generation_options import GenerationOptions
    from llmc.runtime.model import Model
    from llmc.runtime.session import Session


def want_partner(model: Model, draft: Model, entry: GenerationEntry) -> None:
    """Refuse an assistant that speaks other tokens, or cannot take back what it guessed.

    Raises:
        LlmcError: says which.
    """
    known: Any = model.__dict__.setdefault("_partners", weakref.WeakSet())
    if draft in known:
        return
    draft._open_handle()
    own = generation_of(draft)
    if (own.encoder is None) != (entry.encoder is None):
        raise _unfit(draft, "one of the two models has an encoder, the other has none")
    if not draft.lengths or _forgets(draft, own):
        raise _unfit(draft, "its states cannot go back where a guess was wrong")
    _want_same_tokens(model, draft, entry, own)
    known.add(draft)


def _unfit(draft: Model, why: str) -> LlmcError:
    return LlmcError(f"the assistant model does not fit: {why}", at=str(draft.path))


def _forgets(draft: Model, entry: GenerationEntry) -> bool:
    """Whether a state that keeps its shape changes with every token, as those of Mamba."""
    function = draft.functions[entry.function]
    return any(use == "replaced" for use in function.states.values())


def _want_same_tokens(model: Model, draft: Model, entry: GenerationEntry, own: GenerationEntry) -> None:
    one, other = encoder_of(model), encoder_of(draft)
    if one is None or other is None:
        if (one is None) == (other is None) and entry.vocabulary == own.vocabulary:
            return
        raise _unfit(draft, f"{own.vocabulary} tokens and a tokenizer of its own, or none")
    if one.text == other.text:
        return
    tokens, others = (e.whole.get_vocab(with_added_tokens=True) for e in (one, other))
    if tokens == others:
        return
    differing = sorted((i, text) for text, i in tokens.items() if others.get(text) != i)
    found = f"token {differing[0][0]}, {differing[0][1]!r:.40}, among others" if differing else "more tokens"
    raise LlmcError(
        "the assistant model does not fit: it has other tokens",
        at=str(draft.path),
        found=found,
        hint="an assistant has the tokenizer of the model that it helps",
    )


def assistant_of(
    model: Model,
    entry: GenerationEntry,
    options: GenerationOptions,
    prompt: Sequence[int],
    source: Sequence[int],
    constraint: Constraint | None,
) -> Assistant | None:
    """The assistant of a text; None if there is none. See `Assistant`."""
    if options.assistant_model is None:
        return None
    return Assistant(model, entry, options, prompt, source, constraint)


def _is_dead_end(status: int, constraint: Constraint | None) -> bool:
    """Whether nothing can follow what was guessed, which says nothing of the text: that may go another way.

    Raises:
        BaseException: what else went wrong in a grammar.
    """
    if constraint is None or constraint.error is None:
        return status == native.ERROR_RANGE
    if isinstance(constraint.error, LlmcError):
        return True
    raise constraint.error


class Assistant:
    """The assistant of one text.

    Args:
        options: those of the text; prompt, source: its tokens; constraint: what holds it to a grammar.
        error: what went wrong, for whoever called C.

    Raises:
        LlmcError: it does not fit, or there is no memory for a session of it.
    """

    def __init__(
        self,
        model: Model,
        entry: GenerationEntry,
        options: GenerationOptions,
        prompt: Sequence[int],
        source: Sequence[int],
        constraint: Constraint | None,
    ) -> None:
        draft: Model = options.assistant_model
        want_partner(model, draft, entry)
        self._draft, self._entry, self._constraint = draft, generation_of(draft), constraint
        stops = list(options.stops(entry))
        idle = dict.fromkeys(
            ("logprobs", "top_logprobs", "timeout", "prompt_lookup_num_tokens", "assistant_model")
        )
        own = replace(options, eos_token_id=stops, **idle)
        self._options = own.to_c(self._entry, prompt, source)
        self._prompt = len(prompt)
        self._read, self._lost = (
            0,
            False,
        )  # ids that were looked at, and whether the draft has no such tokens or places
        self._session: Session = draft._kept_session()
        if self._entry.encoder is not None and source:
            hold(self._session, self._entry.encoder, source)
        self.error: BaseException | None = None

    def guess(self, user: Any, ids: Any, count: int, most: int, guesses: Any) -> int:
        """`guess` of llmc.h."""
        try:
            return self._guess(ids, count, most, guesses)
        except BaseException as error:  # C cannot let it through; whoever called C raises it
            self.error = error
            return -1

    def _guess(self, ids: Any, count: int, most: int, guesses: Any) -> int:
        """What the assistant says behind all that is there; of that it keeps what it has read already."""
        self._read, new = count, ids[self._read : count]
        self._lost = (
            self._lost or count >= self._entry.max_length or max(new, default=0) >= self._entry.vocabulary
        )
        if self._lost:
            return 0
        handle, error = self._session._open_handle(), native.Error()
        pointer, token, more = c_void_p(), Token(), c_int()
        self._options.made, self._options.max_new_tokens = count - self._prompt, most
        constraint = self._held(ids, count)
        at, library = str(self._draft.path), handle.library
        status = library.generation_open(
            handle.pointer, byref(self._options), ids, count, byref(pointer), byref(error)
        )
        library.check(status, error, at)
        found = 0
        try:
            while found < most:
                status = library.generation_next(pointer, byref(token), byref(more), byref(error))
                if _is_dead_end(status, constraint):
                    break
                library.check(status, error, at)
                if not more.value:
                    break
                guesses[found] = token.token
                found += 1
        finally:
            library.generation_close(pointer)
        return found

    def _held(self, ids: Any, count: int) -> Constraint | None:
        """What holds the guesses to the grammar of the text."""
        if self._constraint is None:
            return None
        made = ids[self._prompt : count]
        constraint = self._constraint.behind(made, self._entry.vocabulary)
        self._allow = self._options.allow = Allow(constraint.allow)
        return constraint

    def __del__(self) -> None:
        session: Any = getattr(self, "_session", None)
        if session is not None and self._draft._handle is not None and not self._draft._idle:
            self._draft._idle.append(session)
