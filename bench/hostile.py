"""What it costs to refuse each folder and file of tests/cli/test_hostile.py: seconds and memory of `llmc compile`.

    python bench/hostile.py [inspect]

Prints a line for each, and fails if one takes more than 5 s of a processor or 1 GB, leaves anything, or ends without
a sentence.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from llmc.demo import model_folder  # noqa: E402
from tests.cli.test_hostile import FILES, FOLDERS, copied  # noqa: E402  # the path comes first

SECONDS, BYTES = 5.0, 1 << 30
START = [sys.executable, "-c", "import sys; from llmc.cli import main; sys.exit(main())"]


def cost(command: str, path: Path, place: Path) -> tuple[float, int, str]:
    """Processor time, the most memory and what is wrong with how it ends."""
    more = ["-o", str(place / "out.llmc")] if command == "compile" else []
    with (place / "err").open("w+") as err:
        process = subprocess.Popen([*START, command, str(path), *more], stdout=subprocess.DEVNULL, stderr=err)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        err.seek(0)
        told = err.read()
    lines = [line for line in told.splitlines() if line.startswith("error: ")]
    fault = "" if process.returncode == 1 and len(lines) == 1 and "Traceback" not in told else told[-300:]
    left = [p.name for p in place.iterdir() if "llmc" in p.name]
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, fault or " ".join(left)


def made(name: str, place: Path) -> Any:
    """The folder or file of a case."""
    if name in FOLDERS:
        folder = copied(model_folder(), place)
        FOLDERS[name][0](folder)
        return folder
    file, damage, _ = FILES[name]
    (place / "a" / "b").mkdir(parents=True)
    damage(place / "a" / "b" / file)
    return place / "a" / "b" / file


def main() -> int:
    command = sys.argv[1] if len(sys.argv) > 1 else "compile"
    failed = 0
    for name in (*FOLDERS, *FILES):
        with tempfile.TemporaryDirectory() as folder:
            seconds, size, fault = cost(command, made(name, Path(folder)), Path(folder))
        bad = fault or seconds > SECONDS or size > BYTES
        failed += bool(bad)
        print(
            f"{'FAIL' if bad else 'ok':4} {seconds:5.1f} s {size / 1e6:7.0f} MB  {name}  {fault}".rstrip(),
            flush=True,
        )
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
