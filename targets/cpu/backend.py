"""The backend for x86-64 and ARM processors: TIR kernels compiled by LLVM, an object file for each variant.

What needs TVM is imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from llmc.compiler.calls import Call
from llmc.compiler.dims import Bounds
from llmc.compiler.program import Variant
from llmc.targets import host
from llmc.targets.backend import Backend, Code, Tell
from llmc.targets.cpu.peak import peak_flops
from llmc.targets.lowering import Lowerings
from llmc.targets.store import Store
from llmc.targets.target import Cpu, Target


class CpuBackend(Backend):
    """Everything that llmc can do."""

    name = "cpu"
    forms = ("shared", "static", "executable")
    quantisations = frozenset({"int8", "int8-static", "fp16", "bf16", "bf16a16", "w8", "w4", "w4a8"})
    integer_attention = True
    integer_rows = frozenset({"int16", "int8-blocks"})
    zero_points = True
    group_zeros = True
    ragged = True
    channels_last = True
    winograd = True

    @property
    def decodes(self) -> frozenset[str]:
        from llmc.targets.cpu.storage.formats import readers

        return frozenset(readers())

    def variants(self, target: Target) -> Sequence[Variant]:
        return [_variant(cpu) for cpu in target.cpus]

    def lowerings(self) -> Lowerings:
        from llmc.targets.cpu.lower import LOWERINGS

        return LOWERINGS

    def compile(self, calls: Sequence[Call], target: Target, kept: Store) -> Code:
        from llmc.targets.cpu import known

        found = known.objects(calls, target, kept)
        if found is None:
            from llmc.targets.cpu.build import compile_calls

            found = compile_calls(calls, target, kept)
        return Code(found)

    def runs_here(self, target: Target) -> Sequence[str]:
        return [cpu.name for cpu in target.cpus if host.runs_here(cpu)]

    def matmuls(self, target: Target) -> Sequence[str]:
        return ("fma", "int8x3") if any(cpu.tiles for cpu in target.cpus) else ("fma",)

    def check_tuning(self, target: Target) -> None:
        from llmc.targets.tuning import measured_variant

        measured_variant(target)

    def tune(
        self,
        calls: Sequence[Call],
        dims: Mapping[str, Bounds],
        target: Target,
        kept: Store,
        seconds: float,
        tell: Tell,
    ) -> Mapping[Any, Any]:
        from llmc.targets.tuning import tune

        return tune(calls, dims, target, kept, seconds, tell)

    def tuned(self, found: Mapping[Any, Any]) -> Lowerings:
        from llmc.targets.cpu.products.linear import lower_scheduled
        from llmc.targets.tuning import chosen

        return {"linear": partial(lower_scheduled, schedules=chosen(found))}

    def products(self, calls: Sequence[Call], found: Mapping[Any, Any]) -> list[dict[str, Any]]:
        from llmc.targets.tuning import described

        return described(calls, found)

    def choices(self, schedule: Mapping[str, Any]) -> Mapping[str, Any]:
        """The width, and what else is not as by default."""
        from llmc.targets.cpu.products.blocking import Schedule

        usual = {
            "cpu": schedule.get("cpu"),
            **{f.name: f.default for f in fields(Schedule) if f.name != "cpu"},
        }
        return {name: value for name, value in schedule.items() if value != usual[name]}


def _variant(cpu: Cpu) -> Variant:
    return Variant(
        cpu.name, cpu.features, peak_flops(cpu), lambda family: cpu.code_for(family).name, cpu.needs
    )


BACKEND = CpuBackend()
