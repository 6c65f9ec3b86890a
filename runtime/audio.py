"""From sound files to what a model takes, as transformers' feature extractors do it.

Files are read by the standard library's `wave`, other kinds by `soundfile` if it is there. Nothing is resampled unless
that is asked for.
"""

from __future__ import annotations

import os
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmc.errors import LlmcError, extras_named, first_line
from llmc.runtime import mel
from llmc.runtime.arrays import Array
from llmc.runtime.fields import Field

KINDS = ("waveform", "whisper", "kaldi")
MOST_RATE, MOST = 1 << 20, 1 << 30


@dataclass(frozen=True)
class AudioSteps:
    """What is done to samples f32, -1 to 1.

    Args:
        kind: "waveform": they go in as they are, or normalised; "whisper", "kaldi": as a log-mel spectrogram.
        rate: samples a second.
        normalize: of waveforms to mean 0 and variance 1; of "kaldi" (x - mean) / std.
        masked: of waveforms: the model looks at a mask, and padding does not count in mean and variance.
        padding: the value of padding.
        bins: of a spectrogram.
        frames: of "kaldi": how many; longer sounds are cut, shorter ones filled up with zeros.
        samples, window, hop: of "whisper": the length to which sounds are cut or filled up, and its frames.
    """

    kind: str
    rate: int
    normalize: bool = False
    masked: bool = False
    padding: float = 0.0
    bins: int = 0
    frames: int = 0
    mean: float = 0.0
    std: float = 1.0
    samples: int = 0
    window: int = 400
    hop: int = 160

    @property
    def longest(self) -> int | None:
        """Samples that are heard, those after them are left out; None: the model says."""
        kaldi = (self.frames - 1) * self.hop + self.window
        return {"whisper": self.samples, "kaldi": kaldi}.get(self.kind)


def read_steps(entry: Field) -> AudioSteps:
    """The manifest's field `preprocess` of a model of sounds.

    Raises:
        LlmcError: a field is wrong or unknown.
    """
    sizes = {name: (1, MOST) for name in ("bins", "frames", "samples", "window", "hop")}
    made: dict[str, Any] = {
        "kind": entry["kind"].one_of(KINDS),
        "rate": entry["sampling_rate"].integer(1, MOST_RATE),
    }
    for name, field in entry.mapping().items():
        if name in sizes:
            made[name] = field.integer(*sizes[name])
        elif name in ("mean", "std", "padding"):
            made[name] = field.number()
        elif name in ("normalize", "masked"):
            made[name] = bool(field.scalar())
        elif name not in ("kind", "sampling_rate"):
            raise LlmcError(
                f"this llmc does not know the step {name!r} of preprocess",
                at=entry.file,
                hint="make the model's input yourself and give it as an array (--input)",
            )
    return AudioSteps(**made)


def read_audio(path: str | os.PathLike[str]) -> tuple[Array, int]:
    """Samples f32 between -1 and 1, channels averaged, and how many there are a second.

    Raises:
        LlmcError: the file is not there, no sound that can be read, cut short, or empty.
    """
    at = os.fspath(path)
    try:
        samples, rate = _read_wave(at)
    except FileNotFoundError:
        raise LlmcError("the sound was not found", at=at) from None
    except OSError as error:
        raise LlmcError(f"the sound cannot be read: {error.strerror or error}", at=at) from None
    except (wave.Error, EOFError, RuntimeError) as error:  # `wave` has all three for a file that is damaged
        samples, rate = _read_other(at, str(error) or "it ends where more must come")
    if not len(samples):
        raise LlmcError("the sound has no samples", at=at)
    if rate < 1:
        raise LlmcError(f"the sound has {rate} samples a second", at=at, hint="is the file damaged?")
    return samples, rate


def _read_wave(at: str) -> tuple[Array, int]:
    """Whole numbers of 8 to 32 bits."""
    with wave.open(at, "rb") as file:
        width, channels, count = file.getsampwidth(), file.getnchannels(), file.getnframes()
        if width > 4:
            raise wave.Error(f"{8 * width} bits a sample")
        raw = file.readframes(count)
        rate = file.getframerate()
    whole = len(raw) // (width * channels) * width * channels
    if whole != count * width * channels:
        found = f"{whole // (width * channels)} of {count} samples"
        raise LlmcError("the sound is cut short", at=at, found=found, hint="is the file whole?")
    return _floats(raw, width).reshape(-1, channels).mean(1, dtype=np.float32), rate


def _floats(raw: bytes, width: int) -> Array:
    """The bytes of samples as f32 in -1..1."""
    if width == 1:  # the one width without a sign
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        return (wide.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
    return (np.frombuffer(raw, f"<i{width}") / 2.0 ** (8 * width - 1)).astype(np.float32)


def _read_other(at: str, reason: str) -> tuple[Array, int]:
    try:
        import soundfile
    except ModuleNotFoundError:
        raise LlmcError(
            f"not a WAV file of whole numbers: {reason}",
            at=at,
            hint="other kinds need the package soundfile: pip install 'llmc[audio]'",
        ) from None
    try:
        samples, rate = soundfile.read(at, dtype="float32", always_2d=True)
    except RuntimeError as error:
        raise LlmcError(f"the sound cannot be read: {first_line(error)}", at=at) from None
    return samples.mean(1, dtype=np.float32), int(rate)


def resampled(samples: Array, rate: int, wanted: int) -> Array:
    """The same sound at another rate, by soxr as librosa and so transformers' pipelines do.

    Raises:
        LlmcError: soxr is not installed.
    """
    if rate == wanted:
        return samples
    with extras_named():
        import soxr
    return np.asarray(soxr.resample(samples, rate, wanted), np.float32)


def want_rate(steps: AudioSteps, rate: int | None, at: str | None = None) -> None:
    """Refuse samples at another rate than the model's.

    Raises:
        LlmcError: it is another, or was not said.
    """
    if rate == steps.rate:
        return
    if rate is None:
        raise LlmcError(
            "the sampling rate of the audio is not known",
            at=at,
            hint=f"say it, sampling_rate={steps.rate} is what the model takes",
        )
    raise LlmcError(
        f"the audio has {rate} samples a second, the model takes {steps.rate}",
        at=at,
        hint=f"convert it: ffmpeg -i IN -ar {steps.rate} -ac 1 OUT.wav; or let llmc do it: --resample, "
        "in Python resample=True (needs soxr)",
    )


def features(sounds: Sequence[Array], steps: AudioSteps) -> tuple[Array, Array | None]:
    """What the model takes, f32, the first axis over the sounds; and a mask i64 [batch, samples] of waveforms."""
    if steps.kind == "waveform":
        return _waveforms(sounds, steps)
    make = _whisper if steps.kind == "whisper" else _kaldi
    return np.stack([make(sound, steps) for sound in sounds]), None


def _waveforms(sounds: Sequence[Array], steps: AudioSteps) -> tuple[Array, Array | None]:
    """Padded to the longest; as in transformers padding counts in mean and variance where there is no mask."""
    lengths = [len(sound) for sound in sounds]
    batch = np.full((len(sounds), max(lengths)), steps.padding, np.float32)
    for row, sound in zip(batch, sounds, strict=True):
        row[: len(sound)] = sound
        if steps.normalize:
            part = row[: len(sound)] if steps.masked else row
            part[:] = (part - part.mean()) / np.sqrt(part.var() + np.float32(1e-7))
    if not steps.masked:
        return batch, None
    return batch, (np.arange(batch.shape[1]) < np.array(lengths)[:, None]).astype(np.int64)


def _whisper(sound: Array, steps: AudioSteps) -> Array:
    sound = sound[: steps.samples]
    filled = np.pad(sound, (0, steps.samples - len(sound)), constant_values=steps.padding)
    return mel.whisper(filled, steps.bins, steps.rate, steps.window, steps.hop)


def _kaldi(sound: Array, steps: AudioSteps) -> Array:
    """Padding is zeros before the statistics of the model are taken off, as in transformers."""
    sound = sound[: steps.longest]  # later samples are in no frame that is kept
    found = mel.kaldi(sound, steps.bins, steps.rate)
    found = np.pad(found, ((0, steps.frames - len(found)), (0, 0)))
    if not steps.normalize:
        return found
    return ((found - np.float32(steps.mean)) / np.float32(steps.std)).astype(np.float32)
