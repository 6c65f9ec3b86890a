"""Configurations of small encoder-decoders of several families, for `random_any.made`."""

from __future__ import annotations

from typing import Any

RELATIVE = {
    **{"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 1, "num_heads": 4, "vocab_size": 100},
    **{
        "decoder_start_token_id": 0,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16,
    },
}
SIZES = {"layers": 1, "attention_heads": 4, "ffn_dim": 48}
LEARNED = {
    **{f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in SIZES.items()},
    **{"d_model": 32, "vocab_size": 100, "max_position_embeddings": 64, "scale_embedding": True},
    **{"decoder_start_token_id": 2, "pad_token_id": 1},
}
FIRST = {"pad_token_id": 0, "decoder_start_token_id": 0}
CODER = {  # of an encoder and a decoder that are families of their own
    **{"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 48, "vocab_size": 100},
    **{"max_position_embeddings": 64, "pad_token_id": 1},
}
WRITER = {
    "is_decoder": True,
    "add_cross_attention": True,
    **{"vocab_size": 100, "n_embd": 24, "n_layer": 1, "n_head": 3, "n_positions": 64},
}
SEER = {
    **{"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4},
    **{"intermediate_size": 48, "image_size": 16, "patch_size": 8},
}
PAIR = {"decoder_start_token_id": 2, "pad_token_id": 1, "eos_token_id": 3}
HEARD = {**{k: v for k, v in LEARNED.items() if not k.startswith(("max_position", "scale"))}}
CASES: dict[str, dict[str, Any]] = {
    "T5ForConditionalGeneration": RELATIVE,
    "UMT5ForConditionalGeneration": RELATIVE,
    "BartForConditionalGeneration": LEARNED,
    "MarianMTModel": {**LEARNED, "decoder_start_token_id": 1},
    "M2M100ForConditionalGeneration": LEARNED,
    "PegasusForConditionalGeneration": {**LEARNED, **FIRST},
    "WhisperForConditionalGeneration": {
        **HEARD,
        **{"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 40},
    },
    "FSMTForConditionalGeneration": {
        **{k: v for k, v in LEARNED.items() if k != "vocab_size"},
        **{"langs": ["en", "de"], "src_vocab_size": 100, "tgt_vocab_size": 100},
    },
    "Speech2TextForConditionalGeneration": {
        **HEARD,
        **{"max_source_positions": 60, "max_target_positions": 40},
        **{"input_feat_per_channel": 8, "conv_channels": 16},
    },
    "MoonshineForConditionalGeneration": {
        **{"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64},
        **{"encoder_num_hidden_layers": 1, "decoder_num_hidden_layers": 1},
        **{"encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4},
    },
    "SwitchTransformersForConditionalGeneration": {
        **RELATIVE,
        **{
            "num_experts": 4,
            "num_decoder_layers": 1,
            "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 1,
        },
    },
    "EncoderDecoderModel": {
        "encoder": {**CODER, "model_type": "bert", "num_attention_heads": 4},
        "decoder": {
            **{**CODER, "model_type": "bert", "num_attention_heads": 4},
            **{"is_decoder": True, "add_cross_attention": True},
        },
        **PAIR,
    },
    "VisionEncoderDecoderModel": {"encoder": SEER, "decoder": {**WRITER, "model_type": "gpt2"}, **PAIR},
}
TASKS = {
    **dict.fromkeys(("Whisper", "Speech2Text", "Moonshine"), "automatic-speech-recognition"),
    "VisionEncoderDecoder": "image-text-to-text",
}
