"""How models of images and text look at images: what their code takes, and the rows that stand for image tokens.

Each way is a class: images of one size (LLaVA, Gemma 3, PaliGemma), in tiles (Idefics3, SmolVLM), or as patches of a
grid of any size (Qwen2-VL). That a model's is right is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmc.compiler.frontends import images
from llmc.compiler.frontends.inputs import IMAGE, TEXT, Input
from llmc.compiler.frontends.program import asked
from llmc.compiler.frontends.report import UnsupportedError
from llmc.errors import LlmcError

SEEN, COUNTED, MARKS, PLACES = "images", "images.rows", "images.marks", "images.places"
GRID = "rows_at"
_MOST = 256  # images of a prompt
_FEW = 64  # rows of an image


class Eyes(nn.Module):
    """Images of one size.

    Attributes:
        kind: by which the runtime prepares images: "fixed", "tiles" or "grid".
        dim: the name of the first axis of inputs and rows.
        token: the number that stands for a row in a text.
        together: which tokens attend to later ones: "image", "prompt" or "" where none do.
    """

    kind, dim, together = "fixed", "images", ""

    def __init__(self, model: Any, root: Path, max_seq: int) -> None:
        super().__init__()
        self.model, self.token = model, image_token(model.config)
        self.shape = images.image_shape(model.config.vision_config, root)
        seen = asked(lambda: self.rows(torch.zeros(1, *self.shape)), str(root / "config.json"))
        self.tokens = int(seen.shape[1])
        self.bounds = (1, max(2, min(_MOST, max_seq // self.tokens)))

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Of the function that looks."""
        return (Input(IMAGE, (self.dim, *self.shape)),)

    @property
    def vision(self) -> tuple[nn.Module, ...]:
        """The parts that see."""
        whole = self.model.model
        names = ("vision_tower", "vision_model", "visual", "multi_modal_projector", "connector")
        return tuple(getattr(whole, name) for name in names if hasattr(whole, name))

    def rows(self, pixels: Any, *others: Any) -> Any:
        """f32 [dim, tokens, width] of what `inputs` are."""
        found = _seer(self.model).get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        return torch.stack(list(found)) if isinstance(found, (list, tuple)) else found

    def forward(self, *values: Any) -> tuple[Any, ...]:
        """`rows`, how many there are, and what else the text needs of them."""
        rows = self.rows(*values)
        return rows, torch.ones_like(rows[:, :, 0]).sum()[None], *self.places(*values)

    def places(self, *values: Any) -> tuple[Any, ...]:
        """What else, by `PLACES`."""
        return ()

    def positions(self, marks: Any, at: Any, counted: Any, past: Any, places: Any) -> Any:
        """The places of tokens, where the model does not count them itself."""
        return None

    def groups(self, row: Any) -> Any:
        """Of image tokens, by their row: a number from 1 on, the same for those of one image."""
        return torch.div(row, self.tokens, rounding_mode="floor") + 1

    def sample(self) -> tuple[Any, ...]:
        """Values of `inputs` for two images, or one where the interpreter would take long."""
        return self.drawn(2 if self.tokens <= _FEW else 1)

    def drawn(self, count: int) -> tuple[Any, ...]:
        """Values of `inputs` for so many images."""
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(count, *self.shape, generator=generator),)

    def traced(self) -> tuple[Any, ...]:
        """Values that are traced: of one image alone torch.export would take the graph for that of one."""
        return self.drawn(2)

    def spans(self, values: tuple[Any, ...]) -> list[int]:
        """Rows of each image of a sample."""
        return [self.tokens] * int(values[0].shape[0])

    def prepare(self) -> None:
        """Replace what of the model's own code cannot be traced."""

    def asked(self, ids: Any, values: tuple[Any, ...], prompt: int) -> dict[str, Any]:
        """The same for transformers' forward.

        Args:
            prompt: tokens that are known at first.
        """
        return {TEXT: ids, IMAGE: values[0]}

    def facts(self) -> dict[str, Any]:
        """What the runtime has to know of rows."""
        return {"rows": self.tokens}


class Layers(Eyes):
    """LLaVA's: what one layer of its tower, or several, make of an image."""

    def rows(self, pixels: Any, *others: Any) -> Any:
        """By the parts: the model itself makes a list of its images."""
        whole, config = self.model.model, self.model.config
        seen = whole.vision_tower(pixels, output_hidden_states=True, return_dict=True).hidden_states
        chosen = config.vision_feature_layer
        layers = [seen[i] for i in (chosen if isinstance(chosen, (list, tuple)) else [chosen])]
        if config.vision_feature_select_strategy == "default":
            layers = [layer[:, 1:] for layer in layers]
        return whole.multi_modal_projector(torch.cat(layers, -1))


class Together(Eyes):
    """Images of one size whose tokens attend to each other, or whose prompts do."""

    def __init__(self, model: Any, root: Path, max_seq: int) -> None:
        super().__init__(model, root, max_seq)
        self.together = "prompt" if model.config.model_type == "paligemma" else "image"

    def asked(self, ids: Any, values: tuple[Any, ...], prompt: int) -> dict[str, Any]:
        """With the kinds of tokens: of Gemma 3 images' are 1; of PaliGemma a prompt's are 0."""
        later = torch.arange(ids.shape[1])[None] >= prompt
        kinds = later if self.together == "prompt" else ids == self.token
        return {**super().asked(ids, values, prompt), "token_type_ids": kinds.long()}


class Tiles(Eyes):
    """Images cut into tiles, each of which is looked at alone."""

    kind = "tiles"

    def __init__(self, model: Any, root: Path, max_seq: int) -> None:
        super().__init__(model, root, max_seq)
        embeddings = model.model.vision_model.embeddings
        if self.shape[1:] != (embeddings.num_patches_per_side * embeddings.patch_size,) * 2:
            raise UnsupportedError("its processor makes tiles of another size than its positions are for", "")

    def prepare(self) -> None:
        """Of tiles that are full, patches have their places one after the other."""
        _fix_places(self.model.model.vision_model.embeddings)

    def rows(self, pixels: Any, *others: Any) -> Any:
        """By the parts: the model itself looks for images that are padding."""
        patch = self.model.config.vision_config.patch_size
        shape = (pixels.shape[0], pixels.shape[2] // patch, pixels.shape[3] // patch)
        mask = torch.ones(shape, dtype=torch.bool)
        seen = self.model.model.vision_model(pixel_values=pixels, patch_attention_mask=mask)
        return self.model.model.connector(seen.last_hidden_state)

    def asked(self, ids: Any, values: tuple[Any, ...], prompt: int) -> dict[str, Any]:
        """Of one text."""
        return {TEXT: ids, IMAGE: values[0][None]}


def _fix_places(embeddings: Any) -> None:
    def looked(pixel_values: Any, **_: Any) -> Any:
        seen = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        return seen + embeddings.position_embedding.weight

    embeddings.forward = looked


def image_token(config: Any) -> int:
    """The number that stands for images in a text.

    Raises:
        UnsupportedError: none does.
    """
    for name in ("image_token_id", "image_token_index"):
        if isinstance(found := getattr(config, name, None), int):
            return found
    raise UnsupportedError("no image_token_id is given", "")


def _seer(model: Any) -> Any:
    """The model, or the part of it, that makes rows of images."""
    return model if hasattr(model, "get_image_features") else getattr(model, "model", None)


def looks(model: Any) -> bool:
    """Whether a model of any type has the parts that `Eyes` asks: whether they are enough is seen by its numbers."""
    config = model.config
    tokens = [getattr(config, name, None) for name in ("image_token_id", "image_token_index")]
    parts = hasattr(_seer(model), "get_image_features") and hasattr(
        getattr(model, "model", None), "language_model"
    )
    stated = getattr(config, "vision_config", None) is not None and any(type(n) is int for n in tokens)
    return bool(parts and stated and not getattr(config, "is_encoder_decoder", False))


def of(model: Any, root: Path, max_seq: int) -> Eyes:
    """The eyes of a model.

    Raises:
        UnsupportedError: it sees in a way that llmc does not know.
    """
    from llmc.compiler.frontends.exaone_eyes import NumberedGrid
    from llmc.compiler.frontends.glm_eyes import GlmGrid
    from llmc.compiler.frontends.grid_eyes import Grid

    known: Mapping[str, Any] = {
        **{"llava": Layers, "idefics3": Tiles, "smolvlm": Tiles, "gemma3": Together, "paligemma": Together},
        **{"qwen2_vl": Grid, "qwen2_5_vl": Grid, "exaone4_5": NumberedGrid},
        **dict.fromkeys(("glm4v", "glm4v_moe", "glm46v", "glm_ocr"), GlmGrid),
    }
    kind = str(model.config.model_type)
    if kind not in known and not looks(model):
        raise UnsupportedError(f"images of {kind} models are not known to llmc", "")
    try:
        made = known.get(kind, Eyes)(model, root, max_seq)
    except LlmcError as error:
        if kind in known:
            raise
        raise UnsupportedError(
            f"images of {kind} models are not known to llmc: {error.problem}", ""
        ) from error
    assert isinstance(made, Eyes)
    return made.eval()
