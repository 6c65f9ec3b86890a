"""What this machine's processor can run."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from llmc.compiler import extensions
from llmc.compiler.modules import load_point
from llmc.errors import LlmcError
from llmc.targets import TARGETS, Cpu, Target
from llmc.targets.cpu.variants import FLAGS

ENTRY_POINTS = "llmc.targets"


def host_flags() -> frozenset[str]:
    """Feature names of /proc/cpuinfo; empty where there is none."""
    return frozenset(cpuinfo("flags", "Features").split())  # as x86 and ARM call them


def cpuinfo(*names: str) -> str:
    """What /proc/cpuinfo says first under one of `names`, empty if nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() in names), "")


@dataclass(frozen=True)
class Processor:
    """This machine's processor, as far as the speed of kernels depends on it.

    Args:
        name: as it calls itself, with family and model, for many share a name.
        variants: names of the instruction sets of llmc it can run.
        l1, l2: bytes of data cache of a core; 0 if Linux does not say.
    """

    name: str
    variants: tuple[str, ...]
    l1: int
    l2: int

    def __str__(self) -> str:
        return f"{self.name}, L1 {self.l1 >> 10} KB, L2 {self.l2 >> 10} KB"


def processor() -> Processor:
    """The processor this runs on."""
    name = cpuinfo("model name") or machine()
    part = " ".join(filter(None, (cpuinfo("cpu family", "CPU implementer"), cpuinfo("model", "CPU part"))))
    cpus = {cpu.name: cpu for target in TARGETS.values() for cpu in target.cpus}
    variants = tuple(name for name, cpu in cpus.items() if runs_here(cpu))
    return Processor(f"{name} ({part})" if part else name, variants, _cache(1), _cache(2))


def _cache(level: int) -> int:
    """Bytes of the first core's data cache of a level."""
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        with contextlib.suppress(OSError):
            kind, size = ((folder / part).read_text().strip() for part in ("type", "size"))
            found = re.fullmatch(r"(\d+)K", size)
            if found and kind != "Instruction" and (folder / "level").read_text().strip() == str(level):
                return int(found[1]) << 10
    return 0


def runs_here(cpu: Cpu) -> bool:
    """Whether this processor has what `cpu` needs."""
    if cpu.machine != machine():
        return False
    needed = set().union(*(flags for bit, flags in FLAGS.items() if cpu.features & bit))
    return needed <= host_flags() and (not cpu.tiles or may_use_tiles())


def may_use_tiles() -> bool:
    """Whether Linux lets this process use AMX's registers; asking is what gives the leave."""
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return int(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data)) == 0


def machine() -> str:
    """This machine's architecture as `Target.machine` writes it."""
    return {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())


def find_target(name: str) -> Target:
    """The target called `name`; "native" has the one best instruction set of this machine.

    Raises:
        LlmcError: no such target, or no code can be made for this machine.
    """
    if name != "native":
        return _named(name)
    whole = TARGETS["arm" if machine() == "aarch64" else "x86"]
    fitting = tuple(cpu for cpu in whole.cpus if runs_here(cpu))
    if not fitting:
        raise LlmcError(
            "llmc has no code for this machine's processor",
            at="--target native",
            found=platform.machine(),
            hint="x86-64 with AVX2 and FMA, or 64-bit ARM is needed; --target x86 compiles for another machine",
        )
    best = next(cpu for cpu in fitting if not cpu.dots)
    return Target("native", f"this machine: {best.name}", whole.triple, whole.zig, fitting, best_only=True)


def all_targets() -> dict[str, Target]:
    """llmc's targets and those of installed packages: entry points in the group `llmc.targets`.

    Raises:
        LlmcError: an entry point fails, or is not a Target.
    """
    for name, target in extensions.targets().items():
        if name in TARGETS:
            raise LlmcError(
                f"the target {name!r} is llmc's own, and an extension's", hint="rename the extension's"
            )
        if not isinstance(target, Target):
            raise LlmcError(f"the target {name!r} of an extension is not a Target", found=repr(target))
    found = {**extensions.targets(), **TARGETS}
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        target = load_point(point, f"the target {point.name!r} of another package", point.value)
        if not isinstance(target, Target):
            raise LlmcError(
                f"{point.name!r} is not a target",
                at=point.value,
                found=repr(target),
                hint="make it an object of llmc.targets.Target",
            )
        found.setdefault(point.name, target)
    return found


def _named(name: str) -> Target:
    if name in TARGETS:
        return TARGETS[name]
    targets = all_targets()
    if name in targets:
        return targets[name]
    raise _unknown(name, list(targets))


_BITS_32 = re.compile(
    r"arm(v[1-7].*|hf|el|32|7l?|6l?|eabi.*)|i[3-6]86|x86[-_]?32|ia32|rpi[-_]?(1|2|zero)"
    r"|(mips|riscv|ppc|powerpc|sparc|win|wasm|linux)(el)?32|cortex-m\d.*|(thumb|mips(el)?|esp32).*"
)
_MEANT = {
    **dict.fromkeys(("x86-64", "x86_64", "amd64", "x64", "intel", "amd"), "x86"),
    **dict.fromkeys(("aarch64", "arm64", "armv8", "armv8-a", "armv9", "neoverse"), "arm"),
    **dict.fromkeys(("gpu", "nvidia"), "cuda"),
}


def _unknown(name: str, targets: list[str]) -> LlmcError:
    """The error for a name that no target has: what it may be, if that is known."""
    from difflib import get_close_matches

    word, known = name.lower(), f"known: {', '.join(['native', *targets])}"
    if _BITS_32.fullmatch(word):
        return LlmcError(
            f"no code is made for {name!r}: 32-bit processors are not supported",
            at="--target",
            hint=f"64-bit x86 and ARM are; {known}",
        )
    near = [_MEANT[word]] if word in _MEANT else get_close_matches(name, targets, 1)
    hint = f"did you mean {near[0]}? {known}" if near else known
    return LlmcError(f"unknown target {name!r}", at="--target", hint=hint)
