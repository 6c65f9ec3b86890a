"""llmc's own passes: `PASSES` is the list, `LEVEL_PARTS` what -O0 to -O3 run where, `LEVELS` as one text."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llmc.compiler.pipeline import Pass
from llmc.passes.append import Append
from llmc.passes.compress.awq import Awq
from llmc.passes.compress.bfloat16 import Bfloat16
from llmc.passes.compress.blockwise import Blockwise
from llmc.passes.compress.cluster import Share
from llmc.passes.compress.differ import Differ
from llmc.passes.compress.equalise import CorrectBias, Equalise
from llmc.passes.compress.factorize import Factorize
from llmc.passes.compress.gptq import Gptq
from llmc.passes.compress.prune import Prune
from llmc.passes.compress.prune_channels import PruneChannels
from llmc.passes.compress.prune_heads import PruneHeads
from llmc.passes.compress.prune_neurons import PruneNeurons
from llmc.passes.compress.reconstruct import Reconstruct, Wanda
from llmc.passes.compress.rotate import Rotate
from llmc.passes.compress.spare import Spare
from llmc.passes.compress.unpack import Unpack
from llmc.passes.fuse import Fuse
from llmc.passes.fuse.cells import ExpandCells
from llmc.passes.fuse.qkv import Qkv
from llmc.passes.layout.channels_last import ChannelsLast
from llmc.passes.layout.winograd import Winograd
from llmc.passes.only import Only
from llmc.passes.quantise import Qfuse, Quantize, Smooth
from llmc.passes.quantise.bf16 import Bf16Products
from llmc.passes.quantise.int8_attention import Qattention
from llmc.passes.quantise.int16 import Int8Blocks, Int16
from llmc.passes.quantise.integers import Integers
from llmc.passes.quantise.plain import Dequantize
from llmc.passes.quantise.split import Split
from llmc.passes.quantise.states import States
from llmc.passes.rows.blank import Blank
from llmc.passes.rows.narrow import Narrow
from llmc.passes.rows.ragged import Ragged
from llmc.passes.simplify import Simplify
from llmc.passes.simplify.fold import Fold
from llmc.passes.simplify.share import Cse, Tie
from llmc.passes.simplify.tabulate import Tabulate

_EXACT_OR_CLOSE: tuple[type[Pass], ...] = (
    Simplify,
    Fold,
    Cse,
    Tie,
    Tabulate,
    Fuse,
    Qkv,
    Narrow,
    Unpack,
    ExpandCells,
    ChannelsLast,
    Winograd,
)
_COMPRESSION: tuple[type[Pass], ...] = (
    PruneHeads,
    PruneNeurons,
    PruneChannels,
    Factorize,
    Differ,
    Prune,
    Wanda,
    Reconstruct,
    Share,
    Bfloat16,
    Blockwise,
    Gptq,
    Rotate,
    Awq,
    Equalise,
    CorrectBias,
    Spare,
    Only,
)
_QUANTISATION: tuple[type[Pass], ...] = (
    Smooth,
    Quantize,
    Qfuse,
    Qattention,
    Int16,
    Int8Blocks,
    Bf16Products,
    Split,
    Integers,
    Dequantize,
    States,
)
_RAGGED: tuple[type[Pass], ...] = (Blank, Ragged)
_STATES: tuple[type[Pass], ...] = (Append,)
_ALL = (*_EXACT_OR_CLOSE, *_COMPRESSION, *_QUANTISATION, *_RAGGED, *_STATES)
PASSES: Mapping[str, type[Pass]] = MappingProxyType({p.name: p for p in _ALL})

_EXACT = "tie,simplify,fold,simplify,tie,cse"
# Pipeline texts by place (compiler/places.py).
LEVEL_PARTS: tuple[Mapping[str, str], ...] = (
    {},
    {"simplify": _EXACT},
    {"simplify": _EXACT, "fuse": "tabulate,fuse,fold,cse"},
    {"simplify": _EXACT, "fuse": "tabulate,fuse,fold,qkv,fold,narrow,tie,cse"},
)
LEVELS: tuple[str, ...] = tuple(",".join(parts.values()) for parts in LEVEL_PARTS)
