"""Relative-position buckets as tables.

MPNet and DeBERTa put the distance of two tokens into logarithmic buckets: a rounded logarithm, where one unit
in the last place decides the bucket. Distances are bounded by the longest sequence, so the importer lets
PyTorch compute all buckets once and looks them up: the same on every machine, and faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.models.deberta_v2 import modeling_deberta_v2
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder


@contextmanager
def tabulated(max_seq: int) -> Iterator[None]:
    """Inside, bucket functions look up tables that reach `max_seq - 1` tokens either way.

    A table is made on the first call with real tensors: run the model once before exporting it.
    """
    mpnet, deberta = MPNetEncoder.relative_position_bucket, modeling_deberta_v2.make_log_bucket_position
    MPNetEncoder.relative_position_bucket = staticmethod(_lookup(mpnet, max_seq - 1))
    modeling_deberta_v2.make_log_bucket_position = _lookup(deberta, max_seq - 1)
    try:
        yield
    finally:
        MPNetEncoder.relative_position_bucket = staticmethod(mpnet)
        modeling_deberta_v2.make_log_bucket_position = deberta


def _lookup(function: Callable[..., Any], reach: int) -> Callable[..., Any]:
    tables: dict[Any, Any] = {}

    def bucket(relative: Any, *args: int, **options: int) -> Any:
        key = (args, tuple(options.items()))
        if key not in tables:
            distances = torch.arange(-reach, reach + 1)
            tables[key] = function(distances, *args, **options).to(torch.long)[:, None]
        return torch.nn.functional.embedding(relative + reach, tables[key]).squeeze(-1)

    return bucket
