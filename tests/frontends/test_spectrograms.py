"""Which axis of a model's features is time: what the model runs on, or a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kept_graphs
import pytest
import torch
from random_any import made

from llmc.compiler.frontends import reference
from llmc.compiler.frontends.inputs import inputs_of
from llmc.compiler.frontends.spectrograms import Spectrogram, spectrogram_of
from llmc.compiler.interpret import run
from llmc.errors import LlmcError

SMALL = {
    **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2},
    **{"intermediate_size": 24, "num_mel_bins": 24},
}
PARAKEET = {"encoder_config": {**SMALL, "subsampling_conv_channels": 4}, "vocab_size": 20, "pad_token_id": 1}
GLM = {**SMALL, "max_position_embeddings": 40}


def test_time_may_come_first_or_last() -> None:
    """And is at most what the positions hold: two of GLM's frames make a vector."""
    first = spectrogram_of(made("ParakeetForCTC", PARAKEET), Path("nowhere"))
    assert first == Spectrogram(("batch", "frames", 24), "attention_mask", (48, 3000))
    last = spectrogram_of(made("GlmAsrEncoder", GLM), Path("nowhere"))
    assert last == Spectrogram(("batch", 24, "frames"), "", (12, 80))


def test_open_frames_are_what_transformers_computes() -> None:
    """Of rows whose frames are their own in part."""
    model = made("ParakeetForCTC", PARAKEET)
    found = kept_graphs.imported(model, max_batch=4)
    takes = inputs_of(model, Path("nowhere"), 4, 64)
    values = reference.sample(takes, model.config, {**reference.SIZES, "frames": 117})
    with torch.no_grad():
        wanted = model(**{k: torch.from_numpy(v) for k, v in values.items()}).logits.numpy()
    assert reference.farthest(run(found.graph, values), {"logits": wanted}, values)[1] < 1e-5


class Listener(torch.nn.Module):
    """Takes features on any axis, or on none."""

    def __init__(self, features: int | None) -> None:
        super().__init__()
        self.config = type("Config", (), {"num_mel_bins": 7})()
        self.conv = torch.nn.Conv2d(1, 1, 1)
        self.features = features

    def forward(self, input_features: Any, return_dict: bool = True) -> Any:
        if self.features is not None and input_features.shape[-1] != self.features:
            raise ValueError("not so many")
        return {"last_hidden_state": self.conv(input_features[:, None])[:, 0]}


@pytest.mark.parametrize(
    ("features", "said"),
    [(None, "the shape of input_features cannot be told"), (9, "cannot run the model: not so many")],
)
def test_what_is_not_known_is_a_sentence(features: int | None, said: str) -> None:
    with pytest.raises(LlmcError, match=said):
        spectrogram_of(Listener(features), Path("nowhere"))


def test_the_processor_says_how_many(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"feature_size": 9}))
    assert spectrogram_of(Listener(9), tmp_path).axes == ("batch", "frames", 9)
