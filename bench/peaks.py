"""The machine's own limits, measured between the runs of the peers by the loops of peaks.c."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llmc.errors import LlmcError
from llmc.targets import TARGETS, host, toolchain

HERE = Path(__file__).resolve().parent
SECONDS = 0.003  # of one run of a loop


@dataclass(frozen=True)
class Kind:
    """One loop.

    Args:
        number: in peaks.c.
        what: the instruction, for tables.
        flags: Linux's names of what it needs.
        precision: of the products whose limit it is; empty for the memory stream.
        isa: "all", "avx2" or both: where it is the limit of what peers may use.
    """

    number: int
    what: str
    flags: frozenset[str]
    precision: str
    isa: tuple[str, ...]


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "fma256": Kind(0, "fma on 8 floats", frozenset({"avx2", "fma"}), "fp32", ("all", "avx2")),
        "fma512": Kind(1, "fma on 16 floats", frozenset({"avx512f"}), "fp32", ("all",)),
        "madd256": Kind(2, "vpmaddwd on 16 words", frozenset({"avx2"}), "int8", ("all", "avx2")),
        "vnni": Kind(3, "vpdpbusd on 64 bytes", frozenset({"avx512f", "avx512_vnni"}), "int8", ("all",)),
        "amx": Kind(4, "tdpbssd on tiles", frozenset({"amx_tile", "amx_int8"}), "int8", ("all",)),
        "stream": Kind(5, "triad in memory", frozenset(), "", ("all", "avx2")),
    }
)


def build(source: Path, folder: Path) -> ctypes.CDLL:
    """A C file of this folder as a loaded library, compiled once into `folder`.

    Raises:
        LlmcError: the compiler fails, or this is no x86-64.
    """
    if host.machine() != "x86_64":
        raise LlmcError("the loops that measure peaks are for x86-64", found=host.machine())
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    library = folder / f"{source.stem}-{digest}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        scratch = library.with_suffix(f".{os.getpid()}.so")
        flags = ["-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-pthread"]
        toolchain.build(scratch, [source], HERE, flags, [], TARGETS["x86"].zig)
        scratch.replace(library)
    return ctypes.CDLL(str(library))


def available(isa: str, flags: frozenset[str] | None = None) -> tuple[str, ...]:
    """Of KINDS those that this processor has and `isa` allows: the widest of fma, all of bytes, the stream."""
    have = host.host_flags() if flags is None else flags
    names = [name for name, kind in KINDS.items() if kind.flags <= have and isa in kind.isa]
    narrower = {"fma512": "fma256", "vnni": "madd256"}
    return tuple(name for name in names if name not in {narrower.get(other) for other in names})


class Peaks:
    """The loops of this machine.

    Args:
        folder: where the library is kept.
        isa: "all" or "avx2".

    Attributes:
        names: of the loops, keys of KINDS.
    """

    def __init__(self, folder: Path, isa: str) -> None:
        self._library: Any = build(HERE / "peaks.c", folder)
        self._library.peak_run.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long]
        self._library.peak_run.restype = self._library.peak_operations.restype = ctypes.c_double
        names = available(isa)
        if "amx" in names and not self._library.peak_allow_amx():
            names = tuple(name for name in names if name != "amx")
        self.names = names
        self._rounds = {name: self._count(KINDS[name].number) for name in names}

    def _count(self, number: int) -> int:
        """Rounds that take about SECONDS."""
        rounds = 1
        while rounds < 1 << 40:
            seconds = self._library.peak_run(number, 1, rounds)
            if seconds > SECONDS / 4:  # again: the system may have put this process aside
                best: float = min(self._library.peak_run(number, 1, rounds) for _ in range(5))
                if best > SECONDS / 8:
                    return max(1, round(rounds * SECONDS / best))
            rounds *= 2
        raise AssertionError("a loop takes no time")

    def run(self, name: str, threads: int) -> float:
        """Run a loop on `threads` threads; its seconds."""
        seconds: float = self._library.peak_run(KINDS[name].number, threads, self._rounds[name])
        if seconds < 0:
            raise LlmcError("cannot start a thread", at=f"the loop {name}")
        return seconds

    def work(self, name: str, threads: int) -> float:
        """Operations (of the stream: bytes) of one run; a multiply-add is two."""
        each: float = self._library.peak_operations(KINDS[name].number) * self._rounds[name]
        return each if name == "stream" else each * threads

    def of(self, precision: str, variant: str = "") -> str | None:
        """The loop that limits products of `precision`; of bytes, the one of the units that llmc's variant uses."""
        fitting = [name for name in self.names if KINDS[name].precision == precision]
        if "amx" in fitting and "amx" not in variant:
            fitting.remove("amx")
        return fitting[-1] if fitting else None
