"""Whether a classifier answers a padded row as it does the row alone: transformers does not say where it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmc.compiler.frontends.tokenizer import Tokenizer

_WORDS, _PADDING = 5, 3  # tokens of the rows that are compared, and before them
_SAME = 1e-3  # as a share of the largest answer


def fault(model: Any, task: str, config: Mapping[str, Any], tokenizer: Tokenizer | None) -> str:
    """What padding as the tokenizer does it changes; empty if nothing, or if that cannot be told."""
    if task != "text-classification" or tokenizer is None:
        return ""
    if hasattr(model, "score"):
        return _reads_another(config, tokenizer)
    return "" if tokenizer.padding_side != "left" or _same_behind_padding(model, tokenizer) else _LEFT


_LEFT = (
    "the tokenizer pads on the left, and the model's head answers otherwise for a row behind padding than for the row"
    " alone, in transformers too: run texts one by one, or let the tokenizer pad on the right"
)


def _reads_another(config: Mapping[str, Any], tokenizer: Tokenizer) -> str:
    """A decoder's classifier finds a row's last token by config.json's padding, which the tokenizer does not use."""
    pad = config.get("pad_token_id")
    if not isinstance(pad, int) or pad in (-1, tokenizer.pad_id):
        return ""
    told = f"the tokenizer pads with {tokenizer.pad_id}, pad_token_id of config.json is {pad}"
    return f"{told}: of a padded row the head reads another token than the last"


def _same_behind_padding(model: Any, tokenizer: Tokenizer) -> bool:
    import torch

    most = int(model.get_input_embeddings().num_embeddings) - 1
    words = [n for n in range(most, -1, -1) if n != tokenizer.pad_id][:_WORDS]
    row = torch.tensor([[tokenizer.pad_id] * _PADDING + words])
    mask = (torch.arange(row.shape[1]) >= _PADDING).long()[None]
    with torch.no_grad():
        try:
            alone = model(input_ids=row[:, _PADDING:], attention_mask=mask[:, _PADDING:]).logits
            behind = model(input_ids=row, attention_mask=mask).logits
        except Exception:  # the import says what is wrong with it
            return True
    return bool((alone - behind).abs().max() <= _SAME * alone.abs().max())
