"""Heads that read a place by its number, of rows that the tokenizer pads on the left."""

from __future__ import annotations

from dataclasses import replace

import pytest
from random_any import TEXT, made

from llmc.compiler.frontends.padded_rows import fault
from llmc.compiler.frontends.tokenizer import Tokenizer

pytestmark = pytest.mark.imports
MODERN = {
    **TEXT,
    "num_hidden_layers": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "cls_token_id": 3,
    "sep_token_id": 4,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    file = tmp_path_factory.mktemp("words") / "tokenizer.json"
    return Tokenizer(file, max_length=32, pad_id=1, pad_token="[PAD]", padding_side="left")


@pytest.mark.parametrize(("pooling", "told"), [("cls", True), ("mean", False)])
def test_a_head_that_reads_the_first_place(pooling: str, told: bool, tokenizer: Tokenizer) -> None:
    model = made("ModernBertForSequenceClassification", {**MODERN, "classifier_pooling": pooling})
    found = fault(model, "text-classification", {}, tokenizer)
    assert ("pads on the left" in found) is told
    assert not fault(model, "text-classification", {}, replace(tokenizer, padding_side="right"))
    assert not fault(model, "token-classification", {}, tokenizer)
    assert not fault(model, "text-classification", {}, None)
