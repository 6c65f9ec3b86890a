"""From speech to text, as Whisper does it in transformers: windows of 30 s, one after the other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.errors import LlmcError
from llmc.runtime import mel
from llmc.runtime.generation_options import options_of
from llmc.runtime.media import Sounds
from llmc.runtime.penalties import Penalties
from llmc.runtime.prompts import encoder_of, generation_of, want_own
from llmc.runtime.scoring import next_logits
from llmc.runtime.source import hold
from llmc.runtime.timestamps import PRECISION, Timestamps

if TYPE_CHECKING:
    from llmc.runtime.generation_options import GenerationOptions
    from llmc.runtime.model import Model
    from llmc.runtime.session import Session
    from llmc.runtime.speech_entry import SpeechEntry

Array = np.ndarray[Any, np.dtype[Any]]
_OPTIONS = (
    *("max_new_tokens", "min_new_tokens", "suppress_tokens", "begin_suppress_tokens", "repetition_penalty"),
    *("no_repeat_ngram_size", "logit_bias"),
)


@dataclass(frozen=True)
class Segment:
    """A part of what was said: seconds from the beginning, text and tokens."""

    start: float
    end: float
    text: str
    ids: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True)
class Transcript:
    """What was said.

    Args:
        text: all of it.
        language: such as "en"; None where the model has but one.
        segments: with their times, where timestamps were made; else one without.
        ids: all tokens that were made, but those that end a window.
        duration: seconds of sound; `seconds` is what it took.
    """

    text: str
    language: str | None
    segments: tuple[Segment, ...]
    ids: tuple[int, ...] = field(repr=False)
    duration: float
    seconds: float

    def __str__(self) -> str:
        return self.text


class Listener:
    """Writes down what is said, a window at a time.

    Args:
        timestamps: whether they are made; of more than a window they always are. None: as the model's makers say.
        options: of `Model.generate`, those that choose the likeliest token.

    Raises:
        LlmcError: the model does not write down speech, or an option is unknown or makes no sense.
    """

    def __init__(
        self, model: Model, language: Any, task: Any, timestamps: bool | None, options: dict[str, Any]
    ) -> None:
        self.model, self.entry = model, generation_of(model)
        if self.entry.encoder is None or self.entry.speech is None:
            raise LlmcError(
                "the model does not write down speech", at=str(model.path), found=f"a {model.task} model"
            )
        if unknown := [name for name in options if name not in _OPTIONS]:
            raise LlmcError(f"no option {unknown[0]!r} of transcribe", hint=f"options: {', '.join(_OPTIONS)}")
        self.speech: SpeechEntry = self.entry.speech
        self.language, self.task = language, task
        self.timestamps = self.speech.timestamps if timestamps is None else timestamps
        self.options: GenerationOptions = options_of(self.entry, {"do_sample": False, **options})
        self.decoder = encoder_of(model)
        if language:
            self.speech.language_of(language)
        if task:
            self.speech.task_of(task)

    def __call__(self, samples: Array, sounds: Sounds, session: Session) -> Transcript:
        """
        Raises:
            LlmcError: a window cannot be run, or timestamps are needed and the model has none.
        """
        begin, steps = time.perf_counter(), sounds.steps
        long = (
            len(samples) // steps.hop > steps.samples // steps.hop
        )  # by frames: a part of one is heard in none
        if (long or self.timestamps) and self.speech.no_timestamps is None:
            raise LlmcError(
                "the model makes no timestamps, which sounds of more than one window need",
                found=f"{len(samples) / steps.rate:.1f} s",
                hint="its generation_config.json names no no_timestamps_token_id",
            )
        missing = max(0, steps.samples - len(samples))
        wave = np.pad(samples, (0, missing), constant_values=steps.padding)
        heard = mel.whisper(wave, steps.bins, steps.rate, steps.window, steps.hop)
        found, segments = self._windows(heard, session, steps.samples // steps.hop, long or self.timestamps)
        ids = [token for segment in segments for token in segment.ids]
        text = self._text(ids) if self.decoder else ""
        seconds = time.perf_counter() - begin
        return Transcript(text, found, tuple(segments), tuple(ids), len(samples) / steps.rate, seconds)

    def _windows(
        self, heard: Array, session: Session, window: int, timed: bool
    ) -> tuple[str | None, list[Segment]]:
        """The language and all segments."""
        entry, at, windows, language, segments = self.entry, 0, 0, None, list[Segment]()
        assert entry.encoder is not None
        stride = window // self._positions(window)
        prompt: list[int] = []
        while at < heard.shape[1]:
            part = heard[:, at : at + window]
            frames = part.shape[1]
            hold(session, entry.encoder, np.pad(part, ((0, 0), (0, window - frames)))[None])
            if not prompt:
                language = self._language(session)
                prompt = self.speech.prompt(entry.encoder.start, self.language, self.task, timed, language)
            windows += 1
            ids = self._made(session, prompt, timed, self._most(len(prompt), windows))
            parts, done = self._cut(ids, frames, stride)
            offset = at * PRECISION / stride
            segments += [
                Segment(offset + a, offset + b, self._text(tokens), tuple(tokens)) for a, b, tokens in parts
            ]
            at += done or frames
        return self._named(prompt), segments

    def _cut(
        self, ids: list[int], frames: int, stride: int
    ) -> tuple[list[tuple[float, float, list[int]]], int]:
        """A window's tokens by its timestamps, and the frames that are done; see `Timestamps.segments`."""
        if self.speech.no_timestamps is None:
            return [(0.0, frames // stride * PRECISION, ids)], frames
        return self._marks().segments(ids, frames, stride)

    def _positions(self, window: int) -> int:
        """Of the encoder, for a window of frames."""
        cross = next(s for name, s in self.model.states.items() if name.startswith("cross."))
        size = cross.shape[2]
        return size if isinstance(size, int) else window // 2

    def _language(self, session: Session) -> int | None:
        """The token of the language that is heard; None where that is not asked."""
        if not self.speech.wants_language(self.language, self.task):
            return None
        assert self.entry.encoder is not None
        logits = next_logits(self.model, [self.entry.encoder.start], session)
        session.rewind(0)
        known = sorted(self.speech.languages.values())
        return known[int(np.argmax(logits[known]))]

    def _named(self, prompt: Sequence[int]) -> str | None:
        return next((name for name, token in self.speech.languages.items() if token in prompt[1:2]), None)

    def _marks(self) -> Timestamps:
        assert self.speech.no_timestamps is not None
        end = self.entry.eos[0] if self.entry.eos else 0
        return Timestamps(self.speech.no_timestamps + 1, end, self.speech.latest_start)

    def _most(self, prompt: int, windows: int) -> int:
        """Tokens of the last of so many windows; to max_length transformers adds the prompt at each window anew."""
        room, asked = self.entry.max_length - prompt, self.options
        if asked.max_new_tokens is not None or asked.max_length is None:
            return min(asked.new_tokens(prompt), room)
        added = min(prompt, self.entry.max_length // 2 - 1)
        return min(asked.max_length + windows * added - prompt, room)

    def _made(self, session: Session, prompt: list[int], timed: bool, most: int) -> list[int]:
        """The tokens of a window, `most` of them and without the one that ends them."""
        stops, made = frozenset(self.options.stops(self.entry)), list[int]()
        penalties = Penalties.of(self.options, prompt, stops, self.options.barred(self.entry, prompt))
        marks = self._marks() if timed else None
        logits = next_logits(self.model, prompt, session)
        while True:
            if not np.isfinite(logits.max()):
                raise LlmcError("the model gave logits that are no numbers", at=str(self.model.path))
            scores = penalties.on(logits.astype(np.float32), made)
            if marks is not None:
                marks.on(scores, made)
            token = int(np.argmax(scores))
            if scores[token] == -np.inf:
                raise LlmcError("no token is left to choose from", hint="bias or suppress fewer tokens")
            if token in stops:
                return made
            made.append(token)
            if len(made) >= most:
                return made
            logits = next_logits(self.model, [token], session)

    def _text(self, ids: Sequence[int]) -> str:
        """Of words alone."""
        first = self.speech.no_timestamps
        words = [token for token in ids if first is None or token <= first]
        return self.decoder.text_of(words).strip() if self.decoder else ""


def _whole(
    model: Model,
    audio: Any,
    asked: tuple[Any, ...],
    rate: tuple[int | None, bool],
    session: Session | None,
    options: dict[str, Any],
) -> Transcript:
    """Of a model that hears a sound at once, and knows of no language, task or timestamp."""
    if any(asked):
        raise LlmcError("the model has no languages, tasks or timestamps", at=str(model.path))
    begin, sounds = time.perf_counter(), Sounds(model)
    samples = sounds.open(audio, *rate)
    made = model.generate(sounds([samples])[sounds.name], session=session, **{"do_sample": False, **options})
    ids, seconds = tuple(made.ids), len(samples) / sounds.steps.rate
    text = made.text.strip()
    return Transcript(
        text, None, (Segment(0.0, seconds, text, ids),), ids, seconds, time.perf_counter() - begin
    )


def transcribe(
    model: Model,
    audio: Any,
    language: Any,
    task: Any,
    timestamps: bool | None,
    rate: tuple[int | None, bool],
    session: Session | None,
    options: dict[str, Any],
) -> Transcript:
    """See `Model.transcribe`."""
    want_own(model, session)
    if (entry := generation_of(model)).encoder is not None and entry.speech is None:
        return _whole(model, audio, (language, task, timestamps), rate, session, options)
    listener = Listener(model, language, task, timestamps, options)
    sounds = Sounds(model)
    samples = sounds.open(audio, *rate, whole=True)
    if session is not None:
        return listener(samples, sounds, session)
    with model.session() as own:
        return listener(samples, sounds, own)
