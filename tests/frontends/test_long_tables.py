"""Tables for the longest sequence, which never end while a decoder is exported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_any import TEXT, made

from llmc.compiler.frontends.long_tables import Band, endless

NEO = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 16, "vocab_size": 100}
MODELS: dict[str, dict[str, Any]] = {
    "BertLMHeadModel": {**TEXT, "max_position_embeddings": 16, "is_decoder": True},
    "XGLMForCausalLM": {
        **{"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48, "vocab_size": 100},
        "max_position_embeddings": 16,
    },
    "GPTNeoForCausalLM": {**NEO, "attention_types": [[["global", "local"], 1]], "window_size": 4},
}


def tables(model: Any) -> dict[str, Any]:
    """What its modules keep by the names of such tables."""
    names = ("bias", "position_ids", "weights")
    found = {f"{n}.{k}": getattr(m, k, None) for n, m in model.named_modules() for k in names}
    return {k: v for k, v in found.items() if v is not None and not isinstance(v, torch.nn.Parameter)}


@pytest.mark.parametrize("name", MODELS)
def test_the_model_stays_what_it_is(name: str) -> None:
    model, ids = made(name, MODELS[name]), torch.arange(4, 20)[None]
    before = tables(model)
    with torch.no_grad():
        wanted = model(input_ids=ids, use_cache=False).logits
        with endless(model):
            meanwhile = tables(model)
            found = model(input_ids=ids, use_cache=False).logits
        again = model(input_ids=ids, use_cache=False).logits
    assert torch.equal(found, wanted)
    assert torch.equal(again, wanted)
    assert before.keys() == meanwhile.keys() == tables(model).keys() != set()
    assert all(a is b for a, b in zip(before.values(), tables(model).values(), strict=True))
    assert not any(a is b for a, b in zip(before.values(), meanwhile.values(), strict=True))


def test_a_band_goes_on() -> None:
    whole = torch.ones(20, 20, dtype=torch.bool).tril()
    assert torch.equal(Band(20)[:, :, 12:20, :20][0, 0], whole[12:])
    assert torch.equal(Band(3)[:, :, 5:6, :6][0, 0, 0], torch.tensor([False] * 3 + [True] * 3))
