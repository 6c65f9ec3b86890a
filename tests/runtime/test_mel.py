"""Spectrograms: of a sound that is filled up with silence only what sounds is transformed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmc.runtime import mel

BINS, RATE, WINDOW, HOP = 80, 16000, 400, 160


def plain(wave: Any) -> Any:
    """All frames, one after the other."""
    padded = np.pad(wave.astype(np.float64), WINDOW // 2, mode="reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    frames = [padded[at : at + WINDOW] * hann for at in range(0, len(wave), HOP)]
    power = np.abs(np.fft.rfft(frames)) ** 2 @ mel.slaney(BINS, RATE, WINDOW // 2 + 1)
    logs = np.log10(np.maximum(power, 1e-10)).T
    return (np.maximum(logs, logs.max() - 8) + 4) / 4


@pytest.mark.parametrize("sounding", [0, 1, 159, 161, 4000, 47_900, 48_000])
def test_a_sound_and_silence_behind_it(sounding: int) -> None:
    wave = np.zeros(48_000, np.float32)
    wave[:sounding] = np.random.default_rng(sounding).standard_normal(sounding)
    found = mel.whisper(wave, BINS, RATE, WINDOW, HOP)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, plain(wave), rtol=0, atol=1e-6)


def test_silence_is_not_transformed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = [0], np.fft.rfft

    def counted(frames: Any) -> Any:
        seen[0] += len(frames)
        return real(frames)

    monkeypatch.setattr(np.fft, "rfft", counted)
    wave = np.zeros(480_000, np.float32)
    wave[:16_000] = 0.5
    mel.whisper(wave, BINS, RATE, WINDOW, HOP)
    assert 100 <= seen[0] <= 102
