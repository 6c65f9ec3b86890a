"""A folder with a model of images and text -> its functions, and what the folder says of images and of generating."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmc.compiler.frontends import forward, generation_config
from llmc.compiler.frontends.folder import Summary
from llmc.compiler.frontends.program import asked
from llmc.errors import LlmcError

if TYPE_CHECKING:
    from llmc.compiler.frontends.eyes import Eyes
    from llmc.compiler.frontends.tokenizer import Tokenizer
    from llmc.compiler.graph import Graph

TASK = "image-text-to-text"
_GLM = ("glm46v", "glm4v", "glm4v_moe", "glm_ocr")
KNOWN = ("exaone4_5", "gemma3", *_GLM, "idefics3", "llava", "paligemma", "qwen2_5_vl", "qwen2_vl", "smolvlm")


def is_one(model: Any, task: str) -> bool:
    """Whether a model of images and text is to be given both."""
    from llmc.compiler.frontends import eyes

    writes = task in (TASK, "text2text-generation")
    return writes and (model.config.model_type in KNOWN or eyes.looks(model))


def load(summary: Summary, model: Any, max_seq: int) -> tuple[Mapping[str, Graph], Eyes]:
    """The functions `see` and `step`, and the model's eyes.

    Raises:
        LlmcError: the model cannot be run, or does something that llmc does not know.
    """
    from llmc.compiler.frontends import eyes, vision
    from llmc.compiler.frontends.report import UnsupportedError

    at = str(summary.root / "config.json")
    forward.in_one_piece(model)
    try:
        seeing = eyes.of(model, summary.root, max_seq)
        return vision.functions(seeing, max_seq, at, lambda given: _whole(model, given, at)), seeing
    except UnsupportedError as error:
        raise LlmcError(
            f"the model cannot be compiled with images: {error.reason}",
            at=at,
            hint="--task text-generation compiles it for texts alone, where it can",
        ) from error


def _whole(model: Any, given: Mapping[str, Any], at: str) -> Any:
    """All logits of a text with images, by transformers and without a cache."""
    return asked(lambda: model(**given, use_cache=False, return_dict=True).logits.numpy(), at)


def generates(
    summary: Summary, functions: Mapping[str, Graph], eyes: Eyes, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """What an artifact needs to know of generating."""
    from llmc.compiler.frontends import vision, vision_prompts

    images = {
        **{"function": vision.SEE, "dim": eyes.dim, "token": eyes.token, "together": eyes.together},
        **eyes.facts(),
        **vision_prompts.texts(summary.root, eyes, tokenizer),
    }
    return generation_config.of_functions(summary.root, summary.config, functions, images=images)
