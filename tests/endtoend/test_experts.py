"""Mixtures of experts of transformers: imported with all experts of a layer in one product, and compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aten_lab import compare, values
from random_any import DECODER, made
from torch import nn
from transformers import AutoConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

import llmc
from llmc.compiler.graph import Graph
from llmc.driver import compile_graph

SIZES = {"hidden_size": 8, "intermediate_size": 12, "num_local_experts": 5, "num_experts_per_tok": 2}
BLOCKS = {"mixtral": MixtralSparseMoeBlock, "gpt_oss": GptOssMLP}  # the second: turned weights, biases


class Block(nn.Module):
    """The experts of one layer."""

    def __init__(self, name: str) -> None:
        super().__init__()
        config = AutoConfig.for_model(name, **SIZES)
        config._experts_implementation = "grouped_mm"
        self.block = BLOCKS[name](config)
        generator = torch.Generator().manual_seed(3)
        for parameter in self.block.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x: torch.Tensor, i: torch.Tensor) -> tuple[torch.Tensor, ...]:
        made = self.block(nn.functional.pad(x, (0, 2)))
        return (made[0] if isinstance(made, tuple) else made, i)


def block(name: str) -> Graph:
    return compare(Block(name))


@pytest.mark.parametrize("name", BLOCKS)
def test_experts_are_one_product(name: str) -> None:
    graph = block(name)
    assert [n.op for n in graph.nodes].count("grouped_matmul") == 2


def test_compiled(tmp_path: Path, bits_agree: Any) -> None:
    """Also with so few rows that experts have none; the same bits on any number of threads."""
    module = Block("mixtral")
    compile_graph(compare(module), tmp_path / "experts.llmc", target="x86-avx2")

    for shape in ((1, 1), (3, 7), (8, 32)):
        given, runs = values(*shape), []
        for threads in (1, 3):
            with llmc.load(tmp_path / "experts.llmc", threads=threads) as model:
                runs.append(model(**given))
        assert bits_agree(runs)
        with torch.no_grad():
            expected = module(*(torch.from_numpy(v) for v in given.values()))[0].numpy()
        np.testing.assert_allclose(runs[0]["y0"], expected, rtol=1e-4, atol=1e-4)


def test_a_step_with_sinks_has_the_bits_of_the_whole_text(tmp_path: Path) -> None:
    """GPT-OSS: attention with a sink beside the keys, and experts."""
    small = {**DECODER, **SIZES, "hidden_size": 32, "num_hidden_layers": 1, "sliding_window": 8}
    made("GptOssForCausalLM", {**small, "layer_types": ["full_attention"]}).save_pretrained(tmp_path / "m")
    llmc.compile(tmp_path / "m", tmp_path / "m.llmc", target="x86-avx2")
    ids = np.random.default_rng(0).integers(4, 100, 50).tolist()
    with llmc.load(tmp_path / "m.llmc", threads=2) as model:

        def played(*counts: int) -> np.ndarray[Any, Any]:
            found, at = [], 0
            with model.session() as session:
                for count in counts:
                    part = {"input_ids": [ids[at : at + count]], "logits_to_keep": range(count)}
                    found.append(np.array(session.run({k: np.array(v) for k, v in part.items()})["logits"]))
                    at += count
            return np.concatenate(found, 1)

        whole = played(50)
        assert np.array_equal(played(*[1] * 50), whole)
        assert np.array_equal(played(7, 3, *[1] * 20, 20), whole)
