"""What an encoder-decoder makes its text of: the source's tokens, and a session that holds the source."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.errors import LlmcError

if TYPE_CHECKING:
    from llmc.runtime.generation_entry import EncoderEntry
    from llmc.runtime.model import Model
    from llmc.runtime.session import Session


def want_source(model: Model, encoder: EncoderEntry, ids: Sequence[int]) -> None:
    """Refuse a source that the encoder does not take.

    Raises:
        LlmcError: it is empty, too long, or holds a number that is no token's.
    """
    info = model.functions[encoder.function].inputs[encoder.source]
    if not reads_text(model, encoder):
        raise no_source(model, encoder)
    axis = info.shape[1]
    longest = axis if isinstance(axis, int) else model.dims[axis][1]
    if not ids:
        raise LlmcError("the source is empty", hint="give a word")
    if len(ids) > longest:
        raise LlmcError(
            f"the source has {len(ids)} tokens, the model takes at most {longest}",
            hint="give a shorter one, or compile the model with a larger bound (--max-seq)",
        )
    low, high = info.range or (0, 2**63 - 1)
    for place, token in enumerate(ids):
        if not low <= token <= high:
            raise LlmcError(f"token {place} of the source is {token}, must be within {low}..{high}")


def reads_text(model: Model, encoder: EncoderEntry) -> bool:
    """Whether a source is tokens."""
    info = model.functions[encoder.function].inputs[encoder.source]
    return info.dtype == "i64" and len(info.shape) == 2


def no_source(model: Model, encoder: EncoderEntry) -> LlmcError:
    """What to give to a model whose source is no text."""
    speech = "speech is written down by model.transcribe(audio), llmc run --audio FILE"
    image = "give it images: model.generate(images=FILE), llmc run --image FILE"
    return LlmcError(
        f"the model reads {encoder.source}, not text",
        at=str(model.path),
        hint=image if encoder.source == "pixel_values" else speech,
    )


def hold(session: Session, encoder: EncoderEntry, source: Any) -> float:
    """Begin a session anew with a source; the seconds that it took.

    Args:
        source: tokens, or the array that the encoder takes.
    """
    begin = time.perf_counter()
    session.reset()
    given = source if isinstance(source, np.ndarray) else np.array([source], np.int64)
    session.run({encoder.source: given}, function=encoder.function)
    return time.perf_counter() - begin
