"""What models of the table in docs/support.md need of the importer, one kind of it each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kept_graphs
import pytest
import torch
from aten_lab import Function, compare
from random_any import DECODER, made

from llmc.compiler.frontends import reference
from llmc.compiler.frontends.huggingface import load
from llmc.compiler.frontends.inputs import inputs_of
from llmc.compiler.frontends.sizes import want_of
from llmc.compiler.interpret import run
from llmc.errors import LlmcError

TOKENS = {"vocab_size": 100, "pad_token_id": 1}
TWO = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 48))}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "FSMTForConditionalGeneration": (  # asks whether anything is padded
        "language-modeling",
        {
            **{**TWO, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "d_model": 32},
            **{"src_vocab_size": 100, "tgt_vocab_size": 100, "langs": ["en", "de"], "use_cache": False},
            **{"max_position_embeddings": 64, "num_hidden_layers": 1},
        },
    ),
    "XLMWithLMHeadModel": (  # checks lengths, and appends to tensors that hold nothing
        "auto",
        {**TOKENS, "emb_dim": 32, "n_layers": 1, "n_heads": 4, "max_position_embeddings": 64, "pad_index": 1},
    ),
    "JambaForCausalLM": (  # attention and state spaces, cut at `-seq`
        "language-modeling",
        {
            **{**DECODER, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
            **{"expert_layer_offset": 1, "num_experts": 2, "mamba_d_state": 4, "mamba_dt_rank": 4},
        },
    ),
    "Idefics3VisionTransformer": (  # only inherits that it reads text
        "auto",
        {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
        | {"image_size": 16, "patch_size": 8},
    ),
}
LOOPS = ("JambaForCausalLM",)  # graphs in graphs are not kept between runs


@pytest.mark.parametrize("name", CASES)
def test_it_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    task, settings = CASES[name]
    model = made(name, settings)
    model.save_pretrained(tmp_path)
    kept = name not in LOOPS
    graph = (
        kept_graphs.imported(model, task=task, max_batch=4) if kept else load(tmp_path, task, max_batch=4)
    ).graph
    takes = inputs_of(model, Path("nowhere"), 4, 64)
    for number, (batch, seq) in enumerate(((1, 4), (3, 23))):
        sizes = {**reference.SIZES, "batch": batch, "seq": seq}
        values = reference.sample(takes, model.config, sizes, number)
        with torch.no_grad():
            result = model(**{k: torch.from_numpy(v) for k, v in values.items()}, return_dict=True)
        wanted = {k: result[k].numpy() for k in graph.outputs}
        assert reference.farthest(run(graph, values), wanted, values)[1] < 1e-5


def test_nothing_to_append_to_and_a_part_counted_from_the_end() -> None:
    compare(Function(lambda x, i: torch.cat([x.new_zeros(0), x], 2)))
    compare(Function(lambda x, i: torch.cat([x.new_zeros(x.shape[0], 3, 6), x], 1)[:, -x.shape[1] :]))


def test_a_class_of_another_type_is_taken_where_transformers_takes_it(tmp_path: Path) -> None:
    """`internlm3` is read by Llama's class."""
    made("LlamaForCausalLM", {**DECODER, "num_hidden_layers": 1}).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "internlm3"}))
    assert load(tmp_path, "language-modeling", max_batch=2).model_type == "internlm3"


def test_a_model_without_tensors_among_its_outputs_is_refused(tmp_path: Path) -> None:
    settings = {"image_size": [16, 16], "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    made("MgpstrForSceneTextRecognition", settings).save_pretrained(tmp_path)
    with pytest.raises(LlmcError, match="gives nothing that is a tensor"):
        load(tmp_path)


def test_layers_that_all_have_experts_leave_the_plain_size_unused() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 11_008, "num_hidden_layers": 2}
    want_of({**sizes, "moe_intermediate_size": 32}, {}, "config.json")
    with pytest.raises(LlmcError, match="intermediate_size is larger than any weight"):
        want_of(sizes, {}, "config.json")
