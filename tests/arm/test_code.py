"""The instructions of the ARM kernels, decoded from their words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmc.targets import TARGETS
from llmc.targets.cpu.build import compile_object
from llmc.targets.cpu.products.blocking import Schedule
from llmc.targets.cpu.products.linear import emit_linear
from llmc.targets.cpu.products.qlinear import emit_qlinear
from llmc.targets.cpu.variants import DOTPROD, NEON

Words = np.ndarray[Any, Any]


def words(emit: Any, cpu: Any, **options: Any) -> Words:
    """The object file's content as instruction words; what is no code is unlike the patterns below."""
    shape = {"n": 384, "k": 384, "epilogue": ("bias",)}
    code = compile_object({"kernel": emit("kernel", cpu, **shape, **options)}, TARGETS["arm"].triple, cpu)
    return np.frombuffer(code[: len(code) // 4 * 4], np.uint32)


def is_fmla(w: Words) -> Words:
    """fmla v.4s, v.4s, v.s[i]"""
    return (w & 0xFFC0F400) == 0x4F801000


def is_sdot(w: Words) -> Words:
    """sdot v.4s, v.16b, v.4b[i]"""
    return (w & 0xFFC0F400) == 0x4F80E000


def is_stack(w: Words) -> Words:
    """ldr, str, ldp or stp of vector registers relative to sp"""
    single, pair = (w & 0x3F000000) == 0x3D000000, (w & 0x3E000000) == 0x2C000000
    return (single | pair) & ((w >> 5 & 31) == 31)


def loops(w: Words) -> list[Words]:
    """Bodies of the innermost loops: between a conditional branch back and its target there is no branch."""
    branches = np.flatnonzero((w & 0xFF000010) == 0x54000000)
    bodies = []
    for i, at in enumerate(branches):
        offset = int(w[at] >> 5 & 0x7FFFF)
        offset -= (offset & 0x40000) << 1
        innermost = i == 0 or branches[i - 1] < at + offset
        if -400 < offset < 0 <= at + offset and innermost:
            bodies.append(w[at + offset : at])
    return bodies


def test_the_f32_tile_stays_in_registers():
    # 6 x 16 results and 4 steps, a few of them by a broadcast instead of an element
    full = [
        body
        for body in loops(words(emit_linear, NEON, schedule=Schedule(48)))
        if 88 <= is_fmla(body).sum() <= 96
    ]
    assert full, "no loop of full tiles"
    for body in full:
        assert is_stack(body).sum() == 0
        assert len(body) <= 96 + 64


def test_the_sdot_tile_stays_in_registers():
    full = [body for body in loops(words(emit_qlinear, DOTPROD, width=48)) if is_sdot(body).sum() == 96]
    assert full, "no loop of 6 x 16 results and 4 groups"
    for body in full:
        assert is_stack(body).sum() <= 2
        assert len(body) <= 96 + 64


def test_only_the_dot_product_variant_holds_sdot():
    assert is_sdot(words(emit_qlinear, DOTPROD, width=48)).sum() > 96
    assert is_sdot(words(emit_qlinear, NEON, width=48)).sum() == 0


def test_an_int8_module_holds_sdot(int8_pair):
    code = (int8_pair[1] / "module.so").read_bytes()
    assert is_sdot(np.frombuffer(code[: len(code) // 4 * 4], np.uint32)).sum() > 96


@pytest.mark.parametrize("name", ["arm", "rpi4", "rpi5", "graviton3"])
def test_targets_make_code(name):
    """Code of its own for each CPU; dot products where the CPU has them."""
    target = TARGETS[name]
    assert target.machine == "aarch64"
    shape = {"n": 16, "k": 16, "width": 16, "epilogue": ()}
    for cpu in target.cpus:
        code = compile_object({"kernel": emit_qlinear("kernel", cpu, **shape)}, target.triple, cpu)
        assert bool(is_sdot(np.frombuffer(code[: len(code) // 4 * 4], np.uint32)).any()) == cpu.dots
        assert bool(cpu.features & 0x200) == cpu.dots
