"""Run generated CUDA source on the CPU: single kernels on NumPy buffers, or an artifact with a stand-in driver."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from kernel_lab import assert_guard, by_nodes, bytes_of, guarded

from llmc.compiler.calls import Call, Packed, every_call
from llmc.compiler.dims import evaluate
from llmc.compiler.graph import DTYPES, Graph, Node
from llmc.compiler.stored_once import store_once
from llmc.targets import TARGETS
from llmc.targets.cuda.build import PREAMBLE, cuda_source
from llmc.targets.cuda.lower import LOWERINGS
from llmc.targets.lowering import lower
from llmc.targets.toolchain import build

Array = np.ndarray[Any, Any]
HERE = Path(__file__).parent
ARGUMENTS = 48
_HEAD = re.compile(
    r'extern "C" __global__ void __launch_bounds__\((\d+)\) (\w+)\(([^()]*)\) \{(.*?)\n\}\n', re.S
)
_WAITS = ("__syncthreads", "__shfl", "wmma")
_FLAGS = ("-O1", "-shared", "-fPIC", "-s")
_KERNEL_FLAGS = (
    "-std=c++17",
    "-fno-exceptions",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-mavx2",
    "-mfma",
)


def _compile(output: Path, source: Path, *flags: str) -> None:
    build(output, [source], HERE, (*_FLAGS, *flags), (), TARGETS["cuda"].zig)


def emulated(source: str, folder: Path, name: str = "kernels") -> Path:
    """A shared object of CUDA source, with a table of its kernels."""
    assert source.startswith(PREAMBLE)
    entries = []
    for _, symbol, parameters, body in _HEAD.findall(source):
        kinds = "".join("*" if "*" in p else "n" for p in parameters.split(","))
        waits = int(any(word in body for word in _WAITS))
        entries.append(f'    {{"{symbol}", (void *){symbol}, {len(kinds)}, "{kinds}", {waits}}},')
        assert len(kinds) <= ARGUMENTS
    assert len(entries) == source.count("__launch_bounds__") // 2
    table = "\nextern const emu_kernel emu_kernels[] = {\n" + "\n".join(entries) + "\n    {0}\n};\n"
    path = folder / f"{name}.cpp"
    body = source[len(PREAMBLE) :].replace("__shared__ alignas(64)", "alignas(64) static")
    path.write_text('#include "emulate.h"\n' + body + table)
    _compile(folder / f"{name}.so", path, *_KERNEL_FLAGS, "-mf16c")
    return folder / f"{name}.so"


def stand_in(folder: Path) -> Path:
    """The folder that holds a libcuda.so.1 of ours."""
    folder.mkdir(parents=True, exist_ok=True)
    _compile(
        folder / "libcuda.so.1", HERE / "libcuda.c", "-std=c99", "-fvisibility=hidden", "-ldl", "-lpthread"
    )
    return folder


_RUN = """
import sys, json, numpy as np, llmc
cases = dict(np.load(sys.argv[2]))
names = json.loads(sys.argv[4])
with llmc.load(sys.argv[1]) as model:
    out = {}
    for i, given in enumerate(names):
        for name, value in model.run({n: cases[f"{i}/{n}"] for n in given}).items():
            out[f"{i}/{name}"] = value
np.savez(sys.argv[3], **out)
"""


def run_artifact(
    artifact: Path, cases: Sequence[Mapping[str, Array]], folder: Path, environment: Mapping[str, str]
) -> list[dict[str, Array]]:
    """Outputs of a CUDA artifact for each case, from a process of its own with `environment` set."""
    np.savez(folder / "in.npz", **{f"{i}/{n}": v for i, case in enumerate(cases) for n, v in case.items()})
    names = json.dumps([list(case) for case in cases])
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(artifact), str(folder / "in.npz"), str(folder / "out.npz"), names],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results: list[dict[str, Array]] = [{} for _ in cases]
    with np.load(folder / "out.npz") as file:
        for key in file.files:
            i, _, name = key.partition("/")
            results[int(i)][name] = file[key]
    return results


def calls_of(graph: Graph) -> dict[Any, Call]:
    """As a compile has them."""
    calls = lower(graph, LOWERINGS)
    return {call.operands[-1]: call for call in every_call(store_once({"": calls})[""])}


class GpuLab:
    """Kernels of some graphs, emulated, run one by one."""

    def __init__(self, folder: Path, graphs: Sequence[Graph]) -> None:
        self.calls = {node: call for graph in graphs for node, call in calls_of(graph).items()}
        kernels = {c.kernel.symbol: c.kernel for c in self.calls.values()}
        self.source = cuda_source({symbol: k.emit(symbol, None) for symbol, k in kernels.items()})
        self._library = ctypes.CDLL(str(emulated(self.source, folder)))
        self._library.emu_find.restype = ctypes.c_void_p
        self._library.emu_launch.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)

    def run(self, graph: Graph, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        """Outputs of one of the graphs; weights that products decode have no call."""

        def compute(node: Node, values: dict[Node, Array]) -> Array | None:
            return self._run(self.calls[node], values, sizes) if node in self.calls else None

        return by_nodes(graph, inputs, sizes, compute)

    def _run(self, call: Call, values: dict[Node, Array], sizes: Mapping[str, int]) -> Array:
        written = call.operands[-1]
        assert isinstance(written, Node)
        shape = [evaluate(d, sizes) for d in written.shape]
        output = guarded(np.zeros(shape, DTYPES[written.dtype]), fill=0xA5)
        reads = [
            guarded(o.pack(o.weight.array)) if isinstance(o, Packed) else values[o]
            for o in call.operands[:-1]
        ]
        assert len(reads) + 1 == len(call.kernel.pointers)
        assert len(call.scalars) == call.kernel.scalars
        arguments = (ctypes.c_uint64 * ARGUMENTS)()
        plain = [a.ctypes.data for a in (*reads, output)] + [evaluate(s, sizes) for s in call.scalars]
        for i, value in enumerate(plain):
            arguments[i] = value % 2**64
        found = self._library.emu_find(call.kernel.symbol.encode())
        before = [bytes_of(r) for r in reads]
        self._library.emu_launch(found, arguments, evaluate(call.items, sizes), call.kernel.threads)
        for read, held in zip(reads, before, strict=True):
            assert bytes_of(read) == held, f"{call.kernel.symbol} wrote to its input"
            assert_guard(read)
        assert_guard(output)
        return output
