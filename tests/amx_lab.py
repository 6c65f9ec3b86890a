"""Kernels for AMX on processors without it: each tile instruction is a call of `amx_emulator.c`.

All else is the kernel's own code, with AVX-512 VNNI. The emulator sees what a processor does not say: a tile read or
written outside of the kernel's operands, or a configuration left behind.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import instruction_sets
import kept
import numpy as np
import tvm
import tvm_ffi
from kernel_lab import Array, Lab, Lowerings, argument, machine_code
from tvm import tirx

from llmc.targets import Cpu, toolchain
from llmc.targets.cpu.variants import AVX512AMX, AVX512VNNI
from llmc.targets.tir.emit import dtype_of

SOURCE = Path(__file__).parent / "amx_emulator.c"
FLAGS = (
    "-std=gnu99",
    "-O2",
    "-march=x86_64_v4",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-pedantic",
    "-shared",
    "-fPIC",
)
INSTRUCTIONS = (
    "ldtilecfg",
    "tilerelease",
    "tilezero",
    "tileloadd64",
    "tilestored64",
    "tdpbusd",
    "tdpbsud",
    "tdpbf16ps",
)
TARGET = "x86_64-linux-gnu.2.17"


def why_not() -> str:
    """Why nothing is emulated here; empty if it is."""
    if not instruction_sets.lacking(AVX512AMX):
        return f"variant {AVX512AMX.name} emulated: this processor has it, and runs the tests of it"
    missing = instruction_sets.lacking(AVX512VNNI)
    return f"variant {AVX512AMX.name} emulated: this processor lacks {missing}" if missing else ""


@cache
def _called() -> dict[int, str]:
    """LLVM's number of an instruction -> the emulator's function."""
    lookup = tvm.target.codegen.llvm_lookup_intrinsic_id
    return {lookup(f"llvm.x86.{name}"): f"amx_{name}" for name in INSTRUCTIONS}


def emulated(function: Any) -> Any:
    """A PrimFunc with calls of the emulator for tile instructions."""

    def call(node: Any) -> Any:
        if getattr(node.op, "name", "") != "tirx.call_llvm_intrin":
            return node
        number, *arguments = node.args
        name = _called().get(int(number.value))
        if name is None:
            return node
        return tirx.call_extern("void", name, *map(_widened, arguments))

    return tvm_ffi.structural_map(function, (tvm.ir.Call, call))


def _widened(argument: Any) -> Any:
    """The number of a tile is an int8, and C wants to be told how those are passed."""
    is_tile = isinstance(argument, tirx.IntImm) and dtype_of(argument) == "int8"
    return tirx.const(int(argument.value), "int32") if is_tile else argument


def _library() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "libamx.so"
        toolchain.build(path, [SOURCE], path.parent, FLAGS, [], TARGET)
        return path.read_bytes()


class AmxLab(Lab):
    """A `Lab` whose kernels for AMX run on the emulator, and fail if it has a fault to tell.

    Attributes:
        amx: the emulator's functions.
        products: tile products of all calls.
    """

    def __init__(self, folder: Path, lowerings: Lowerings) -> None:
        super().__init__(folder, lowerings)
        path = folder / "libamx.so"  # kernels are linked with it
        made_by = (kept.sources(f"tests/{SOURCE.name}"), kept.versions("ziglang"), *FLAGS, TARGET)
        path.write_bytes(kept.made("libraries", made_by, _library))
        self.libraries.append(str(path))
        self.products = 0
        self.amx = ctypes.CDLL(str(path))
        self.amx.amx_end.restype = ctypes.c_char_p
        self.amx.amx_products.restype = ctypes.c_int64

    def note(self, code: Cpu) -> None:
        instruction_sets.note("emulated by" if code.tiles else "run by", code.name)

    def code(self, symbol: str, function: Any, cpu: Cpu) -> bytes:
        if not cpu.tiles:
            return super().code(symbol, function, cpu)
        return machine_code(symbol, emulated(function), replace(cpu, attributes=AVX512VNNI.attributes))

    def call(self, function: Any, arguments: Sequence[Array | int]) -> None:
        self.begin(*(array for array in arguments if isinstance(array, np.ndarray)))
        super().call(function, arguments)
        self.products += self.amx.amx_products()
        fault = self.end()
        assert not fault, fault

    def begin(self, *memory: Array) -> None:
        """From now on tiles are loaded from and stored to these."""
        self.amx.amx_begin()
        for array in memory:
            self.amx.amx_allow(argument(array), argument(array.nbytes))

    def end(self) -> str:
        """The first fault since `begin`."""
        fault: bytes = self.amx.amx_end()
        return fault.decode()
