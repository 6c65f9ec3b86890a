"""What small models of some types need beside the rules of `support_models.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MAMBA2 = {
    **{"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8},
    "mamba_chunk_size": 16,
}
_RESNET = {
    **{"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]},
    "out_features": ["stage4"],
}
_MROPE = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_section": [2, 1, 1],
    "partial_rotary_factor": 0.5,
}
_TEXT = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"intermediate_size": 48, "vocab_size": 120, "max_position_embeddings": 256, "head_dim": 8},
    **{"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3},
}
_VISION = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    **{"image_size": 16, "patch_size": 8},
}
_QWEN2 = {
    "text_config": {
        **{k: v for k, v in _TEXT.items() if k != "head_dim"},
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
    },
    **{
        "image_token_id": 101,
        "video_token_id": 102,
        "vision_start_token_id": 103,
        "vision_end_token_id": 104,
    },
}
_GRID = {"depth": 2, "hidden_size": 32, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2}
_GLM: Mapping[str, Any] = {
    "text_config": {
        **{k: v for k, v in _TEXT.items() if k != "head_dim"},
        "rope_parameters": {**_MROPE, "partial_rotary_factor": 1.0},
    },
    "vision_config": {**_GRID, "out_hidden_size": 32, "intermediate_size": 48, "image_size": 16},
    **{"image_token_id": 101, "video_token_id": 102, "image_start_token_id": 103},
    **{"image_end_token_id": 104, "video_start_token_id": 105, "video_end_token_id": 106},
}
_TILES = {
    "image_token_id": 101,
    "vision_config": {"max_position_embeddings": 16},
    "text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
}
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
        "hidden_dim": 320,
        "width_coefficient": 0.25,
        "depth_coefficient": 0.25,
        "image_size": 32,
    },
    "t5/T5ForQuestionAnswering": {"decoder_start_token_id": 0},
    "t5/T5ForSequenceClassification": {"decoder_start_token_id": 0},
    "wav2vec2/Wav2Vec2ForXVector": {
        "tdnn_dim": [16, 16, 24],
        "tdnn_kernel": [2, 1, 1],
        "tdnn_dilation": [1, 1, 1],
        "xvector_output_dim": 16,
    },
    "beit/BeitForSemanticSegmentation": {
        "num_hidden_layers": 4,
        "out_indices": [1, 2, 3, 4],
        "image_size": 64,
        "patch_size": 16,
        "pool_scales": [1, 2],
    },
    "detr/DetrForSegmentation": {
        "backbone_config": {**_RESNET, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
    },
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "zaya": {"num_experts_per_tok": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "levit": {"image_size": 64, "patch_size": 16},
    "layoutlmv2": {"max_2d_position_embeddings": 1024},
    "dpt": {
        "num_hidden_layers": 4,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 16, 16, 32],
        "fusion_hidden_size": 16,
    },
    "esm": {"mask_token_id": 4},
    "esmc": {"num_key_value_heads": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 16},
    "bamba": {**_MAMBA2, "attn_layer_indices": [1]},
    "granitemoehybrid": {**_MAMBA2, "layer_types": ["mamba", "attention"]},
    "zamba": {"n_mamba_heads": 2, "mamba_d_state": 8, "attn_layer_period": 2, "attn_layer_offset": 1},
    "qwen3_5_text": {"head_dim": 32, "rope_parameters": {**_MROPE, "partial_rotary_factor": 0.25}},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "nemotron_h": {**_MAMBA2, "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "glm4v_text": {"num_attention_heads": 2, "num_key_value_heads": 1, "rope_parameters": _MROPE},
    "glm4v_moe_text": {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": _MROPE,
        "head_dim": 16,
    },
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX", "adapter_reduction_factor": 2},
    "luke": {"entity_vocab_size": 20, "entity_emb_size": 16},
    "mluke": {"entity_vocab_size": 20, "entity_emb_size": 16},
    "funnel": {"block_sizes": [1, 1], "num_decoder_layers": 1, "d_inner": 48, "n_head": 4, "d_head": 8},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8},
    "gemma3": {"mm_tokens_per_image": 4, "image_token_index": 101},  # of 4 x 4 patches
    "idefics3": _TILES,
    "smolvlm": _TILES,
    "llava": {
        "vision_config": {"model_type": "clip_vision_model", **_VISION, "projection_dim": 32},
        "text_config": {"model_type": "llama", **_TEXT},
        "image_token_index": 101,
    },
    "paligemma": {
        "vision_config": {"model_type": "siglip_vision_model", **_VISION},
        "text_config": {"model_type": "gemma", **_TEXT},
        **{"image_token_index": 101, "projection_dim": 32, "vocab_size": 120, "hidden_size": 32},
    },
    "qwen2_vl": {**_QWEN2, "vision_config": {**_GRID, "embed_dim": 32, "mlp_ratio": 2}},
    "qwen2_5_vl": {
        **_QWEN2,
        "vision_config": {
            **{**_GRID, "out_hidden_size": 32, "intermediate_size": 48},
            **{"window_size": 16, "fullatt_block_indexes": [1]},
        },
    },
    "exaone4_5": {
        "text_config": {
            **{**_TEXT, "model_type": "exaone4"},
            **{"sliding_window": 8, "sliding_window_pattern": 2},
        },
        "vision_config": {
            **{**_GRID, "out_hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2},
            **{"window_size": 16, "fullatt_block_indexes": [1]},
        },
        **{"image_token_id": 101, "video_token_id": 102},
    },
    "glm4v": _GLM,
    "glm_ocr": {**_GLM, "text_config": {**_GLM["text_config"], "head_dim": 8}},
    "glm46v": {
        **_GLM,
        "text_config": {**_GLM["text_config"], "model_type": "glm4v_text"},
        "vision_config": {**_GLM["vision_config"], "model_type": "glm4v_vision"},
    },
    "glm4v_moe": {
        **_GLM,
        "text_config": {
            **_GLM["text_config"],
            **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
            **{"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
        },
    },
    "internvl": {"vision_config": {"image_size": [32, 32], "patch_size": [8, 8]}, "image_token_id": 101},
    "deepseek_vl": {"text_config": {"max_position_embeddings": 256}},
    "ovis2": {"text_config": {"max_position_embeddings": 256}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "wav2vec2": {
        "vocab_size": 40,
        "conv_dim": [16] * 7,
        "num_conv_pos_embedding_groups": 4,
        "num_conv_pos_embeddings": 8,
    },
}
OWN = {**OWN, "speecht5": {**OWN["wav2vec2"], "num_mel_bins": 8}}
for _name in ("donut-swin", "maskformer-swin"):
    OWN = {**OWN, _name: OWN["swin"]}
for _name in ("sew", "sew-d"):  # a stride and a kernel for each convolution
    OWN = {
        **OWN,
        _name: {"conv_dim": [16] * 13, "num_conv_pos_embedding_groups": 4, "num_conv_pos_embeddings": 8},
    }
for _name in ("detr", "conditional_detr", "dab-detr", "table-transformer", "deformable_detr", "tvp"):
    levels = ["stage2", "stage3", "stage4"] if _name == "deformable_detr" else ["stage4"]
    backbone = {**_RESNET, "out_features": levels}
    OWN = {**OWN, _name: {"use_timm_backbone": False, "backbone": None, "backbone_config": backbone}}
for _name in (
    "hubert",
    "wavlm",
    "unispeech",
    "unispeech-sat",
    "data2vec-audio",
    "wav2vec2-conformer",
):
    OWN = {**OWN, _name: OWN["wav2vec2"]}
