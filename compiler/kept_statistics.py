"""What calibration gathers, kept as it goes: a run that was killed goes on, and parts of the data are merged.

Each walk over the samples has a file, `walk1.npz` and so on (`statistics_file.py`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmc.compiler.gathering import WaitsForParts, Walk
from llmc.compiler.given import Sample
from llmc.compiler.statistics_file import Facts, Kept, read, write
from llmc.errors import LlmcError

SECONDS = 5.0  # between two writings, at least
_SHARE = 20  # of the time, at most one part in so many is spent on writing
_OURS = re.compile(r"walk\d+\.npz(\..*\.part)?")


@dataclass
class Statistics:
    """Keeps the walks of a compile: a `given.Keeper`. Its folder is locked as long as it is open.

    Args:
        own: the folder that is written to; None: nothing is kept.
        others: folders of parts that are merged in.
        parts: how many parts there are in all: a walk waits until they are there.
        say: called with a line for each walk that goes on where another run was, and for each that is merged.
        waits: what was raised first where parts are lacking: a pass's errors are told as the pipeline's.
    """

    own: Path | None = None
    others: Sequence[Path] = ()
    parts: int = 1
    say: Callable[[str], None] = lambda line: None
    after: str = ""
    waits: WaitsForParts | None = None
    walks: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def opened(self) -> Iterator[Statistics]:
        """Hold the folder, which is made if it is not there.

        Raises:
            LlmcError: it cannot be, holds other things, or another run writes to it.
        """
        if self.own is None:
            yield self
            return
        try:
            self.own.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.own, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            at = str(self.own)
            raise LlmcError(f"calibration: cannot keep statistics: {error.strerror}", at=at) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._clean(self.own)
            yield self
        except BlockingIOError:
            raise LlmcError(
                "calibration: another run keeps its statistics there", at=str(self.own), hint="wait for it"
            ) from None
        finally:
            os.close(lock)

    def _clean(self, own: Path) -> None:
        """Without what killed runs had begun to write."""
        for path in own.iterdir():
            if not _OURS.fullmatch(path.name):
                hint = "name a folder that is new, or empty"
                raise LlmcError(
                    "calibration: the folder holds other things", at=str(own), found=path.name, hint=hint
                )
            if path.suffix == ".part":
                path.unlink()

    def record(self, walk: Walk) -> Record:
        """Of the next walk.

        Raises:
            LlmcError: what is there is of another model, or of other options; or a part was not seen to its end.
            WaitsForParts: a part has nothing of this walk, and nothing can be gathered until it has.
        """
        self.walks.append(
            {"walk": len(self.walks) + 1, "kind": walk.kind, "there": 0, "added": 0, "merged": 0}
        )
        record = Record(self, walk, self.walks[-1])
        for folder in self.others:
            record.look(folder)
        if self.own is None and record.lacking is not None:
            raise record.lacking
        return record


class Record:
    """One walk: a `given.Recorder`."""

    def __init__(self, kept: Statistics, walk: Walk, told: dict[str, Any]) -> None:
        self._kept, self._walk, self._told = kept, walk, told
        self._file = None if kept.own is None else kept.own / self._name
        self._others: list[Kept] = []
        self.lacking: WaitsForParts | None = None
        self._data, self._count, self._known = hashlib.blake2b(digest_size=20), 0, False
        self._whole = True  # whether all sites have seen the same samples
        self._ended = False  # whether the file has all samples there are
        self._written, self._pause = time.monotonic(), SECONDS

    @property
    def _name(self) -> str:
        return f"walk{self._told['walk']}.npz"

    # --- of other parts

    def look(self, folder: Path) -> None:
        """Find what a part has of this walk."""
        files = sorted(folder.glob("walk*.npz"))
        if not files:
            hint = "llmc calibrate MODEL --calib FILE --calib-stats FOLDER writes some"
            raise LlmcError("calibration: there are no statistics", at=str(folder), hint=hint)
        found = [kept for kept in map(read, files) if kept.facts.key == self._walk.key]
        if not found:
            self.lacking = self.lacking or self._lack(folder)
            return
        if not found[0].facts.complete:
            raise LlmcError(
                "calibration: a part was not gathered to its end",
                at=str(found[0].path),
                found=f"{found[0].facts.samples} samples so far",
                hint="run the command that wrote it again: it goes on",
            )
        _ = found[0].arrays  # damage shows before samples are run
        self._others.append(found[0])

    def _lack(self, folder: Path) -> WaitsForParts:
        """Why a part has nothing of this walk: it is not so far, or was gathered after others than we were.

        Raises:
            LlmcError: what it has is of another model, or of other options.
        """
        file = folder / self._name
        there = read(file) if file.exists() else None
        if there is not None and there.facts.after == self._kept.after:
            raise self._refused(there)
        number = self._told["walk"]
        hint = "gather it from that part's data: llmc calibrate, with all other parts as --calib-merge"
        if there is None:
            problem = f"calibration: a part has nothing of walk {number} yet"
        else:
            problem = (
                f"calibration: walk {number} of a part is by what walk {number - 1} found in other samples"
            )
            hint = f"are all parts given? else {hint}"
        return WaitsForParts(problem, at=str(folder), hint=hint)

    def _refused(self, kept: Kept) -> LlmcError:
        return LlmcError(
            "calibration: the statistics are of another model, or of other options",
            at=str(kept.path),
            found=kept.facts.difference(self._walk),
            hint="give the model and the options that they were gathered with, or another folder",
        )

    # --- of one's own

    def resume(self, samples: Iterator[Sample]) -> int:
        """Take up what is there: how many samples, which are read and not run again.

        Raises:
            LlmcError: it is damaged, of another model, of other options, or of other samples.
        """
        self._known = True
        kept = self._found()
        if kept is None:
            return 0
        _ = kept.arrays  # damage shows first
        for _, sample in zip(range(kept.facts.samples), samples, strict=False):
            self._see(sample)
        if (self._count, self._data.hexdigest()) != (kept.facts.samples, kept.facts.data):
            raise LlmcError(
                "calibration: the statistics are of other samples",
                at=str(kept.path),
                found=f"{kept.facts.samples} samples, which are not the first of --calib",
                hint="give the data that they were gathered from, to which samples may be added, or another folder",
            )
        for number, seen in enumerate(self._walk.seen):
            kept.put(number, seen)
        self._told["there"] = self._count
        self._ended = kept.facts.complete
        self._kept.say(f"calibration: walk {self._told['walk']}: {self._count} samples were there")
        return self._count

    def _found(self) -> Kept | None:
        """What the folder has of this walk."""
        if self._file is None or not self._file.exists():
            return None
        kept = read(self._file)
        if kept.facts.key == self._walk.key:
            return kept
        if kept.facts.after == self._kept.after:
            raise self._refused(kept)
        number = self._told["walk"]
        self._kept.say(f"calibration: walk {number} begins anew, as walk {number - 1} has seen other samples")
        return None

    def _see(self, sample: Sample) -> None:
        for name, value in sorted(sample.items()):
            self._data.update(f"{name}\0{value.dtype} {value.shape}\0".encode())
            self._data.update(np.ascontiguousarray(value).tobytes())
        self._count += 1

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *raised: Any) -> None:
        """What was seen before an error or an interrupt is kept."""
        if raised[0] is not None and self._whole and self._told["added"]:
            self._write(complete=False)

    @contextmanager
    def adding(self, sample: Sample) -> Iterator[None]:
        """Around what adds a sample to the statistics."""
        self._whole = False
        yield
        self._see(sample)
        self._told["added"] += 1
        self._whole = True
        if time.monotonic() - self._written >= self._pause:
            self._write(complete=False)

    def end(self) -> None:
        """There are no samples more."""
        if self._told["added"] or not self._ended:
            self._write(complete=True)

    def _write(self, complete: bool) -> None:
        if self._file is None:
            return
        began, walk, data = time.monotonic(), self._walk, self._data.hexdigest()
        facts = (walk.kind, walk.key, list(walk.names), walk.weights, self._count, data, complete)
        write(self._file, Facts(*facts, after=self._kept.after), walk.seen)
        self._written = time.monotonic()
        self._pause = max(SECONDS, _SHARE * (self._written - began))

    # --- together

    def merge(self) -> None:
        """Merge all parts, in an order that is not that in which they are given: whoever merges them has the same bits.

        Raises:
            LlmcError: two parts are the same samples.
            WaitsForParts: there are not all yet.
        """
        if self.lacking is not None:
            raise self._waits(self.lacking)
        parts: dict[str, Kept | None] = {self._data.hexdigest(): None} if self._known else {}
        for kept in self._others:
            if kept.facts.data in parts:
                other = parts[kept.facts.data]
                at = f"{self._kept.own or '--calib' if other is None else other.path.parent}, {kept.path.parent}"
                hint = "give each part once"
                raise LlmcError("calibration: two parts are of the same samples", at=at, hint=hint)
            parts[kept.facts.data] = kept
        if len(parts) < self._kept.parts:
            found = f"{len(parts)} of {self._kept.parts}"
            hint = "give the folders of the others as --calib-merge"
            lacking = WaitsForParts("calibration: there are not all parts yet", found=found, hint=hint)
            raise self._waits(lacking)
        if self._others:
            self._join([parts[data] for data in sorted(parts)])
        said = " ".join([self._kept.after, *sorted(parts)])
        self._kept.after = hashlib.sha256(said.encode()).hexdigest()

    def _waits(self, lacking: WaitsForParts) -> WaitsForParts:
        self._kept.waits = self._kept.waits or lacking
        return lacking

    def _join(self, parts: Sequence[Kept | None]) -> None:
        """One site after the other, so that one statistic more is in memory at a time; None: what was seen here."""
        for number, seen in enumerate(self._walk.seen):
            total = seen.empty()
            for kept in parts:
                part = seen if kept is None else seen.empty()
                if kept is not None:
                    kept.put(number, part)
                total.merge(part)
            seen.take(total.parts())
        self._told["merged"] = sum(kept.facts.samples for kept in self._others)
        number, count = self._told["walk"], self._told["merged"] + self._count
        self._kept.say(f"calibration: walk {number}: {count} samples of {len(parts)} parts are merged")
