"""Folders of small random models of images and text, with tokenizers and processors of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from random_any import made

SPECIAL = (
    *(
        "</s>",
        "<pad>",
        "<s>",
        "<image>",
        "<start_of_image>",
        "<end_of_image>",
        "<|image_pad|>",
        "<|video_pad|>",
    ),
    *(
        "<|vision_start|>",
        "<|vision_end|>",
        "<fake_token_around_image>",
        "<global-img>",
        "<end_of_utterance>",
    ),
    *(f"<row_{y}_col_{x}>" for y in range(1, 4) for x in range(1, 4)),
)
_WORDS = "user: assistant: a the one two red green old house tree fish bird sees what is this ? near \n \n\n"
WORDS = (*SPECIAL, *_WORDS.split(" "), "\n", "\n\n", ".")
ID = {word: i for i, word in enumerate(dict.fromkeys(WORDS))}
TEXT = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"intermediate_size": 48, "vocab_size": len(ID), "max_position_embeddings": 256, "head_dim": 8},
    **{"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 0},
}
VISION = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    **{"image_size": 16, "patch_size": 8},
}
_TURNS = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
_QWEN = {
    "text_config": {**{k: v for k, v in TEXT.items() if k != "head_dim"}, **_TURNS},
    "image_token_id": ID["<|image_pad|>"],
    "video_token_id": ID["<|video_pad|>"],
    "vision_start_token_id": ID["<|vision_start|>"],
    "vision_end_token_id": ID["<|vision_end|>"],
}
_GLM = {k: v for k, v in _QWEN.items() if not k.startswith("vision")}
_GRID = {"depth": 2, "hidden_size": 32, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2}
_IDEFICS = {"vision_config": {**VISION, "patch_size": 4}, "scale_factor": 2, "pad_token_id": 1}
_LLAMA = {"text_config": {"model_type": "llama", **TEXT}, "image_token_id": ID["<image>"]}
CASES: dict[str, dict[str, Any]] = {
    "Llava": {
        "vision_config": {"model_type": "clip_vision_model", **VISION, "projection_dim": 32},
        "text_config": {"model_type": "llama", **TEXT},
        "image_token_index": ID["<image>"],
    },
    "Idefics3": {**_IDEFICS, **_LLAMA},
    "SmolVLM": {**_IDEFICS, **_LLAMA},
    "Qwen2VL": {**_QWEN, "vision_config": {**_GRID, "embed_dim": 32, "mlp_ratio": 2}},
    "Qwen2_5_VL": {
        **_QWEN,
        "vision_config": {
            **{**_GRID, "out_hidden_size": 32, "intermediate_size": 48},
            **{"window_size": 16, "fullatt_block_indexes": [1]},
        },
    },
    "Glm4v": {
        **_GLM,
        "vision_config": {**_GRID, "out_hidden_size": 32, "intermediate_size": 48, "image_size": 16},
    },
    "GlmOcr": {  # norms its heads, and has no learned places
        **{**_GLM, "text_config": {**TEXT, **_TURNS}},
        "vision_config": {**_GRID, "out_hidden_size": 32, "intermediate_size": 48},
    },
    "Exaone4_5_": {  # heads of its tower share keys; places of tokens are their numbers
        "text_config": {
            **{**TEXT, "model_type": "exaone4"},
            **{"sliding_window": 8, "sliding_window_pattern": 2},
        },
        "vision_config": {
            **{**_GRID, "out_hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2},
            **{"window_size": 16, "fullatt_block_indexes": [1]},
        },
        **{"image_token_id": ID["<|image_pad|>"], "video_token_id": ID["<|video_pad|>"]},
    },
    "Gemma3": {
        "vision_config": {"model_type": "siglip_vision_model", **VISION, "patch_size": 4},
        "text_config": {
            **TEXT,
            **{"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
        },
        "mm_tokens_per_image": 4,
        "image_token_index": ID["<image>"],
        "boi_token_index": ID["<start_of_image>"],
        "eoi_token_index": ID["<end_of_image>"],
    },
    "PaliGemma": {
        "vision_config": {"model_type": "siglip_vision_model", **VISION},
        "text_config": {"model_type": "gemma", **TEXT},
        "image_token_index": ID["<image>"],
        "projection_dim": 32,
        "vocab_size": len(ID),
        "hidden_size": 32,
    },
}
PROMPTS = {
    "Qwen2VL": "<|vision_start|><|image_pad|><|vision_end|> what is this",
    "Qwen2_5_VL": "<|vision_start|><|image_pad|><|vision_end|> what is this",
    **dict.fromkeys(("Glm4v", "GlmOcr", "Exaone4_5_"), "the <|image_pad|> what is this"),
    "Gemma3": "the <start_of_image> what is this",
}
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}PLACE{% else %}{{ part.text }}{% endif %} "
    "{% endfor %}{% endif %} {% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def configuration(name: str) -> Any:
    """The configuration of a case."""
    import transformers

    kind = getattr(transformers, f"{name}ForConditionalGeneration")
    return kind.config_class(**CASES[name])


def model(name: str) -> Any:
    """The model of a case."""
    return made(f"{name}ForConditionalGeneration", CASES[name])


def picture(height: int, width: int, seed: int = 0) -> Any:
    """An image of Pillow, of noise."""
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def tokenizer() -> Any:
    """Words between blanks, special tokens wherever they stand."""
    from transformers import PreTrainedTokenizerFast

    tool = tokenizers.Tokenizer(tokenizers.models.WordLevel(ID, unk_token="."))
    pieces = tokenizers.pre_tokenizers
    tool.pre_tokenizer = pieces.Sequence([pieces.Split("\n\n", "isolated"), pieces.Split(" ", "removed")])
    tool.add_special_tokens([tokenizers.AddedToken(word, normalized=False) for word in SPECIAL])
    tool.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 2)]
    )
    words = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "."}
    extra = {"image_token": "<image>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    return PreTrainedTokenizerFast(tokenizer_object=tool, **words, extra_special_tokens=extra)


def image_processor(name: str) -> Any:
    """Of a case, on Pillow."""
    import transformers

    sizes: dict[str, dict[str, Any]] = {
        "Llava": {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}},
        "Idefics3": {"size": {"longest_edge": 40}, "max_image_size": {"longest_edge": 16}},
        "Qwen2VL": {
            **{"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2},
            "size": {"shortest_edge": 128, "longest_edge": 640},
        },
        "Glm4v": {
            **{"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2},
            "size": {"shortest_edge": 256, "longest_edge": 1280},
        },
        "Gemma3": {"size": {"height": 16, "width": 16}},
        "PaliGemma": {"size": {"height": 16, "width": 16}, "image_seq_length": 4},
    }
    sizes |= {"SmolVLM": sizes["Idefics3"], "Qwen2_5_VL": sizes["Qwen2VL"], "GlmOcr": sizes["Glm4v"]}
    sizes["Exaone4_5_"] = sizes["Qwen2VL"]
    kinds = {
        "Llava": "CLIP",
        "PaliGemma": "Siglip",
        "Qwen2_5_VL": "Qwen2VL",
        "GlmOcr": "Glm46V",
        "Exaone4_5_": "Qwen2VL",
    }
    made_by = getattr(transformers, f"{kinds.get(name, name)}ImageProcessorPil")
    return made_by(**sizes[name])


def processor(name: str) -> Any:
    """transformers' own of a case."""
    import transformers

    more: dict[str, Any] = {
        "Llava": {
            "patch_size": 8,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
        "Idefics3": {"image_seq_len": 4},
        "Gemma3": {"image_seq_length": 4},
    }
    kind = "Qwen2VL" if name == "Qwen2_5_VL" else name
    own = getattr(transformers, f"{kind}Processor")
    return own(image_processor=image_processor(name), tokenizer=tokenizer(), **more.get(name, {}))


def save(name: str, folder: Path) -> Path:
    """The folder of a case."""
    model(name).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    image_processor(name).save_pretrained(folder)
    place = dict.fromkeys(("Qwen2VL", "Qwen2_5_VL", "Glm4v", "GlmOcr", "Exaone4_5_"), "<|image_pad|>") | {
        "Gemma3": "<start_of_image>"
    }
    (folder / "chat_template.jinja").write_text(CHAT.replace("PLACE", place.get(name, "<image>")))
    said = {"bos_token_id": 2, "eos_token_id": 0, "pad_token_id": 1, "max_new_tokens": 12}
    (folder / "generation_config.json").write_text(json.dumps(said))
    return folder
