"""Relative-position buckets as tables.

MPNet and DeBERTa put the distance of two tokens into logarithmic buckets: a rounded logarithm, where one unit
in the last place decides the bucket. Distances are bounded by the longest sequence, so the importer lets
PyTorch compute all buckets once and looks them up: the same on every machine, and faster.

Only the encoder that is exported is changed: transformers' modules and classes stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType, MethodType
from typing import Any

import torch
from transformers.models.deberta_v2 import modeling_deberta_v2 as deberta
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

Function = Callable[..., Any]


def tabulate(model: torch.nn.Module, max_seq: int) -> None:
    """Let the encoders of `model` look up buckets in tables that reach `max_seq - 1` tokens either way.

    A table is made on the first call with real tensors: run the model once before exporting it.
    """
    for module in model.modules():
        if isinstance(module, MPNetEncoder):
            own: Any = module
            own.relative_position_bucket = _lookup(MPNetEncoder.relative_position_bucket, max_seq - 1)
        if isinstance(module, deberta.DebertaV2Encoder):
            _with_buckets(module, _lookup(deberta.make_log_bucket_position, max_seq - 1))


def _with_buckets(encoder: Any, bucket: Function) -> None:
    """Give an encoder of DeBERTa a `get_rel_pos` of its own, which reaches `bucket` instead of its module's."""
    positions = _seeing(deberta.build_relative_position, {"make_log_bucket_position": bucket})
    method = _seeing(type(encoder).get_rel_pos, {"build_relative_position": positions})
    encoder.get_rel_pos = MethodType(method, encoder)


def _seeing(function: Any, names: Mapping[str, Function]) -> FunctionType:
    """The same code, to which these global names mean something else."""
    scope = {**function.__globals__, **names}
    return FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
    )


def _lookup(function: Function, reach: int) -> Function:
    tables: dict[Any, Any] = {}

    def bucket(relative: Any, *args: int, **options: int) -> Any:
        key = (args, tuple(options.items()))
        if key not in tables:
            distances = torch.arange(-reach, reach + 1)
            tables[key] = function(distances, *args, **options).to(torch.long)[:, None]
        return torch.nn.functional.embedding(relative + reach, tables[key]).squeeze(-1)

    return bucket
