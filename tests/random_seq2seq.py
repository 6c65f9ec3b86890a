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
CASES: dict[str, dict[str, Any]] = {
    "T5ForConditionalGeneration": RELATIVE,
    "UMT5ForConditionalGeneration": RELATIVE,
    "BartForConditionalGeneration": LEARNED,
    "MarianMTModel": {**LEARNED, "decoder_start_token_id": 1},
    "M2M100ForConditionalGeneration": LEARNED,
    "PegasusForConditionalGeneration": {**LEARNED, **FIRST},
    "WhisperForConditionalGeneration": {
        **{k: v for k, v in LEARNED.items() if not k.startswith(("max_position", "scale"))},
        **{"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 40},
    },
}
