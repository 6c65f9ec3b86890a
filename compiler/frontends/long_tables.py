"""Tables that models make for their longest sequence, and cut to what is held and what is new.

torch.export knows how many tokens there are before a call and how many in it, and not that both together are no more
than a table has. So the tables have more than is ever cut from them, or are computed where they are cut.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PLACES = "position_ids"  # of tokens: what transformers calls the argument, and tables of them


class Band:
    """What a table [1, 1, n, n] of the keys that a query attends to gives when it is cut: those within a window.

    Args:
        width: how many keys up to its own a query attends to.
    """

    def __init__(self, width: int) -> None:
        self.width = width

    def __getitem__(self, cut: tuple[slice, slice, slice, slice]) -> Any:
        rows, columns = (torch.arange(part.start or 0, part.stop) for part in cut[2:])
        behind = rows[:, None] - columns
        return ((behind >= 0) & (behind < self.width))[None, None]


@contextmanager
def endless(model: Any) -> Iterator[None]:
    """While it lasts, tables that never end stand in the place of those of a model, where they are known."""
    tables = [(m, name, t) for m in model.modules() for name, t in m.named_buffers(recurse=False)]
    found = [
        (module, name, table, own)
        for module, name, table in tables
        if (own := _own(module, name, table)) is not None
    ]
    for module, name, _, own in found:
        delattr(module, name)
        setattr(module, name, own)
    try:
        with _one_more(model.config):
            yield
    finally:
        for module, name, table, _ in found:
            delattr(module, name)
            module.register_buffer(name, table, persistent=False)


@contextmanager
def _one_more(config: Any) -> Iterator[None]:
    """Tables that are made in each call, as MPT's of distances, are longer than any sequence: no cut takes all."""
    stated = getattr(config, "max_seq_len", None)
    if not isinstance(stated, int):
        yield
        return
    config.max_seq_len = stated + 1
    try:
        yield
    finally:
        config.max_seq_len = stated


def _own(module: Any, name: str, table: Any) -> Any:
    """What stands in the place of a table; None if it is no such table."""
    if name == PLACES:
        return _counted(table)
    if name == "weights" and table.dim() == 2 and hasattr(module, "get_embedding"):
        return _more_sines(module, table)
    width = _width(table)
    return Band(width) if width else None


def _more_sines(module: Any, table: Any) -> Any:
    """Sines of the places, as XGLM's, for twice as many."""
    takes = list(inspect.signature(module.get_embedding).parameters)
    if takes != ["num_embeddings", "embedding_dim", "padding_idx"]:
        return None
    more = module.get_embedding(2 * len(table), table.shape[1], getattr(module, "padding_idx", None))
    return more if torch.equal(more[: len(table)], table) else None


def _counted(table: Any) -> Any:
    """0 to n - 1 -> 0 to 2 n - 1"""
    size = table.shape[-1] if table.dim() else 0
    more = torch.arange(2 * size, dtype=table.dtype)
    same = bool(size) and torch.equal(table, more[:size].expand_as(table))
    return more.expand(*table.shape[:-1], -1) if same else None


def _width(table: Any) -> int:
    """The window of a table [1, 1, n, n] that is true within one, n for the whole past; 0 of other tables."""
    if table.dtype is not torch.bool or table.dim() != 4 or table.shape[:2] != (1, 1):
        return 0
    rows, columns = table.shape[2:]
    width = int(table[0, 0, -1].sum())
    whole = slice(None), slice(None), slice(rows), slice(rows)
    return width if rows == columns and width and torch.equal(table, Band(width)[whole]) else 0
