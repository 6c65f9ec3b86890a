"""Log-mel spectrograms as the feature extractors of Whisper and of the Audio Spectrogram Transformer make them."""

from __future__ import annotations

from functools import cache

import numpy as np

from llmc.runtime.arrays import Array

_FRAMES = 256  # that are transformed at once
_LEAST = 1e-10  # of a power


def whisper(wave: Array, bins: int, rate: int, window: int, hop: int) -> Array:
    """f32 [samples] -> f32 [bins, samples / hop]: log10, at most 8 below the largest, moved to about -1..1."""
    half, count = window // 2, len(wave) // hop
    padded = np.pad(wave.astype(np.float64), half, mode="reflect")
    heard = np.flatnonzero(padded)  # behind the last of these all is padding, often most of a window
    frames = min(count, int(heard[-1]) // hop + 1) if len(heard) else 0
    hann, filters = np.hanning(window + 1)[:-1], slaney(bins, rate, half + 1)
    logs = np.full((bins, count), np.log10(_LEAST))
    for at, part in zip(range(0, frames, _FRAMES), _parts(padded, window, hop), strict=False):
        found = np.fft.rfft(part[: frames - at] * hann)
        power = (found.real**2 + found.imag**2) @ filters
        logs[:, at : at + len(found)] = np.log10(np.maximum(power, _LEAST)).T
    return np.asarray((np.maximum(logs, logs.max() - 8) + 4) / 4, np.float32)


def kaldi(wave: Array, bins: int, rate: int, window: int = 400, hop: int = 160, size: int = 512) -> Array:
    """f32 [samples] -> f32 [frames, bins], natural logarithms, as Kaldi's fbank without dither."""
    hann, filters = np.hanning(window), kaldi_filters(bins, rate, size // 2 + 1)
    found = [np.zeros((0, bins))]
    for part in _parts(wave.astype(np.float64), window, hop):
        frames = part - part.mean(1, keepdims=True)
        before = np.concatenate([frames[:, :1], frames[:, :-1]], 1)
        power = np.abs(np.fft.rfft((frames - 0.97 * before) * hann, size)) ** 2
        found.append(np.log(np.maximum(power @ filters, np.finfo(np.float32).eps)))
    return np.concatenate(found).astype(np.float32)


def _parts(wave: Array, window: int, hop: int) -> list[Array]:
    """Overlapping frames f64 [some, window], a few hundred at a time: all at once would be large."""
    if len(wave) < window:
        return []
    frames = np.lib.stride_tricks.sliding_window_view(wave, window)[::hop]
    return [frames[i : i + _FRAMES] for i in range(0, len(frames), _FRAMES)]


@cache
def slaney(bins: int, rate: int, count: int) -> Array:
    """Slaney's filters [count, bins] from 0 to 8000 Hz, each of area 1: triangles over hertz."""
    edges = _hertz(np.linspace(_mels(np.array([0.0])), _mels(np.array([8000.0])), bins + 2)[:, 0])
    filters = _triangles(np.linspace(0, rate // 2, count), edges)
    return np.asarray(filters * (2 / (edges[2:] - edges[:-2])))


@cache
def kaldi_filters(bins: int, rate: int, count: int) -> Array:
    """Kaldi's filters [count, bins] from 20 Hz to half the rate: triangles over mels."""

    def mels(hertz: Array) -> Array:
        return np.asarray(1127 * np.log(1 + hertz / 700))

    low, high = mels(np.array([20.0, rate // 2]))
    return _triangles(mels(np.arange(count) * rate / (2 * (count - 1))), np.linspace(low, high, bins + 2))


def _triangles(places: Array, edges: Array) -> Array:
    """Filter i rises from edge i to edge i + 1 and falls to edge i + 2."""
    slopes, widths = edges[None] - places[:, None], np.diff(edges)
    return np.maximum(0, np.minimum(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]))


_LINEAR = 1000.0  # hertz up to which Slaney's scale is linear, 15 mels
_STEP = np.log(6.4) / 27


def _mels(hertz: Array) -> Array:
    logs = 15 + np.log(np.maximum(hertz, _LINEAR) / _LINEAR) / _STEP
    return np.where(hertz < _LINEAR, 3 * hertz / 200, logs)


def _hertz(mels: Array) -> Array:
    return np.where(mels < 15, 200 * mels / 3, _LINEAR * np.exp(_STEP * (mels - 15)))
