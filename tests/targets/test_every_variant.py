"""Code for instruction sets that this processor may lack: it is made, and by the rules, whoever can run it here."""

from __future__ import annotations

import numpy as np
import pytest
from instruction_sets import X86
from kernel_lab import Lab, check_no_contraction, machine_code

from llmc.compiler.dims import symbol
from llmc.compiler.graph import Node
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.ops.split import split_weights
from llmc.targets.cpu.variants import AVX512AMX, BLOCKS, INTEGER, SKIPPING, TILED_BLOCKS

B, S, T, M = (symbol(name) for name in ("batch", "seq", "tokens", "rows"))
EPILOGUE = ("bias", "gelu", "residual")
HEADS = {"heads": 2, "head_dim": 16, "scale": 0.3, "int8": True}


def product(family: str) -> Node:
    """70 -> 50 with what a model puts behind a product."""
    x, ones = input_("x", "f32", (M, 70)), np.ones(50, np.float32)
    extras = (constant(ones), input_("residual", "f32", (M, 50)))
    if family == "sparse_qlinear":
        return make(
            "qlinear",
            (make("quantize_rows", (x,)), constant(np.zeros((50, 70), np.int8)), constant(ones), *extras),
            epilogue=EPILOGUE,
        )
    if family == "qlinear":
        inputs = (make("quantize_rows", (x,)), constant(np.ones((50, 70), np.int8)), constant(ones))
    elif family == TILED_BLOCKS:
        wide, levels = input_("x", "f32", (M, 192)), constant(np.ones((50, 192), np.uint8))
        inputs = (make("int16_rows", (wide,), block=128), levels, constant(np.ones((50, 2), np.float32)))
        attributes = {"columns": 192, "bits": 8, "block": 128}
        return make("int16_blockwise", (*inputs, *extras), **attributes, epilogue=EPILOGUE)
    elif family in BLOCKS:
        levels = np.ones((50, 35), np.uint8)
        inputs = (
            make(family.replace("blockwise", "rows"), (x,), block=32),
            constant(levels),
            constant(np.ones((50, 3), np.float16)),
        )
        return make(family, (*inputs, *extras), columns=70, bits=4, block=32, epilogue=EPILOGUE)
    elif family == "int16_linear":
        inputs = (make("int16_rows", (x,)), constant(np.ones((50, 70), np.int8)), constant(ones))
    else:
        parts = split_weights(np.ones((50, 70), np.float32))
        inputs = (make("split_rows", (x,)), *map(constant, parts))
    return make(family, (*inputs, *extras), epilogue=EPILOGUE)


def convolution() -> Node:
    q, scale, weight = (
        input_("q", "i8", (B, 7, 11, 6)),
        input_("scale", "f32", ()),
        np.ones((20, 6, 3, 3), np.int8),
    )
    extras = (constant(np.ones(20, np.float32)), input_("residual", "f32", (B, 7, 11, 20)))
    inputs = (q, scale, constant(weight), constant(np.ones(20, np.float32)), *extras)
    return make("qconv2d", inputs, padding=(1, 1, 1, 1), epilogue=EPILOGUE)


def attention(family: str) -> Node:
    if family == "int8_attention":
        x, keys = input_("x", "f32", (B, S, 32)), input_("keys", "bool", (B, S))
        return make("mha", (x, x, x, keys), has_keys=True, **HEADS)
    x, flags, mask = input_("x", "f32", (T, 32)), input_("flags", "bool", (T,)), input_("mask", "i64", (B, S))
    places = (make("pack_index", (mask,), tokens=T), make("pack_offsets", (mask,)))
    return make("ragged_mha", (x, x, x, flags, *places), seq=S, **HEADS)


def node_of(family: str) -> Node:
    if family == "qconv2d":
        return convolution()
    return attention(family) if family.endswith("attention") else product(family)


@pytest.mark.parametrize("family", sorted(INTEGER))
def test_integer_kernels(family: str, kernels: Lab) -> None:
    node = node_of(family)
    kernel = kernels.call_of(node).kernel
    assert kernel.family == family
    own = [cpu for cpu in X86.values() if cpu.code_for(family) is cpu]
    assert len(own) == (5 if family in AVX512AMX.own else 4)
    without_tiles = SKIPPING | BLOCKS - {TILED_BLOCKS}
    assert (AVX512AMX in own) is not (family.endswith("attention") or family in without_tiles)
    for cpu in own:
        function = kernel.emit(kernel.symbol, cpu)
        check_no_contraction(function)
        code = machine_code(kernel.symbol, function, cpu)
        assert code.startswith(b"\x7fELF"), cpu.name
        assert kernel.symbol.encode() in code, cpu.name
