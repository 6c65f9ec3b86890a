"""Damage the weights of an artifact, again and again, and count who refuses it.

    python bench/damage.py ARTIFACT [--count 1000] [--seed 0] [--processes 20]

A copy is damaged in one way at a time: a bit flipped, bytes written over, a page of zeros, an end that is missing,
bytes too many. `llmc.load(path)` and `llmc run path --selftest` must refuse every one; the first `--processes` runs
are processes of their own, the others calls of the same command. The program ends with 1 if one is let through.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import llmc
from llmc.cli import main as command
from llmc.errors import LlmcError

KINDS = ("a bit", "some bytes", "a page of zeros", "the end missing", "bytes too many")


@contextlib.contextmanager
def damaged(path: Path, kind: str, rng: random.Random) -> Iterator[None]:
    """The file with one damage; as before afterwards."""
    with path.open("r+b", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        length = {"a bit": 1, "some bytes": rng.randrange(1, 64)}.get(kind, 4096)
        at = size - length if kind == "the end missing" else rng.randrange(size - length)
        before = os.pread(file.fileno(), length, at)
        if kind == "the end missing":
            file.truncate(at)
        elif kind == "bytes too many":
            os.pwrite(file.fileno(), before, size)
        else:
            os.pwrite(file.fileno(), other_than(before, kind, rng), at)
        try:
            yield
        finally:
            os.pwrite(file.fileno(), before, at)
            file.truncate(size)


def other_than(before: bytes, kind: str, rng: random.Random) -> bytes:
    """What is written over `before`, in at least one bit another."""
    if kind == "a bit":
        return bytes([before[0] ^ 1 << rng.randrange(8)])
    made = bytes(len(before)) if kind == "a page of zeros" else rng.randbytes(len(before))
    return made if made != before else bytes([before[0] ^ 1]) + before[1:]


def load_refuses(folder: Path) -> bool:
    try:
        llmc.load(folder).close()
    except LlmcError:
        return True
    return False


def run_refuses(folder: Path, as_process: bool) -> bool:
    arguments = ["run", str(folder), "--selftest"]
    if as_process:
        start = "import sys; from llmc.cli import main; sys.exit(main())"
        return subprocess.run([sys.executable, "-c", start, *arguments], capture_output=True).returncode == 1
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return command(arguments) == 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=20)
    arguments = parser.parse_args()
    rng, loads, runs = random.Random(arguments.seed), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        folder = shutil.copytree(arguments.artifact, Path(place) / "copy.llmc")
        for number in range(arguments.count):
            kind = KINDS[number % len(KINDS)]
            with damaged(folder / "weights.bin", kind, rng):
                loads[kind] += load_refuses(folder)
                runs[kind] += run_refuses(folder, number < arguments.processes)
        whole = not load_refuses(folder) and not run_refuses(folder, as_process=True)
    for kind in KINDS:
        print(f"{kind:16} refused by llmc.load {loads[kind]}, by llmc run {runs[kind]}")
    print(f"of {arguments.count}: {loads.total()} refused by llmc.load, {runs.total()} by llmc run")
    print(f"the copy, as before at the end, {'runs' if whole else 'IS REFUSED'}")
    raise SystemExit(not whole or {loads.total(), runs.total()} != {arguments.count})


if __name__ == "__main__":
    main()
