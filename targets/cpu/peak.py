"""A loop of independent fmas on registers: what the core can do at most, measured beside the kernels."""

from __future__ import annotations

from typing import Any

from llmc.compiler.program_steps import LANES
from llmc.targets.target import Cpu

_CHAINS = 24  # enough to hide the latency of an fma on two ports
_STEPS = 4


def peak_chains(cpu: Cpu) -> int:
    """Independent 16-lane accumulators that fit the registers beside one factor."""
    return min(_CHAINS, (cpu.vectors - 2) * cpu.lanes // LANES)


def peak_flops(cpu: Cpu) -> int:
    """FLOP of one round of `emit_peak`."""
    return 2 * LANES * peak_chains(cpu) * _STEPS


def emit_peak(symbol: str, cpu: Cpu) -> Any:
    """One work item is one round; the sum goes to the 16 floats at `sink`, so that nothing is optimised away."""
    from llmc.targets.tir.emit import Emitter, f32, fma, splat

    e = Emitter(symbol)
    sink = e.pointer("sink", "f32")
    chains = peak_chains(cpu)
    acc = e.registers(chains)
    for i in range(chains):
        e.set(acc, i, splat(f32(float(i))))
    factor = splat(f32(0.999))
    with e.loop(e.begin, e.end, "round"):
        for i in [*range(chains)] * _STEPS:
            e.set(acc, i, fma(e.get(acc, i), factor, factor))
    total = e.let(e.get(acc, 0))
    for i in range(1, chains):
        total = e.let(total + e.get(acc, i))
    e.store(sink, 0, total)
    return e.function()
