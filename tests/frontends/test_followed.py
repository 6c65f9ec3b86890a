"""Code that stands in the place of transformers': the same values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_any import TEXT, made

from llmc.compiler.frontends import exporters, followed

DEBERTA = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16}


@pytest.mark.parametrize("tokens", [3, 16, 40])
def test_spans_of_all_positions(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeBERTa's, of texts shorter and longer than its positions reach."""
    from transformers.models.deberta import modeling_deberta

    model = made("DebertaModel", {**TEXT, **DEBERTA, "num_hidden_layers": 1})
    ids = torch.arange(2, 2 + tokens)[None]
    assert (modeling_deberta, "compute_attention_span", followed.attention_span) in list(exporters._our_own())

    def result() -> Any:
        with torch.no_grad():
            return model(ids).last_hidden_state

    wanted = result()
    monkeypatch.setattr(modeling_deberta, "compute_attention_span", followed.attention_span)
    assert (result() - wanted).abs().max() < 1e-5


@pytest.mark.parametrize(("before", "normed"), [(True, True), (False, True), (True, False)])
def test_adapters_of_languages(before: bool, normed: bool) -> None:
    """X-MOD's, of rows in two languages."""
    settings = {"languages": ["en_XX", "de_DE"], "ln_before_adapter": before, "adapter_layer_norm": normed}
    model = made("XmodModel", {**TEXT, **settings, "num_hidden_layers": 1, "adapter_reduction_factor": 2})
    output = model.encoder.layer[0].output
    hidden = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
    languages = torch.tensor([1, 0, 1])
    with torch.no_grad():
        wanted = output.lang_adapter(languages, hidden.clone())
        found = followed.language_adapter(output, languages, hidden)
    assert (found - wanted).abs().max() < 1e-6
