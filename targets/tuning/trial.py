"""Kernels of one product on this machine, run in turns."""

from __future__ import annotations

import ctypes
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llmc.compiler.calls import Call
from llmc.compiler.dims import evaluate, symbol
from llmc.compiler.graph import DTYPES
from llmc.compiler.ops import constant, input_, make
from llmc.targets import store, toolchain
from llmc.targets.cpu.products.blocking import ProductShape, Schedule
from llmc.targets.cpu.products.linear import lower_linear
from llmc.targets.target import Cpu, Target

Array = np.ndarray[Any, Any]

WEIGHTS = 32 << 20  # bytes of weights that runs take in turn: as in a model of many layers, none waits in L2
SAMPLE = 200e-6  # seconds of a sample at least; shorter runs are repeated


class Trial:
    """Times a product by different schedules; it is a `search.Measure`.

    Args:
        rows: numbers of rows to run it for.
        target: whose code for `cpu`, which this machine can run, is measured.
        clock: nanoseconds; that of this thread stands still while another process has the core.
    """

    def __init__(
        self,
        shape: ProductShape,
        rows: Sequence[int],
        target: Target,
        cpu: Cpu,
        kept: store.Store,
        clock: Callable[[], int] = time.thread_time_ns,
    ) -> None:
        self.shape, self.rows, self.cpu, self.kept, self.clock = shape, rows, cpu, kept, clock
        self.target = replace(target, cpus=(cpu,))
        self._kernels: dict[Schedule, _Kernel] = {}
        self._memory = _Memory(shape, max(rows))

    def __call__(self, schedules: Sequence[Schedule], rounds: int) -> Array:
        """Ratios `[schedule, round, number of rows]` of the times by `schedules` and by the default."""
        default = Schedule.default(self.shape.n)
        self._build([default, *schedules])
        base, others = self._kernels[default], [self._kernels[s] for s in schedules]
        ratios = np.empty((len(others), rounds, len(self.rows)))
        for j, m in enumerate(self.rows):
            repeats = math.ceil(SAMPLE / self._sample(base, m, 2))
            for kernel in others:
                self._sample(kernel, m, 1)  # its code comes into the cache
            for turn in range(rounds):
                for i, kernel in enumerate(others):
                    ratios[i, turn, j] = self._ratio(kernel, base, m, repeats, bool((turn + i) % 2))
        return ratios

    def _ratio(self, kernel: _Kernel, base: _Kernel, m: int, repeats: int, first: bool) -> float:
        """Of two samples next to each other, in either order: one finds warm what the other left."""
        if first:
            own = self._sample(kernel, m, repeats)
            return own / self._sample(base, m, repeats)
        other = self._sample(base, m, repeats)
        return self._sample(kernel, m, repeats) / other

    def _sample(self, kernel: _Kernel, m: int, repeats: int) -> float:
        """Seconds of one run."""
        runs = [kernel.arguments(self._memory, m) for _ in range(repeats)]
        start = self.clock()
        for arguments in runs:
            kernel.function(*arguments)
        return max(self.clock() - start, 1) * 1e-9 / repeats

    def _build(self, schedules: Sequence[Schedule]) -> None:
        """Compile what is not there yet and load it."""
        missing = [s for s in dict.fromkeys(schedules) if s not in self._kernels]
        if not missing:
            return
        calls = [_call(self.shape, schedule) for schedule in missing]
        from llmc.targets.cpu.build import compile_calls

        objects = compile_calls(calls, self.target, self.kept)
        with tempfile.TemporaryDirectory(prefix="llmc-") as place:
            files = [Path(place) / f"{name}.o" for name in objects]
            for file, code in zip(files, objects.values(), strict=True):
                file.write_bytes(code)
            library = Path(place) / "trial.so"
            toolchain.build(library, files, Path(place), ["-shared"], [], self.target.zig)
            loaded = ctypes.CDLL(str(library))
        for schedule, call in zip(missing, calls, strict=True):
            function = loaded[f"{call.kernel.symbol}_{self.cpu.name}"]
            self._kernels[schedule] = _Kernel(function, call, schedule.width)


def _call(shape: ProductShape, schedule: Schedule) -> Call:
    """The product by a schedule, for `m` rows."""
    m = symbol("m")
    extras = {
        "bias": constant(np.zeros(shape.n, np.float32)),
        "residual": input_("residual", "f32", (m, shape.n)),
    }
    weight = constant(np.zeros((shape.n, shape.k), DTYPES[shape.dtype]))
    given = (extras[step] for step in shape.epilogue if step in extras)
    x = input_("x", "f32", (m, shape.k))
    return lower_linear(make("linear", (x, weight, *given), epilogue=shape.epilogue), schedule)


class _Memory:
    """Operands of all kernels of a product. Their values do not matter to the time as long as they are ordinary."""

    def __init__(self, shape: ProductShape, rows: int) -> None:
        self.shape, item = shape, DTYPES[shape.dtype].itemsize
        widest = -(-shape.n // 64) * 64 + 64
        self.weights = _random(DTYPES[shape.dtype], WEIGHTS // item + shape.k * widest)
        self.x, self.out = _random(np.float32, rows * shape.k), _random(np.float32, rows * shape.n)
        self.extras = {"bias": _random(np.float32, widest), "residual": _random(np.float32, rows * shape.n)}
        self._turn = 0

    def weight(self, width: int) -> int:
        """The address of the next of the copies of the packed weight."""
        size = -(-self.shape.n // width) * width * self.shape.k * self.weights.itemsize
        size = -(-size // 64) * 64
        self._turn += 1
        return int(self.weights.ctypes.data) + self._turn % max(1, WEIGHTS // size) * size


class _Kernel:
    """A loaded kernel and what it is called with."""

    def __init__(self, function: Any, call: Call, width: int) -> None:
        self.function, self.call, self.width = function, call, width
        self.scratch = _random(np.float32, call.kernel.scratch // 4)
        self._items: dict[int, int] = {}

    def arguments(self, memory: _Memory, m: int) -> list[Any]:
        """Of one run over all items."""
        if m not in self._items:
            self._items[m] = evaluate(self.call.items, {"m": m})
        extras = [memory.extras[s] for s in memory.shape.epilogue if s in memory.extras]
        x, *others = (int(a.ctypes.data) for a in (memory.x, *extras, memory.out))
        held = [int(self.scratch.ctypes.data)] if self.call.kernel.scratch else []
        values = [x, memory.weight(self.width), *others, m, *held, 0, self._items[m]]
        return [ctypes.c_int64(value) for value in values]  # pointers are passed alike


def _random(dtype: Any, count: int) -> Array:
    """Numbers of the size of 1, aligned to 64 bytes."""
    memory = np.empty(count * np.dtype(dtype).itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    array: Array = memory[start : start + count * np.dtype(dtype).itemsize].view(dtype)
    array[:] = np.resize(np.random.default_rng(1).normal(size=4093).astype(dtype), count)
    return array
