"""Products on int8 or with half-precision weights: written out, then fused; and what `--quant` means by that."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llmc.passes.quantise.qfuse import Qfuse
from llmc.passes.quantise.quantize import STATIC, Quantize
from llmc.passes.quantise.smooth import Smooth

__all__ = [
    "ATTENTION",
    "CAME_QUANTISED",
    "CAME_QUANTISED_ELSEWHERE",
    "QUANTISATIONS",
    "SPARE",
    "STATIC",
    "Qfuse",
    "Quantize",
    "Smooth",
]

# What `--quant` appends to a pipeline, and for a CPU to one on int8.
QUANTISATIONS: Mapping[str, str] = MappingProxyType(
    {
        "none": "",
        "int8": "quantize,qfuse,cse",
        STATIC: 'quantize{mode="int8-static"},qfuse,cse',  # after `smooth`, with the scales that calibration finds
        "fp16": 'quantize{mode="fp16"},qfuse,cse',
        "bf16": "bfloat16,cse",
        "bf16a16": "bfloat16,bf16-products,cse",
        "w8": "blockwise{block=128,table_block=64},int16,cse",
        "w4": "blockwise{bits=4,block=32,head_bits=8,frequent=0.2},int16,cse",
        "w4a8": "blockwise{bits=4,block=32,head_bits=8,frequent=0.2},int8-blocks,int16,cse",
    }
)
ATTENTION = "qattention"
# The passes of a model that comes quantised: as it is imported, and where others quantise.
CAME_QUANTISED = ("dequantize", "integers,dequantize{products=true},cse")
# Where there are no integer kernels for it:
CAME_QUANTISED_ELSEWHERE = ("dequantize{products=true}", "")
SPARE = (
    "spare,int16"  # before them on int8, of a function with states, where there are kernels for such weights
)
