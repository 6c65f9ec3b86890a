"""What searches found, kept as one small JSON file for each product and processor, for people to read too.

A file is named by a digest of all that the result depends on: the processor, the instruction set, the product, the
numbers of rows it was run for, what there is to try, and the code of the default kernel. What is found in a file is
believed only if it says the same of itself and its schedule suits the kernel; else it counts as missing, and is
written again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llmc.targets import store
from llmc.targets.cpu.products.blocking import ProductShape, Schedule
from llmc.targets.cpu.products.linear import emit_linear
from llmc.targets.host import Processor
from llmc.targets.target import Cpu
from llmc.targets.tuning.search import Outcome, changes, takes

FOLDER = "tuned"


@dataclass(frozen=True)
class Records:
    """Outcomes in a folder; without one, or with one that cannot be used, nothing is kept.

    Args:
        place: the folder, made when first written to.
        processor: what was measured on.
        cpu: the instruction set of the code.
    """

    place: Path | None
    processor: Processor
    cpu: Cpu

    def get(self, shape: ProductShape, rows: Sequence[int], seconds: float) -> Outcome | None:
        """What a search found that had time enough, or at least `seconds`."""
        if self.place is None:
            return None
        about = self._about(shape, rows)
        try:
            found = json.loads(self._path(about).read_bytes())
            outcome = _outcome(found["found"])
            spent = float(found["seconds"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        known = {key: found.get(key) for key in about} == about and self._suits(shape, outcome.schedule)
        return outcome if known and (outcome.complete or spent >= seconds) else None

    def put(self, shape: ProductShape, rows: Sequence[int], seconds: float, outcome: Outcome) -> None:
        """Keep what a search found in the `seconds` it was given."""
        if self.place is None:
            return
        about = self._about(shape, rows)
        found = {**dataclasses.asdict(outcome), "schedule": choices(outcome.schedule)}
        text = json.dumps({**about, "seconds": seconds, "found": found}, indent=1)
        store.write(self._path(about), f"{text}\n".encode())

    def _about(self, shape: ProductShape, rows: Sequence[int]) -> dict[str, Any]:
        """Everything that an outcome depends on, as JSON values."""
        about = {
            "cpu": {**dataclasses.asdict(self.processor), "variant": self.cpu.name},
            "kernel": {"family": "linear", **dataclasses.asdict(shape)},
            "rows": list(rows),
            "tries": store.key(repr(changes(shape, self.cpu)))[:16],
            "code": _code(shape, self.cpu),
        }
        plain: dict[str, Any] = json.loads(json.dumps(about))
        return plain

    def _path(self, about: Mapping[str, Any]) -> Path:
        assert self.place is not None
        return self.place / f"{store.key(json.dumps(about, sort_keys=True))[:40]}.json"

    def _suits(self, shape: ProductShape, schedule: Schedule) -> bool:
        fits = takes(self.cpu, schedule)
        return fits and (schedule == Schedule.default(shape.n) or schedule.cpu == self.cpu.name)


@cache
def _code(shape: ProductShape, cpu: Cpu) -> str:
    """Names the code of the default kernel."""
    function = emit_linear(
        "kernel",
        cpu,
        n=shape.n,
        k=shape.k,
        schedule=Schedule.default(shape.n),
        epilogue=shape.epilogue,
        dtype=shape.dtype,
    )
    from llmc.targets.cpu.build import content_version

    return content_version(function)


def choices(schedule: Schedule) -> dict[str, Any]:
    """The fields of a schedule that say something."""
    return {name: value for name, value in dataclasses.asdict(schedule).items() if value}


def _outcome(found: Mapping[str, Any]) -> Outcome:
    """An outcome out of JSON values.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    schedule = found["schedule"]
    for name, value in schedule.items():
        if name == "cpu":
            continue
        if type(value) is not int or not 0 < value < 1 << 30:
            raise ValueError(name)
    ratio, low, high = (float(found[name]) for name in ("ratio", "low", "high"))
    if not all(0 < number < 1e3 for number in (ratio, low, high)) or type(found["complete"]) is not bool:
        raise ValueError("ratio")
    return Outcome(Schedule(**schedule), ratio, low, high, int(found["tried"]), found["complete"])
