"""CRC-32C of the weights, block by block: what an artifact's C runtime compares when it is opened.

As in RFC 3720. A CRC without its initial value is linear, so it is computed for all words at once and then joined in
pairs: crc(a + b) = shifted(crc(a), len(b)) ^ crc(b).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

BLOCK = 1 << 20  # bytes; LLMC_WEIGHTS_BLOCK of runtime/c/module.h
POLYNOMIAL = 0x82F63B78
_ONES = 0xFFFFFFFF
_PIECE = 1 << 18  # bytes at a time: what is computed on the way stays in the L2 cache

Words = np.ndarray[Any, np.dtype[np.uint32]]


class Checksums:
    """The checksums of a stream: of every `BLOCK` bytes, and of what is left at the end."""

    def __init__(self) -> None:
        self._done: list[int] = []
        self._rest = bytearray()

    def add(self, data: bytes) -> None:
        self._rest += data
        whole = len(self._rest) // BLOCK * BLOCK
        self._done += [crc32c(self._rest[i : i + BLOCK]) for i in range(0, whole, BLOCK)]
        del self._rest[:whole]

    def finish(self) -> tuple[int, ...]:
        return (*self._done, *([crc32c(self._rest)] if self._rest else []))


def crc32c(data: bytes | bytearray) -> int:
    """CRC-32C of up to 4 GB."""
    crc = _ONES
    for start in range(0, len(data), _PIECE):
        piece = data[start : start + _PIECE]
        crc = _followed(crc, len(piece)) ^ _linear(piece)
    return crc ^ _ONES


def _linear(data: bytes | bytearray) -> int:
    """The CRC with initial and final value 0."""
    count = -(-len(data) // 4)
    levels = max(count - 1, 0).bit_length()
    padded = np.zeros(4 << levels, np.uint8)  # zeros before the first byte change nothing
    padded[padded.size - len(data) :] = np.frombuffer(data, np.uint8)
    crcs = _shifted(padded.view("<u4"), 2)
    for level in range(levels):
        crcs = _shifted(crcs[0::2], 2 + level) ^ crcs[1::2]
    return int(crcs[0])


def _followed(crc: int, length: int) -> int:
    """The CRC once so many zero bytes follow."""
    crcs = np.array([crc], np.uint32)
    for level in range(length.bit_length()):
        if length >> level & 1:
            crcs = _shifted(crcs, level)
    return int(crcs[0])


def _shifted(crcs: Words, level: int) -> Words:
    """The CRCs once 2 ** level zero bytes follow."""
    lower, upper = _tables(level)
    return lower.take(crcs & 0xFFFF, mode="wrap") ^ upper.take(crcs >> 16, mode="wrap")


@cache
def _tables(level: int) -> tuple[Words, Words]:
    """`_shifted` of all values of the lower and of the upper 16 bits."""
    low = np.arange(1 << 16, dtype=np.uint32)
    first, second = low, low << np.uint32(16)
    if level == 0:
        return _byte_after(first), _byte_after(second)
    return _twice(first, level - 1), _twice(second, level - 1)


def _twice(crcs: Words, level: int) -> Words:
    return _shifted(_shifted(crcs, level), level)


def _byte_after(crcs: Words) -> Words:
    for _ in range(8):
        crcs = np.where(crcs & 1, crcs >> 1 ^ np.uint32(POLYNOMIAL), crcs >> 1)
    return crcs
