"""Whisper by OpenVINO: an encoder that computes the decoder's keys and values of the sound once, and a decoder.

The decoder takes those of the sound as inputs, in memory that is not copied, and keeps those of the text as OpenVINO's
variables. int8 is NNCF's compression of weights, with which OpenVINO's products take activations of bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from listeners import spectrogram
from torch.nn import functional

Array = np.ndarray[Any, np.dtype[Any]]
Tensor = torch.Tensor


def _heads(x: Tensor, heads: int) -> Tensor:
    """[1, places, width] -> [1, heads, places, width of a head]."""
    return x.view(1, -1, heads, x.shape[-1] // heads).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(1, -1, x.shape[1] * x.shape[3])


class Encoder(torch.nn.Module):
    """Spectrogram -> keys and values of every layer of the decoder."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.layers = model.model.encoder, model.model.decoder.layers

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        hidden = self.encoder(features).last_hidden_state
        found: list[Tensor] = []
        for layer in self.layers:
            own = layer.encoder_attn
            found += [_heads(project(hidden), own.num_heads) for project in (own.k_proj, own.v_proj)]
        return tuple(found)


class Decoder(torch.nn.Module):
    """Tokens, their first place, keys and values of sound and text -> logits of the last token, the text's grown."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.head = model.model.decoder, model.proj_out

    def forward(self, tokens: Tensor, place: Tensor, *held: Tensor) -> tuple[Tensor, ...]:
        places = place + torch.arange(tokens.shape[1])
        x = self.decoder.embed_tokens(tokens) + functional.embedding(
            places, self.decoder.embed_positions.weight
        )
        count, kept = 2 * len(self.decoder.layers), list[Tensor]()
        seen = torch.arange(tokens.shape[1] + held[count].shape[2])[None] <= places[:, None]
        for number, layer in enumerate(self.decoder.layers):
            sound, text = held[2 * number :][:2], held[count + 2 * number :][:2]
            x, grown = _layer(layer, x, sound, text, seen)
            kept += grown
        return self.head(self.decoder.layer_norm(x[:, -1:])), *kept


def _layer(
    layer: Any, x: Tensor, sound: tuple[Tensor, ...], text: tuple[Tensor, ...], seen: Tensor
) -> tuple[Tensor, list[Tensor]]:
    attend = functional.scaled_dot_product_attention
    own, other = layer.self_attn, layer.encoder_attn
    y = layer.self_attn_layer_norm(x)
    new = [_heads(project(y), own.num_heads) for project in (own.k_proj, own.v_proj)]
    grown = [torch.cat(pair, 2) for pair in zip(text, new, strict=True)]
    query = _heads(own.q_proj(y), own.num_heads)
    x = x + own.out_proj(_joined(attend(query, *grown, attn_mask=seen[None, None])))
    query = _heads(other.q_proj(layer.encoder_attn_layer_norm(x)), other.num_heads)
    x = x + other.out_proj(_joined(attend(query, *sound)))
    y = functional.gelu(layer.fc1(layer.final_layer_norm(x)))
    return x + layer.fc2(y), grown


def _export(folder: Path, cache: Path) -> None:
    """Both parts as files, in fp32 and with weights of bytes."""
    import nncf
    import openvino
    from transformers import WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa").eval()
    config = model.config
    heads, width = config.decoder_attention_heads, config.d_model // config.decoder_attention_heads
    layers, positions = config.decoder_layers, config.max_source_positions
    sound, text = torch.zeros(1, heads, positions, width), torch.zeros(1, heads, 3, width)
    with torch.no_grad():
        features = torch.zeros(1, config.num_mel_bins, 2 * positions)
        encoder = openvino.convert_model(
            Encoder(model), example_input=(features,), input=[list(features.shape)]
        )
        example = (
            torch.zeros(1, 4, dtype=torch.int64),
            torch.tensor([3]),
            *[sound] * 2 * layers,
            *[text] * 2 * layers,
        )
        shapes = [[1, -1], [1], *[list(sound.shape)] * 2 * layers, *[[1, heads, -1, width]] * 2 * layers]
        decoder = openvino.convert_model(Decoder(model), example_input=example, input=shapes)
    _keep(decoder, 2 * layers)
    for name, part in (("encoder", encoder), ("decoder", decoder)):
        openvino.save_model(part, str(cache / f"{name}-fp32.xml"), compress_to_fp16=False)
        small = nncf.compress_weights(part, mode=nncf.CompressWeightsMode.INT8_SYM)
        openvino.save_model(small, str(cache / f"{name}-int8.xml"), compress_to_fp16=False)


def _keep(decoder: Any, states: int) -> None:
    """Make the text's keys and values variables."""
    from openvino._offline_transformations import apply_make_stateful_transformation

    inputs, outputs = decoder.inputs[-states:], decoder.outputs[1:]
    pairs = {}
    for number, (given, made) in enumerate(zip(inputs, outputs, strict=True)):
        given.get_tensor().set_names({f"text.{number}"})
        made.get_tensor().set_names({f"grown.{number}"})
        pairs[f"text.{number}"] = f"grown.{number}"
    apply_make_stateful_transformation(decoder, pairs)


class Whisper:
    """Both parts, compiled for a number of threads."""

    def __init__(self, folder: Path, cache: Path, threads: int, int8: bool, prompt: list[int]) -> None:
        import openvino

        kind = "int8" if int8 else "fp32"
        if not (cache / "decoder-int8.xml").exists():
            cache.mkdir(parents=True, exist_ok=True)
            _export(folder, cache)
        settings = {
            **{"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads},
            **{"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"},
        }
        core = openvino.Core()
        parts = [
            core.compile_model(str(cache / f"{name}-{kind}.xml"), "CPU", settings)
            for name in ("encoder", "decoder")
        ]
        self.encoder, self.decoder = (part.create_infer_request() for part in parts)
        self.sounds = len(parts[0].outputs)
        said = json.loads((folder / "generation_config.json").read_text())
        self.end, self.longest, self.prompt = said["eos_token_id"], said["max_length"], prompt
        self.never, self.never_first = said["suppress_tokens"], said["begin_suppress_tokens"]

    def listen(self, samples: Array) -> list[int]:
        """The tokens of what is said."""
        self.encoder.infer([spectrogram(samples)], share_inputs=True, share_outputs=True)
        for number in range(self.sounds):
            self.decoder.set_input_tensor(2 + number, self.encoder.get_output_tensor(number))
        self.decoder.reset_state()
        return list(self._tokens())

    def _tokens(self) -> Iterator[int]:
        given, place = self.prompt, 0
        for number in range(self.longest - len(self.prompt)):
            scores = self._scores(given, place)
            scores[self.never] = -np.inf
            if number == 0:
                scores[self.never_first] = -np.inf
            token = int(scores.argmax())
            if token == self.end:
                return
            yield token
            place, given = place + len(given), [token]

    def _scores(self, tokens: list[int], place: int) -> Array:
        from openvino import Tensor

        self.decoder.set_input_tensor(0, Tensor(np.array([tokens], np.int64)))
        self.decoder.set_input_tensor(1, Tensor(np.array([place], np.int64)))
        self.decoder.infer()
        return np.array(self.decoder.get_output_tensor(0).data[0, -1])
