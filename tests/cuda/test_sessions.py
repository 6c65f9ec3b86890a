"""Sessions on a GPU, as the stand-in driver has one: ledger.c, a program with states and no compiler."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llmc.runtime.manifest import seal
from llmc.runtime.sources import FOLDER, MODULE_FLAGS, MODULE_LIBRARIES, MODULE_SOURCES
from llmc.runtime.weights import weights_header
from llmc.targets import TARGETS
from llmc.targets.cuda.build import PREAMBLE
from llmc.targets.toolchain import build

pytestmark = pytest.mark.xdist_group("cuda")
HERE = Path(__file__).parent
SOURCES = (HERE / "ledger.c", *MODULE_SOURCES, FOLDER / "cuda.c", FOLDER / "cuda_run.c")
BUILD_ID = "abcdefabcdefabcd" * 4
HEAD = (
    'extern "C" __global__ void __launch_bounds__(32) '
    "add_up(const long long *ids, const long long *total, long long *next, long long n)"
)
KERNEL = f"""
{HEAD};
{HEAD} {{
  if (threadIdx.x == 0) {{
    long long sum = total[0];
    for (long long i = 0; i < n; i++) sum += ids[i];
    next[0] = sum;
  }}
}}
"""

# What a process with the stand-in driver runs; `step` and `same` are for the scenarios.
PRELUDE = """
import sys, threading, numpy as np, llmc
model = llmc.load(sys.argv[1], max_memory=int(sys.argv[2]) or None)
class Ledger:
    def __init__(self): self.seen = np.zeros(0, np.int64); self.total = 0
    def step(self, ids):
        self.seen, self.total = np.concatenate([self.seen, ids]), self.total + ids.sum()
        return {"sum": np.array([self.total]), "history": self.seen, "both": np.stack([self.seen] * 2)}
def step(session, ledger, *ids):
    ids = np.array(ids)
    found = session(ids=ids)
    for name, value in ledger.step(ids).items():
        assert np.array_equal(found[name], value), (name, found[name], value)
def refused(call):
    try: call()
    except llmc.LlmcError as error: return str(error)
    raise AssertionError("nothing was raised")
"""


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory, gpu_lab: ModuleType) -> Callable[..., str]:
    """`scenario(code, max_memory, environment...)`: what a process that runs `code` prints."""
    place = tmp_path_factory.mktemp("ledger")
    folder = place / "ledger.llmc"
    folder.mkdir()
    build(
        folder / "module.so",
        SOURCES,
        FOLDER,
        (*MODULE_FLAGS, "-Wall", "-Werror"),
        (*MODULE_LIBRARIES, "-ldl"),
        TARGETS["cuda"].zig,
    )
    (folder / "weights.bin").write_bytes(weights_header(BUILD_ID, 64) + bytes(64))
    (folder / "manifest.json").write_text(json.dumps(seal(_manifest(folder))))
    environment = {
        "LD_LIBRARY_PATH": str(gpu_lab.stand_in(place)),
        "LLMC_EMULATED_KERNELS": str(gpu_lab.emulated(PREAMBLE + KERNEL, place)),
    }

    def run(code: str, max_memory: int = 0, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + code, str(folder), str(max_memory)],
            env={**os.environ, **environment, **more},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        return done.stdout

    return run


def _manifest(folder: Path) -> dict[str, Any]:
    files = {
        p.name: {"bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for p in folder.iterdir()
    }
    outputs = (("sum", [1]), ("history", ["past + seq"]), ("both", [2, "past + seq"]))
    states = (("total", [1], None), ("seen", ["past"], 0), ("pairs", [2, "past"], 1))
    return {
        "format": 2,
        "llmc": "0.1.0",
        "name": "ledger",
        "build_id": BUILD_ID,
        "task": "",
        "functions": [
            {
                "name": "step",
                "inputs": [{"name": "ids", "dtype": "i64", "shape": ["seq"]}],
                "outputs": [{"name": n, "dtype": "i64", "shape": s} for n, s in outputs],
            }
        ],
        "states": [{"name": n, "dtype": "i64", "shape": s, "grows": g} for n, s, g in states],
        "dims": {"seq": [1, 8], "past": [0, 100]},
        "target": "cuda",
        "variants": [{"name": "cuda", "features": []}],
        "pipeline": "",
        "quantisation": "none",
        "files": files,
        "postprocess": {},
        "sizes": {},
    }


def test_a_sequence(scenario: Callable[..., str]) -> None:
    """Growing many times, reset, at other lengths; the memory is the device's."""
    code = """
with model.session() as session:
    for _ in range(2):
        ledger = Ledger()
        for n in range(1, 12): step(session, ledger, *range(n % 8 + 1))
        assert session.lengths == {"past": len(ledger.seen)}
        session.resize(past=5)
        ledger.seen = ledger.seen[:5]
        step(session, ledger, 7)
        session.resize(past=40)
        ledger.seen = np.concatenate([ledger.seen, np.zeros(34, int)])
        step(session, ledger, 9, 9)
        session.reset()
    print(session.memory_bytes > 2000)
"""
    assert scenario(code) == "True\n"


@pytest.mark.parametrize("threads", ["None", "1"])
def test_sessions_at_once(scenario: Callable[..., str], threads: str) -> None:
    code = f"""
def play(seed):
    rng = np.random.default_rng(seed)
    with model.session({threads}) as session:
        for _ in range(5):
            ledger = Ledger()
            while len(ledger.seen) < 90: step(session, ledger, *rng.integers(0, 100, rng.integers(1, 8)))
            session.reset()
    sys.stdout.write("good\\n")
players = [threading.Thread(target=play, args=(i,)) for i in range(4)]
for p in players: p.start()
for p in players: p.join()
"""
    assert scenario(code) == "good\n" * 4


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("cuLaunchKernel:700", "launch a kernel: an illegal memory access"),
        ("cuMemcpyDtoDAsync_v2:700", "copy a value"),
        ("cuMemcpyDtoHAsync_v2:700", "give an output"),
        ("cuMemsetD8Async:1", "copy a state: invalid value"),
    ],
)
def test_a_failed_run_changes_nothing(scenario: Callable[..., str], function: str, sentence: str) -> None:
    """The driver fails from the second call on."""
    code = f"""
import ctypes
libc = ctypes.CDLL(None)
session, ledger = model.session(), Ledger()
if "Memset" not in {function!r}: step(session, ledger, 1, 2)
libc.setenv(b"LLMC_EMULATED_FAIL", {function!r}.encode(), 1)
text = refused(lambda: session(ids=[5]))
libc.unsetenv(b"LLMC_EMULATED_FAIL")
step(session, ledger, 3)
print(text)
"""
    assert sentence in scenario(code)


def test_memory_bound(scenario: Callable[..., str]) -> None:
    code = """
session, ledger = model.session(), Ledger()
text = refused(lambda: [step(session, ledger, *range(8)) for _ in range(12)])
assert session.lengths == {"past": len(ledger.seen)} and len(ledger.seen) >= 8
session.resize(past=5)
ledger.seen = ledger.seen[:5]
step(session, ledger, 2)
session.reset()
step(session, Ledger(), 1, 2, 3)
print(text)
"""
    assert "the sessions of the model would hold" in scenario(code, 4000)


def test_out_of_memory(scenario: Callable[..., str]) -> None:
    code = """
import ctypes
libc = ctypes.CDLL(None)
session, ledger = model.session(), Ledger()
step(session, ledger, 1, 2)
libc.setenv(b"LLMC_EMULATED_FAIL", b"cuMemAlloc_v2:2", 1)
text = refused(lambda: [step(session, ledger, *range(8)) for _ in range(12)])
libc.unsetenv(b"LLMC_EMULATED_FAIL")
step(session, ledger, 2)
print(text)
"""
    assert "could not find memory: out of memory" in scenario(code)


def test_memory_is_given_back(scenario: Callable[..., str]) -> None:
    """The stand-in has room for 256 allocations and 64 streams at a time."""
    code = """
for _ in range(100):
    with model.session() as session: step(session, Ledger(), 1, 2, 3)
print("good")
"""
    assert scenario(code) == "good\n"


def test_fork_save_and_load(scenario: Callable[..., str], tmp_path: Path) -> None:
    """States lie in the GPU's memory: a fork copies them there, a file has them by way of the host."""
    code = f"""
with model.session() as session:
    ledger = Ledger()
    step(session, ledger, 3, 4)
    session.save({str(tmp_path / "s")!r})
    other, twin = session.fork(), Ledger()
    twin.seen, twin.total = ledger.seen, ledger.total
    step(session, ledger, 5)
    step(other, twin, 6, 7)
    step(session, ledger, 8)
    session.load({str(tmp_path / "s")!r})
    again = Ledger()
    again.step(np.array([3, 4]))
    step(session, again, 9)
    told = refused(lambda: session.rewind(1))
    assert "keeps no trace of what it was" in told, told
    session.rewind(0)
    step(session, Ledger(), 1)
print("done")
"""
    assert scenario(code) == "done\n"
