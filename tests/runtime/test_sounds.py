"""WAV files of every width, and damaged ones: samples, or a sentence."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from llmc.errors import LlmcError
from llmc.runtime.audio import read_audio


def file(data: bytes, bits: int = 16, rate: int = 16000, channels: int = 1, kind: int = 1) -> bytes:
    block = channels * ((bits + 7) // 8)
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * block, block, bits)
    chunks = b"fmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_whole_numbers(tmp_path: Path, bits: int) -> None:
    """Two channels, averaged; the least number is -1."""
    low, half = (0, 192) if bits == 8 else (-(2 ** (bits - 1)), 2 ** (bits - 2))
    data = b"".join(n.to_bytes(bits // 8, "little", signed=bits > 8) for n in (low, low, half, low))
    (tmp_path / "a.wav").write_bytes(file(data, bits, 8000, 2))
    samples, rate = read_audio(tmp_path / "a.wav")
    assert (samples.dtype, samples.tolist(), rate) == (np.float32, [-1.0, -0.25], 8000)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not a WAV file of whole numbers: it ends where more must come"),
        (file(b"\1" * 20)[:30], "not a WAV file of whole numbers: it ends where more must come"),
        (b"RIFF\xff\xff\xff\x7fWAVELIST\xff\xff\xff\x7f1234", "it ends where more must come"),
        (file(b"\1" * 20, 40), "not a WAV file of whole numbers: 40 bits a sample"),
        (file(b"\1" * 20, 48), "not a WAV file of whole numbers: 48 bits a sample"),
        (file(b"\1" * 20, channels=0), "not a WAV file of whole numbers"),
        (file(b"\1" * 20, 32, kind=3), "not a WAV file of whole numbers: unknown format: 3"),
        (file(b"\1" * 20, rate=0), "the sound has 0 samples a second"),
        (file(b""), "the sound has no samples"),
    ],
    ids=[
        "empty",
        "cut form",
        "cut chunk",
        "40 bits",
        "48 bits",
        "no channels",
        "floats",
        "no rate",
        "no samples",
    ],
)
def test_no_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, told: str) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)  # which reads more
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(LlmcError) as caught:
        read_audio(tmp_path / "a.wav")
    assert told in str(caught.value)
