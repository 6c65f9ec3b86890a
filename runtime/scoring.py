"""How likely a model finds a text that is there: the logarithm of each token's probability after those before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.runtime.looking import look
from llmc.runtime.prompts import generation_of, want_tokens

if TYPE_CHECKING:
    from llmc.runtime.generation_entry import GenerationEntry
    from llmc.runtime.model import Model
    from llmc.runtime.session import Session

Array = np.ndarray[Any, np.dtype[Any]]
CHUNK = 64  # tokens of a run: their logits are held at once


def logprobs(model: Model, ids: Sequence[int], begin: int, session: Session) -> Array:
    """Natural logarithms, f64 `[len(ids) - begin]`, of tokens `begin` on; `begin` is 1 at least.

    Args:
        session: is begun anew.

    Raises:
        LlmcError: the model does not generate, or the text is longer than it takes.
    """
    entry = generation_of(model)
    want_tokens(ids, entry.vocabulary)
    session.reset()
    look(session, entry, None)
    chunk, found = _chunk(model), []
    for start in range(0, len(ids) - 1, chunk):
        tokens = np.array(ids[start : start + chunk], np.int64)
        targets = np.array(ids[start + 1 : start + 1 + len(tokens)], np.int64)
        places = np.arange(max(begin - 1 - start, 0), len(targets))
        given = {entry.tokens: tokens[None]}
        if entry.keep is not None:
            given[entry.keep] = places if len(places) else np.array([0])
        logits = session.run(given, function=entry.function)[entry.logits][0]
        if len(places):
            found.append(chosen(logits if entry.keep is not None else logits[places], targets[places]))
    return np.concatenate(found)


def chosen(logits: Array, targets: Array) -> Array:
    """Of logits `[n, vocabulary]` the logarithms of the probabilities of `targets [n]`, f64."""
    return np.asarray(log_softmax(logits)[np.arange(len(targets)), targets])


def log_softmax(logits: Array) -> Array:
    """Over the last axis, f64."""
    exact = logits.astype(np.float64)
    exact -= exact.max(-1, keepdims=True)
    return np.asarray(exact - np.log(np.exp(exact).sum(-1, keepdims=True)))


def next_logits(model: Model, ids: Sequence[int], session: Session) -> Array:
    """Run tokens behind what the session holds; f32 `[vocabulary]` of the one that follows.

    Raises:
        LlmcError: they are more than the model takes, or as `Session.run`.
    """
    entry, chunk = generation_of(model), _chunk(model)
    for start in range(0, len(ids), chunk):
        given = _last_of(entry, ids[start : start + chunk])
        logits = session.run(given, function=entry.function)[entry.logits]
    return np.asarray(logits[0, -1])


def next_logits_of_all(
    model: Model, texts: Sequence[tuple[Session, Sequence[int]]]
) -> tuple[list[Array], int]:
    """`next_logits` of several sessions, in as few runs as the model allows, and how many these were.

    Raises:
        LlmcError: as `next_logits`.
    """
    entry, chunk = generation_of(model), _chunk(model)
    if not model.functions[entry.function].batches or any(len(ids) != 1 for _, ids in texts):
        return [next_logits(model, ids, session) for session, ids in texts], len(texts)
    found = []
    for start in range(0, len(texts), chunk):
        calls = [(session, _last_of(entry, ids)) for session, ids in texts[start : start + chunk]]
        found += model.run_sessions(calls, entry.function)
    return [outputs[entry.logits][0, -1] for outputs in found], -(-len(texts) // chunk)


def _last_of(entry: GenerationEntry, ids: Sequence[int]) -> dict[str, Array]:
    """Inputs of a run that tells the logits behind some tokens."""
    given: dict[str, Array] = {entry.tokens: np.array(ids, np.int64)[None]}
    if entry.keep is not None:
        given[entry.keep] = np.array([len(ids) - 1])
    return given


def _chunk(model: Model) -> int:
    """Tokens of a run that every bound of the function allows."""
    entry = generation_of(model)
    inputs = model.functions[entry.function].inputs
    if entry.images is not None and entry.images.together:
        return entry.max_length  # tokens that attend to later ones are run with them
    axes = [inputs[entry.tokens].shape[1], *(inputs[entry.keep].shape if entry.keep else ())]
    return min(
        CHUNK, *(axis if isinstance(axis, int) else model.dims.get(axis, (1, CHUNK))[1] for axis in axes)
    )
