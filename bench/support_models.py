"""A small random model of any type that the installed transformers has, and which of its classes is the main one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from support_own import OWN

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
MORE = (
    "AutoModelForMultipleChoice",
    "AutoModelForNextSentencePrediction",
    "AutoModelForZeroShotImageClassification",
)
# Families whose every task is tried by `support.py --tasks`.
FAMILIES = (
    *(
        "bert",
        "roberta",
        "xlm-roberta",
        "distilbert",
        "albert",
        "electra",
        "mpnet",
        "deberta-v2",
        "modernbert",
    ),
    *("nomic_bert", "camembert", "layoutlm", "splinter", "squeezebert", "convbert"),
    *(
        "gpt2",
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "phi",
        "phi3",
        "gpt_neox",
    ),
    *("opt", "bloom", "falcon", "starcoder2", "smollm3", "granite", "mixtral", "qwen3_moe", "mamba"),
    *("t5", "bart", "mbart", "marian", "pegasus", "m2m_100", "whisper"),
    *(
        "vit",
        "deit",
        "beit",
        "swin",
        "convnext",
        "dinov2",
        "resnet",
        "mobilenet_v2",
        "mobilevit",
        "efficientnet",
    ),
    *("segformer", "detr", "clip", "siglip", "wav2vec2", "hubert", "audio-spectrogram-transformer"),
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
    "max_target_positions": 64,
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
# The most of what `SMALL` does not name, by what the names have in common; the first that is found counts.
PATTERNS: Sequence[tuple[str, int]] = (
    (r"(layers|layer|blocks|depth|depths|n_layer)$", 2),
    (r"(kv|key_value)_heads$", 2),
    (r"heads?$|n_head$", 4),
    (r"(head_dim|head_size|head_channels|d_kv)$", 8),
    (r"experts$", 4),
    (r"(lora_rank|rank)$", 16),
    (r"codebook_size", 128),
    (r"vocab|num_embeddings", 120),
    (r"(token|start|end|pad)_(id|index|idx)$", 100),
    (r"(intermediate|ffn|ff|inner|mlp|feedforward)", 48),
    (r"(num_queries|queries)$", 10),
    (r"(max_position|max_seq|positions|context_length)", 64),
    (r"(hidden|embed|width|embd|d_model|d_state|state_size|channels|dim|dims|planes|size|features)", 32),
)


@dataclass(frozen=True)
class Level:
    """One way to make a configuration small.

    Args:
        usual: entries of `SMALL` that stay as they are.
        by_name: whether `PATTERNS` make others smaller.
        most: parameters of the model.
    """

    usual: frozenset[str] = frozenset()
    by_name: bool = False
    most: int = 3_000_000


_HEADS = frozenset({"head_dim", "attention_head_size", "d_kv", "rotary_dim", "window_size"})
_LAYERS = frozenset({"num_hidden_layers", "num_layers", "n_layer", "encoder_layers", "decoder_layers"})
TOLD = frozenset(  # taken even where it is None
    {
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "num_labels",
        "vocab_size",
        "head_dim",
        "num_key_value_heads",
    }
)
# One after the other, until a model can be made and run.
LEVELS: Sequence[Level] = (
    Level(),
    Level(by_name=True),
    Level(_HEADS),
    Level(_HEADS, by_name=True),
    Level(most=25_000_000),
    Level(
        frozenset(SMALL) - _LAYERS - {"hidden_size", "d_model", "vocab_size", "pad_token_id"}, most=25_000_000
    ),
    Level(frozenset(SMALL) - _LAYERS - {"vocab_size"}, most=25_000_000),
)


def model_types() -> list[str]:
    """All that transformers has a configuration and a class for."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return [name for name in sorted(CONFIG_MAPPING_NAMES) if main_class(name) is not None]


def main_class(model_type: str) -> str | None:
    """The name of a model type's main class."""
    return next(classes(model_type, MAIN), None)


def classes(model_type: str, autos: Sequence[str] = (*MAIN, *MORE)) -> Iterator[str]:
    """The names of a model type's classes, one for each kind of task that it has."""
    import transformers
    from transformers.models.auto import modeling_auto

    assert modeling_auto
    for auto in autos:
        mapping = getattr(transformers, auto)._model_mapping
        found = mapping._model_mapping.get(model_type)
        if found is not None:
            yield str(found[0] if isinstance(found, (tuple, list)) else found)


def tasks(families: Sequence[str]) -> list[str]:
    """`type/class` of every class of these model types."""
    return [f"{name}/{kind}" for name in families for kind in dict.fromkeys(classes(name))]


def configuration(model_type: str, level: int = 0, name: str | None = None) -> Any:
    """A small configuration by the way `LEVELS[level]`, in all its parts, for the class `name` or the main one."""
    kind = _kind(model_type, name)
    return kind(
        **_smaller(kind(), LEVELS[level], {**OWN.get(model_type, {}), **OWN.get(f"{model_type}/{name}", {})})
    )


def _kind(model_type: str, name: str | None) -> type:
    """The class of a type's configuration: where the class `name` takes but a part of the type's, that part's."""
    import transformers

    whole = type(transformers.AutoConfig.for_model(model_type))
    taken = getattr(transformers, name or main_class(model_type) or "").config_class
    parts = [type(getattr(whole(), name)) for name in _parts(whole())]
    return taken if taken in parts else whole


def _smaller(usual: Any, level: Level, own: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be given to a configuration instead of its usual values."""
    named = dict.fromkeys((*vars(usual), *SMALL))
    found = {k: v for k in named if (v := _small(usual, k, level)) is not None}
    if "kv_lora_rank" in found:  # latent attention shares no heads
        found["num_key_value_heads"] = SMALL["num_attention_heads"]
    found |= {k: v for k, v in own.items() if k not in _parts(usual) or "model_type" in v}
    for name in _parts(usual):
        part, own_part = getattr(usual, name), own.get(name, {})
        if "model_type" in own_part:
            continue
        if isinstance(part, dict):
            found[name] = {**part, **own_part}
        else:
            kept = {k: v for k, v in part.to_dict().items() if not _is_property(part, k)}
            found[name] = {**kept, **_smaller(part, level, own_part)}
    return found | {k: v for k, v in _kinds(usual, found).items() if k not in own}


def _parts(config: Any) -> list[str]:
    """Names of the configurations within one."""
    from transformers import PreTrainedConfig

    return [k for k, v in vars(config).items() if isinstance(v, PreTrainedConfig)]


def _small(config: Any, key: str, level: Level) -> Any:
    """A smaller value of one entry; None to leave it."""
    try:
        value = getattr(config, key)
    except Exception:  # it has none; or one for each layer, of which configurations have their own errors
        return None
    if key in level.usual or key.startswith("_") or _is_property(config, key):
        return None
    if key in SMALL and (key in TOLD or isinstance(value, int | float)):
        return SMALL[key]
    return _by_name(key, value) if level.by_name else None


def _by_name(key: str, value: Any) -> Any:
    """As `PATTERNS` say, where that is less."""
    if isinstance(value, bool):
        return None
    most = next((n for pattern, n in PATTERNS if re.search(pattern, key)), None)
    if most is None:
        return None
    if isinstance(value, list | tuple) and value and all(type(v) is int for v in value):
        return [min(v, most) for v in value]
    return most if isinstance(value, int) and value > most else None


def _is_property(config: Any, key: str) -> bool:
    return isinstance(getattr(type(config), key, None), property)


def _kinds(config: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Kinds of layers and whatever else is told of each, cut to as many as there are."""
    usual = getattr(config, "num_hidden_layers", None)
    count = given.get("num_hidden_layers", usual)
    if not isinstance(count, int):
        return {}
    each = {k: v for k, v in vars(config).items() if isinstance(v, list) and not k.startswith("_")}
    long = {k: v for k, v in each.items() if v and (len(v) == usual or k == "layer_types")}
    return {k: _few(v, count) for k, v in long.items() if not _is_property(config, k)}


def _few(kinds: list[Any], count: int) -> list[Any]:
    """Every kind once, before any comes again."""
    first = [kind for place, kind in enumerate(kinds) if kind not in kinds[:place]]
    return [first[i % len(first)] for i in range(count)]


def model_of(model_type: str, level: int = 0, name: str | None = None) -> Any:
    """A model in eval mode, whose weights are large enough for every part to show in its outputs.

    Args:
        name: its class; None: the type's main one. Of types that are encoders otherwise a causal class decodes.
    """
    import torch
    import transformers

    name = name or main_class(model_type)
    assert name is not None
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(_config(model_type, level, name)).parameters())
    if size > LEVELS[level].most:
        raise ValueError(f"{size:,} parameters at the least")
    model = kind(_config(model_type, level, name)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for place, parameter in model.named_parameters():
            if parameter.dtype.is_floating_point:
                noise = torch.randn(parameter.shape, generator=generator) * 0.15
                is_norm = "norm" in place.lower() and place.endswith("weight")
                parameter.copy_(noise + 1 if is_norm else noise)
    return model


def _config(model_type: str, level: int, name: str) -> Any:
    config = configuration(model_type, level, name)
    causal = name != main_class(model_type) and name in classes(model_type, ("AutoModelForCausalLM",))
    if causal and getattr(config, "is_decoder", None) is False:
        config.is_decoder = True
    return config


def shapes() -> Iterator[dict[str, int]]:
    """Sizes of dims at which numbers are compared: one row alone, padded rows, and longer ones."""
    yield {"batch": 1, "seq": 5, "target": 4, "choices": 2, "samples": 1600, "frames": 33, "images": 1}
    yield {"batch": 3, "seq": 17, "target": 6, "choices": 3, "samples": 2400, "frames": 67, "images": 2}
    yield {"batch": 2, "seq": 40, "target": 9, "choices": 2, "samples": 4000, "frames": 140, "images": 3}
