"""Damage to a real artifact, as runtime/test_damage.py does to a tiny one: an error or a right run, never a signal."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("small")]
MUTATE = Path(__file__).parents[1] / "runtime" / "mutate.py"


@pytest.mark.parametrize("kind", ["files", "manifest"])
def test_a_thousand_mutations(kind: str, copy_of_small: Path) -> None:
    done = subprocess.run(
        [sys.executable, MUTATE, copy_of_small, kind, "1000"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stderr}"
    outcomes = json.loads(done.stdout)
    assert sum(outcomes.values()) == 1000
    assert outcomes["refused"] > 600
    assert outcomes["ran"] >= 25  # one of 40 is not damaged
    assert set(outcomes) == {"refused", "ran"}


@pytest.mark.parametrize("command", [["run", "--input"], ["run", "--selftest"], ["inspect"]], ids=" ".join)
def test_the_command_line_on_damaged_files(
    command: list[str], copy_of_small: Path, tmp_path: Path, cli: Any
) -> None:
    """A byte or a tail of one file changed: the answer, or one sentence and exit code 1."""
    np.save(tmp_path / "ids.npy", np.array([[2, 3, 4]]))
    name, *options = command
    options += [f"input_ids={tmp_path / 'ids.npy'}"] if options == ["--input"] else []
    rng, codes = random.Random(1), []
    for _ in range(40):
        file = rng.choice(sorted(copy_of_small.iterdir()))
        data = file.read_bytes()
        at = rng.randrange(len(data))
        file.unlink()  # the old one may be mapped
        changed = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        file.write_bytes(rng.choice((data[:at], changed, data + b"\n")))
        result = cli(name, copy_of_small, *options)
        codes.append(result.code)
        assert result.code in (0, 1)
        assert (result.code == 1) == result.err.startswith("error: "), result.err
        assert "Traceback" not in result.err
        file.unlink()
        file.write_bytes(data)
    assert codes.count(1) > 5 or name == "inspect"  # which reads the manifest only
    assert cli(name, copy_of_small, *options).code == 0
