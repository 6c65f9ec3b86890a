"""A small random model of any type that the installed transformers has, and which of its classes is the main one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Auto classes by what a model is most often used for, first come first served.
MAIN = (
    "AutoModelForMaskedLM",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForImageClassification",
    "AutoModelForSemanticSegmentation",
    "AutoModelForObjectDetection",
    "AutoModelForDepthEstimation",
    "AutoModelForVideoClassification",
    "AutoModelForCTC",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForAudioClassification",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForUniversalSegmentation",
    "AutoModelForImageToImage",
    "AutoModelForAudioXVector",
    "AutoModelForImageTextToText",
    "AutoModel",
)
# What makes a configuration small, by the names that models give to the same thing.
SMALL: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers"), 2),
    **dict.fromkeys(("decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads",), 4),
    **dict.fromkeys(
        ("intermediate_size", "hidden_dim", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim"), 48
    ),
    **dict.fromkeys(("head_dim", "d_kv", "attention_head_size"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"), 64),
    "num_key_value_heads": 2,
    "vocab_size": 120,
    "rotary_dim": 4,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 1,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 2,
    "max_source_positions": 60,
    "max_target_positions": 40,
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "use_timm_backbone": False,
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "window_size": 4,
    "spectrogram_length": 64,
}
# What is left out where a model cannot be made with all of it, a little more each time.
LEVELS: Sequence[frozenset[str]] = (
    frozenset(),
    frozenset({"head_dim", "attention_head_size", "d_kv", "rotary_dim", "window_size"}),
    frozenset(SMALL)
    - {"hidden_size", "d_model", "num_hidden_layers", "num_layers", "vocab_size", "pad_token_id"},
    frozenset(SMALL)
    - {"num_hidden_layers", "num_layers", "n_layer", "encoder_layers", "decoder_layers", "vocab_size"},
    frozenset(SMALL),
)
LARGEST = 60_000_000  # parameters
# What these need beside it.
OWN: Mapping[str, Mapping[str, Any]] = {
    "swin": {
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 4],
        "window_size": 2,
        "patch_size": 4,
        "image_size": 32,
    },
    "swinv2": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 2, "patch_size": 4},
    "swin2sr": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "patch_size": 1},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
    "convnextv2": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
    "efficientnet": {
        "hidden_dim": 64,
        "width_coefficient": 0.25,
        "depth_coefficient": 0.25,
        "image_size": 32,
    },
    "levit": {"image_size": 64, "patch_size": 16},
    "layoutlmv2": {"max_2d_position_embeddings": 1024},
    "wav2vec2": {"conv_dim": [16] * 7, "num_conv_pos_embedding_groups": 4, "num_conv_pos_embeddings": 8},
}
for _name in (
    "hubert",
    "wavlm",
    "sew",
    "sew-d",
    "unispeech",
    "unispeech-sat",
    "data2vec-audio",
    "wav2vec2-conformer",
):
    OWN = {**OWN, _name: OWN["wav2vec2"]}


def model_types() -> list[str]:
    """All that transformers has a configuration and a class for."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return [name for name in sorted(CONFIG_MAPPING_NAMES) if main_class(name) is not None]


def main_class(model_type: str) -> str | None:
    """The name of a model type's main class."""
    import transformers
    from transformers.models.auto import modeling_auto

    for auto in MAIN:
        mapping = getattr(transformers, auto)._model_mapping
        found = mapping._model_mapping.get(model_type)
        if found is not None:
            return str(found[0] if isinstance(found, (tuple, list)) else found)
    assert modeling_auto
    return None


def configuration(model_type: str, level: int = 0) -> Any:
    """A small configuration: whichever of `SMALL` the model type has, in all its parts, but for `LEVELS[level]`."""
    import transformers

    kind = transformers.AutoConfig.for_model(model_type).__class__
    usual = kind()
    small = {k: v for k, v in SMALL.items() if k not in LEVELS[level]}
    given = {k: v for k, v in small.items() if _takes(usual, k)} | dict(OWN.get(model_type, {}))
    for name in getattr(kind, "sub_configs", {}):
        part = getattr(usual, name, None)
        if part is not None:
            changed = {k: v for k, v in small.items() if _takes(part, k)}
            given[name] = {**part.to_dict(), **changed, **_lists(part, changed)}
    return kind(**{**given, **_lists(usual, given)})


def _takes(config: Any, key: str) -> bool:
    value = getattr(config, key, None)
    if isinstance(getattr(type(config), key, None), property):
        return False
    known = key in ("pad_token_id", "bos_token_id", "eos_token_id", "num_labels")
    return hasattr(config, key) and (known or isinstance(value, (int, float)))


def _lists(config: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Kinds of layers, cut to as many as there are."""
    count = given.get("num_hidden_layers", getattr(config, "num_hidden_layers", 2))
    kinds = getattr(config, "layer_types", None)
    if isinstance(getattr(type(config), "layer_types", None), property):
        return {}
    return {"layer_types": _few(kinds, count)} if isinstance(kinds, list) and kinds else {}


def _few(kinds: list[str], count: int) -> list[str]:
    """Every kind once, before any comes again."""
    first = list(dict.fromkeys(kinds))
    return [first[i % len(first)] for i in range(count)]


def model_of(model_type: str, level: int = 0) -> Any:
    """A model in eval mode, whose weights are large enough for every part to show in its outputs."""
    import torch
    import transformers

    name = main_class(model_type)
    assert name is not None
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(configuration(model_type, level)).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters at the least")
    model = kind(configuration(model_type, level)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for place, parameter in model.named_parameters():
            if parameter.dtype.is_floating_point:
                noise = torch.randn(parameter.shape, generator=generator) * 0.15
                is_norm = "norm" in place.lower() and place.endswith("weight")
                parameter.copy_(noise + 1 if is_norm else noise)
    return model


def shapes() -> Iterator[dict[str, int]]:
    """Sizes of dims at which numbers are compared: one row alone, padded rows, and longer ones."""
    yield {"batch": 1, "seq": 5, "target": 4, "choices": 2, "samples": 1600}
    yield {"batch": 3, "seq": 17, "target": 6, "choices": 3, "samples": 2400}
    yield {"batch": 2, "seq": 40, "target": 9, "choices": 2, "samples": 4000}
