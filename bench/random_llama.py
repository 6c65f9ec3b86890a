"""A Llama shape with random weights, as a Hugging Face folder: one billion parameters unless asked otherwise.

    python bench/random_llama.py -o FOLDER [--hidden 2048 --layers 16 --heads 32 --kv-heads 8 --inner 8192]

bf16, a shard for each layer, the head tied to the table. Weights are normal with a deviation of 0.02 from a fixed
seed: speed does not depend on their values. Of memory it takes one layer's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

DEVIATION, POSITIONS = 0.02, 2048
Tensors = dict[str, torch.Tensor]


def shapes(asked: argparse.Namespace) -> Iterator[dict[str, tuple[int, ...]]]:
    """The names and shapes of each shard: the table and the last norm, then layer by layer."""
    hidden, inner, size = asked.hidden, asked.inner, asked.hidden // asked.heads
    yield {"model.embed_tokens.weight": (asked.vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in range(asked.layers):
        parts = {
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (asked.heads * size, hidden),
            "self_attn.k_proj": (asked.kv_heads * size, hidden),
            "self_attn.v_proj": (asked.kv_heads * size, hidden),
            "self_attn.o_proj": (hidden, asked.heads * size),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        yield {f"model.layers.{layer}.{name}.weight": shape for name, shape in parts.items()}


def filled(shard: dict[str, tuple[int, ...]], source: torch.Generator) -> Tensors:
    """Random matrices, and ones for norms."""
    return {
        name: torch.ones(shape, dtype=torch.bfloat16)
        if len(shape) == 1
        else (torch.randn(shape, generator=source) * DEVIATION).to(torch.bfloat16)
        for name, shape in shard.items()
    }


def config(asked: argparse.Namespace) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": asked.vocabulary,
        "hidden_size": asked.hidden,
        "intermediate_size": asked.inner,
        "num_hidden_layers": asked.layers,
        "num_attention_heads": asked.heads,
        "num_key_value_heads": asked.kv_heads,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def write(asked: argparse.Namespace) -> int:
    """Write the folder; the number of its parameters."""
    source, where, count = torch.Generator().manual_seed(0), {}, 0
    asked.output.mkdir(parents=True)
    for number, shard in enumerate(shapes(asked), 1):
        file, tensors = f"model-{number:05}-of-{asked.layers + 1:05}.safetensors", filled(shard, source)
        save_file(tensors, asked.output / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
        count += sum(tensor.numel() for tensor in tensors.values())
    index = {"metadata": {"total_size": 2 * count}, "weight_map": where}
    for name, value in (("model.safetensors.index.json", index), ("config.json", config(asked))):
        (asked.output / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    for name, default in (("hidden", 2048), ("layers", 16), ("heads", 32), ("kv-heads", 8), ("inner", 8192)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--vocabulary", type=int, default=32000)
    print(f"{write(parser.parse_args()):,} parameters")


if __name__ == "__main__":
    main()
