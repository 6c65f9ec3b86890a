"""What a target is, and what an instruction set is: data, of which targets/cpu/ and targets/cuda/ have theirs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmc.targets.backend import Backend

LINUX_X86 = ("x86_64-linux-gnu", "x86_64-linux-gnu.2.17")  # LLVM's triple, the linker's with the oldest libc
LINUX_ARM = ("aarch64-linux-gnu", "aarch64-linux-gnu.2.17")


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
        cpus: instruction sets that code is made for; the best that fits is chosen when the artifact is opened.
            Best first. Empty where kernels do not run on the processor.
        architectures: what else kernels are made for, in the words of the backend, oldest first.
        best_only: make code for the first that serves, as for one known machine.
        backend: who makes the kernels: a name that `llmc.targets.backends` knows, or a `Backend`.
    """

    name: str
    description: str
    triple: str
    zig: str
    cpus: tuple[Cpu, ...] = ()
    architectures: tuple[str, ...] = ()
    best_only: bool = False
    backend: str | Backend = "cpu"

    @property
    def machine(self) -> str:
        """Architecture, as `uname -m` says it."""
        return self.triple.partition("-")[0]

    def serving(self, families: Iterable[str]) -> Target:
        """This target with the instruction sets worth having for kernels of these families."""
        used = frozenset(families)
        cpus = tuple(cpu for cpu in self.cpus if cpu.base is None or cpu.own & used) or self.cpus
        return replace(self, cpus=cpus[:1] if self.best_only else cpus)
