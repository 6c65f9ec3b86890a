"""Damage an artifact at random, again and again, and use it: run by test_damage.py in a process of its own.

Usage: mutate.py FOLDER files|manifest COUNT. Prints the number of refusals and of right runs as JSON; any
other outcome ends the process with a traceback or a signal.
"""

from __future__ import annotations

import copy
import json
import os
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from llmc import LlmcError
from llmc.runtime import load
from llmc.runtime.manifest import seal

UNDAMAGED = 40  # one of so many is left as it was
IDS = np.array([[1, 2, 3], [4, 5, 6]])
JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(2**63), 2**70, 0.5, -1e300, 1e308,
    "", "x", "x" * 3000, "\ud800", "\0", "../weights.bin", "f32", "i64", "batch", "seq", "0" * 64,
    [], [[]], [1, 2], [2, 1], {}, {"": {}}, {"bytes": 1, "sha256": "0" * 64}, {"name": "x"},
]  # fmt: skip


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    at, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 4, 64, 4096))
    noise = rng.randbytes(length)
    match rng.randrange(6):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + noise + data[at:]
        case 2:
            return data[:at] + data[at + length :]
        case 3:
            return data[:at] + bytes(length) + data[at + length :]
        case 4:
            return data + noise
        case _:
            return data[:at] + noise + data[at + length :]


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to everything in a JSON value but itself."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    found = []
    for key, child in children:
        found += [(*here, key), *places(child, (*here, key))]
    return found


def mutate_json(fields: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    fields = copy.deepcopy(fields)
    *way, last = rng.choice(places(fields))
    parent: Any = fields
    for key in way:
        parent = parent[key]
    match rng.randrange(4):
        case 0:
            del parent[last]
        case 1 if isinstance(parent, dict):
            parent[rng.choice(("x", "", last + "s"))] = parent.pop(last)
        case 2 if isinstance(parent[last], list):
            parent[last] = parent[last] * 2
        case _:
            parent[last] = rng.choice(JUNK)
    return fields


def put(folder: Path, name: str, data: bytes) -> None:
    """As a new file: the old one may be mapped."""
    temporary = folder / "temporary"
    temporary.write_bytes(data)
    os.replace(temporary, folder / name)


def use(folder: Path, expected: dict[str, np.ndarray]) -> str:
    """Everything a user might do with it."""
    try:
        with load(folder, threads=1) as model:
            found = model(input_ids=IDS)
            assert all(np.array_equal(found[n], e) for n, e in expected.items())
            str(model.labels), repr(model)
            model.selftest()
            model.run_text("a b")
    except LlmcError as error:
        return "refused" if len(str(error)) > 10 else "refused without a reason"
    return "ran"


def main(folder: Path, kind: str, count: int) -> None:
    rng, outcomes = random.Random(0), Counter[str]()
    with load(folder, threads=1) as model:
        expected = model(input_ids=IDS)
    names = sorted(p.name for p in folder.iterdir()) if kind == "files" else ["manifest.json"]
    for number in range(count):
        name = rng.choice(names)
        original = folder / name
        data = original.read_bytes()
        os.link(original, folder / "original")  # the same file afterwards, so that it is not loaded again
        if number % UNDAMAGED == 0:
            put(folder, name, data)
        elif kind == "files":
            put(folder, name, mutate_bytes(data, rng))
        else:
            fields = mutate_json(json.loads(data), rng)
            put(folder, name, json.dumps(seal(fields) if number % 2 else fields).encode())
        outcomes[use(folder, expected)] += 1
        os.replace(folder / "original", original)
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
