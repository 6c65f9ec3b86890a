"""Where a graph can run: targets as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

# Families of kernels that multiply integers.
ATTENTION = frozenset({"int8_attention", "ragged_int8_attention"})
INTEGER = ATTENTION | {"qlinear", "split_linear"}


@dataclass(frozen=True)
class Cpu:
    """One instruction set that kernels are compiled for.

    Args:
        name: as written in the manifest and in `llmc_variant.name`.
        mcpu: LLVM's name; it fixes the instructions used.
        attributes: LLVM features beyond `mcpu`.
        features: LLMC_CPU_* bits of runtime/c/module.h it needs.
        needs: the same in words.
        vectors: number of vector registers.
        lanes: float32 lanes of one register.
        machine: architecture, as `uname -m` says it.
        dots: whether one instruction sums four products of bytes. A variant that has no more than this over
            the next serves programs with integer products only.
        tiles: whether it multiplies tiles of bytes (AMX); such a variant has `dots` too.
        own: families of kernels that it has code of its own for.
        base: the instruction set whose code serves all others; None: its own.
    """

    name: str
    mcpu: str
    attributes: tuple[str, ...]
    features: int
    needs: str
    vectors: int
    lanes: int
    machine: str = "x86_64"
    dots: bool = False
    tiles: bool = False
    own: frozenset[str] = field(
        default=frozenset(), repr=False
    )  # sets print in another order in each process
    base: Cpu | None = None

    def code_for(self, family: str) -> Cpu:
        """The instruction set that kernels of `family` are compiled for: most gain nothing from integer products."""
        return self if self.base is None or family in self.own else self.base.code_for(family)

    @property
    def wide(self) -> bool:
        """Whether the registers hold a tile of several 16-lane vectors for each of several rows."""
        return self.vectors * self.lanes >= 512


@dataclass(frozen=True)
class Target:
    """What `--target NAME` means.

    Args:
        triple: LLVM target triple.
        zig: target triple of the linker, with the oldest libc the artifact runs on.
        cpus: code is made for each; the best that fits is chosen when the artifact is opened. Best first.
        gpus: NVIDIA architectures ("sm_80") that kernels are made for instead, oldest first; then `cpus` is empty.
        best_only: make code for the first that serves, as for one known machine.
    """

    name: str
    description: str
    triple: str
    zig: str
    cpus: tuple[Cpu, ...]
    gpus: tuple[str, ...] = ()
    best_only: bool = False

    @property
    def machine(self) -> str:
        """Architecture, as `uname -m` says it."""
        return self.triple.partition("-")[0]

    def serving(self, families: Iterable[str]) -> Target:
        """This target with the instruction sets worth having for kernels of these families."""
        used = frozenset(families)
        cpus = tuple(cpu for cpu in self.cpus if cpu.base is None or cpu.own & used) or self.cpus
        return replace(self, cpus=cpus[:1] if self.best_only else cpus)


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
    attributes=("+avx512vnni", "+amx-tile", "+amx-int8", "-prefer-256-bit"),
    features=0b1111,
    needs="AVX-512 with VNNI and AMX",
    tiles=True,
    own=INTEGER - ATTENTION,
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
    own=frozenset({"qlinear"}),
    base=NEON,
)
A72 = Cpu("a72", "cortex-a72", (), 0x100, "NEON", 32, 4, "aarch64")
A76 = Cpu("a76", "cortex-a76", (), 0x700, f"{_DOT}, FP16", 32, 4, "aarch64", dots=True)
N1 = Cpu("n1", "neoverse-n1", (), 0x700, f"{_DOT}, FP16", 32, 4, "aarch64", dots=True)
# SVE is left out: kernels are written for vectors of a fixed length.
V1 = Cpu("v1", "neoverse-v1", ("-sve",), 0xF00, f"{_DOT}, FP16, I8MM", 32, 4, "aarch64", dots=True)

_LINUX = ("x86_64-linux-gnu", "x86_64-linux-gnu.2.17")
_ARM = ("aarch64-linux-gnu", "aarch64-linux-gnu.2.17")

# Those that nvcc 12 and 13 both know.
GPUS: Mapping[str, str] = MappingProxyType(
    {
        "sm_75": "Turing: T4, RTX 20",
        "sm_80": "Ampere: A100, A30",
        "sm_86": "Ampere: A10, A40, RTX 30",
        "sm_89": "Ada: L4, L40, RTX 40",
        "sm_90": "Hopper: H100, H200",
    }
)

TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "x86": Target(
            "x86",
            "any x86-64 with AVX2, AVX-512 used where present",
            *_LINUX,
            (AVX512AMX, AVX512VNNI, AVX512, AVX2VNNI, AVX2),
        ),
        "x86-avx512": Target("x86-avx512", "x86-64 with AVX-512", *_LINUX, (AVX512AMX, AVX512VNNI, AVX512)),
        "x86-avx2": Target("x86-avx2", "x86-64 with AVX2 and FMA", *_LINUX, (AVX2VNNI, AVX2)),
        "cuda": Target("cuda", "NVIDIA GPUs from Turing on, x86-64 host", *_LINUX, (), tuple(GPUS)),
        **{
            f"cuda-{sm}": Target(f"cuda-{sm}", f"NVIDIA {what}, x86-64 host", *_LINUX, (), (sm,))
            for sm, what in GPUS.items()
        },
        "arm": Target("arm", "any 64-bit ARM, dot product used where present", *_ARM, (DOTPROD, NEON)),
        "arm-neon": Target("arm-neon", "any 64-bit ARM", *_ARM, (NEON,)),
        "arm-dotprod": Target("arm-dotprod", "64-bit ARM with dot product (from v8.2)", *_ARM, (DOTPROD,)),
        "rpi4": Target("rpi4", "Raspberry Pi 4 (Cortex-A72)", *_ARM, (A72,)),
        "rpi5": Target("rpi5", "Raspberry Pi 5 (Cortex-A76)", *_ARM, (A76,)),
        "graviton2": Target("graviton2", "AWS Graviton2, Ampere Altra (Neoverse N1)", *_ARM, (N1,)),
        "graviton3": Target("graviton3", "AWS Graviton3 (Neoverse V1, without SVE)", *_ARM, (V1,)),
    }
)
