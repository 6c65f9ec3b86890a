"""The instruction sets that CPU kernels are compiled for, and the targets that have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from llmc.targets.target import LINUX_ARM, LINUX_X86, Cpu, Target

# Families of kernels that multiply integers.
ATTENTION = frozenset({"int8_attention", "ragged_int8_attention"})
TILED_BLOCKS = "int16_blockwise8"  # `int16_blockwise` of 8 bits
BLOCKS = frozenset({"int16_blockwise", "int8_blockwise", TILED_BLOCKS})
SKIPPING = frozenset({"sparse_qlinear"})  # lines of bytes, which no tile can take
FLOATS = "bf16_linear"  # of tiles too, else by float32
INTEGER = ATTENTION | BLOCKS | SKIPPING | {"qlinear", "qconv2d", "split_linear", "int16_linear"}


# Linux's names of the features behind each LLMC_CPU_* bit of runtime/c/module.h.
FLAGS: Mapping[int, frozenset[str]] = MappingProxyType(
    {
        0x001: frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2", "movbe"}),
        0x002: frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
        0x004: frozenset({"avx512_vnni"}),
        0x008: frozenset({"amx_tile", "amx_int8", "amx_bf16"}),
        0x010: frozenset({"avx_vnni"}),
        0x100: frozenset({"asimd"}),
        0x200: frozenset({"asimddp"}),
        0x400: frozenset({"asimdhp"}),
        0x800: frozenset({"i8mm"}),
    }
)

# prefer-256-bit would split the 16-lane vectors that kernels are written in.
AVX512 = Cpu("avx512", "x86-64-v4", ("-prefer-256-bit",), 0b011, "AVX-512 F, BW, CD, DQ and VL", 32, 16)
AVX512VNNI = Cpu(
    "avx512vnni",
    "x86-64-v4",
    ("+avx512vnni", "-prefer-256-bit"),
    0b111,
    "AVX-512 F, BW, CD, DQ, VL and VNNI",
    32,
    16,
    dots=True,
    own=INTEGER,
    base=AVX512,
)
AVX512AMX = replace(
    AVX512VNNI,
    name="avx512amx",
    attributes=("+avx512vnni", "+amx-tile", "+amx-int8", "+amx-bf16", "-prefer-256-bit"),
    features=0b1111,
    needs="AVX-512 with VNNI and AMX",
    tiles=True,
    own=INTEGER - ATTENTION - BLOCKS - SKIPPING | {TILED_BLOCKS, FLOATS},
    base=AVX512VNNI,
)
AVX2 = Cpu("avx2", "x86-64-v3", (), 0b001, "AVX2 and FMA", 16, 8)
AVX2VNNI = replace(
    AVX2,
    name="avx2vnni",
    attributes=("+avxvnni",),
    features=0b10001,
    needs="AVX2, FMA and AVX-VNNI",
    dots=True,
    own=INTEGER,
    base=AVX2,
)

# LLMC_CPU_NEON, _DOTPROD, _FP16 and _I8MM are bits 8 to 11.
_DOT = "NEON and dot product"
NEON = Cpu("neon", "generic", ("+neon",), 0x100, "NEON", 32, 4, "aarch64")
DOTPROD = Cpu(
    "dotprod",
    "generic",
    ("+neon", "+dotprod"),
    0x300,
    _DOT,
    32,
    4,
    "aarch64",
    dots=True,
    own=BLOCKS | SKIPPING | {"qlinear", "qconv2d", "int16_linear"},
    base=NEON,
)
A72 = Cpu("a72", "cortex-a72", (), 0x100, "NEON", 32, 4, "aarch64")
A76 = Cpu("a76", "cortex-a76", (), 0x700, f"{_DOT}, FP16", 32, 4, "aarch64", dots=True)
N1 = Cpu("n1", "neoverse-n1", (), 0x700, f"{_DOT}, FP16", 32, 4, "aarch64", dots=True)
# SVE is left out: kernels are written for vectors of a fixed length.
V1 = Cpu("v1", "neoverse-v1", ("-sve",), 0xF00, f"{_DOT}, FP16, I8MM", 32, 4, "aarch64", dots=True)

_ALL = (
    Target(
        "x86",
        "any x86-64 with AVX2, AVX-512 used where present",
        *LINUX_X86,
        (AVX512AMX, AVX512VNNI, AVX512, AVX2VNNI, AVX2),
    ),
    Target("x86-avx512", "x86-64 with AVX-512", *LINUX_X86, (AVX512AMX, AVX512VNNI, AVX512)),
    Target("x86-avx2", "x86-64 with AVX2 and FMA", *LINUX_X86, (AVX2VNNI, AVX2)),
    Target("arm", "any 64-bit ARM, dot product used where present", *LINUX_ARM, (DOTPROD, NEON)),
    Target("arm-neon", "any 64-bit ARM", *LINUX_ARM, (NEON,)),
    Target("arm-dotprod", "64-bit ARM with dot product (from v8.2)", *LINUX_ARM, (DOTPROD,)),
    Target("rpi4", "Raspberry Pi 4 (Cortex-A72)", *LINUX_ARM, (A72,)),
    Target("rpi5", "Raspberry Pi 5 (Cortex-A76)", *LINUX_ARM, (A76,)),
    Target("graviton2", "AWS Graviton2, Ampere Altra (Neoverse N1)", *LINUX_ARM, (N1,)),
    Target("graviton3", "AWS Graviton3 (Neoverse V1, without SVE)", *LINUX_ARM, (V1,)),
)
TARGETS: Mapping[str, Target] = MappingProxyType({target.name: target for target in _ALL})
