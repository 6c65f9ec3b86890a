"""Models that hold images against texts: any number of either."""

from __future__ import annotations

from typing import Any

import kept_graphs
import numpy as np
import pytest
import torch
from random_any import TEXT, made

from llmc.compiler.interpret import run

pytestmark = pytest.mark.imports
PICTURES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 8,
}
SETTINGS = {"text_config": {**TEXT, "num_hidden_layers": 1, "eos_token_id": 3}, "vision_config": PICTURES}


def test_images_have_a_dim_of_their_own() -> None:
    model = made("CLIPModel", {**SETTINGS, "projection_dim": 16})
    graph = kept_graphs.imported(model, max_batch=8).graph
    assert set(graph.dims) == {"batch", "images", "seq"}
    rng = np.random.default_rng(0)
    for images, texts in ((1, 3), (4, 1), (2, 2)):
        ids = rng.integers(4, 99, (texts, 6))
        ids[:, -1] = 3
        given: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "pixel_values": rng.normal(size=(images, 3, 16, 16)).astype(np.float32),
        }
        with torch.no_grad():
            wanted = model(**{name: torch.from_numpy(value) for name, value in given.items()})
        found = run(graph, given)
        assert found["logits_per_image"].shape == (images, texts)
        for name in ("logits_per_image", "logits_per_text", "image_embeds", "text_embeds"):
            np.testing.assert_allclose(found[name], wanted[name], atol=1e-4, err_msg=name)


def test_a_model_that_mixes_both_keeps_one_batch() -> None:
    """Such as one that reads a text and its image as one sequence."""
    from llmc.compiler.frontends.inputs import IMAGE, Input, compares

    model = made("CLIPModel", {**SETTINGS, "projection_dim": 16})
    model.forward = lambda input_ids, pixel_values: {"logits_per_image": torch.zeros(3, 3)}
    axes = (Input("input_ids", ("batch", "seq")), Input(IMAGE, ("batch", 3, 16, 16)))
    assert not compares(model, axes)
