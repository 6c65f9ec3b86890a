"""Models of families that nothing in llmc names: the class, the inputs and the way of attention are found out."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kept_graphs
import numpy as np
import pytest
import torch
import transformers
from random_any import DECODER, TEXT, made

from llmc.compiler.frontends import pretrained, reference
from llmc.compiler.frontends.huggingface import load
from llmc.compiler.frontends.implementations import EAGER, choose
from llmc.compiler.frontends.inputs import Input, Inputs, inputs_of
from llmc.compiler.frontends.torch_model import load_torch
from llmc.compiler.interpret import run
from llmc.errors import LlmcError, LlmcWarning

TWO = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
PARTS = {"layers": 1, "attention_heads": 4, "ffn_dim": 48}
SEES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
PICTURES = {**SEES, "image_size": 16, "patch_size": 8}
CASES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    **{
        f"{family}ForSequenceClassification": (
            "text-classification",
            DECODER,
            {"input_ids", "attention_mask"},
        )
        for family in ("Llama", "Qwen2", "Qwen3", "Mistral", "Gemma", "Phi")
    },
    "GPT2ForSequenceClassification": (
        "text-classification",
        {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 100, "n_positions": 64, "pad_token_id": 1},
        {"input_ids", "attention_mask"},
    ),
    "Gemma2ForCausalLM": (
        "language-modeling",
        {**DECODER, "sliding_window": 8},
        {"input_ids", "attention_mask"},
    ),
    "BloomForCausalLM": (
        "language-modeling",
        {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "pad_token_id": 1},
        {"input_ids", "attention_mask"},
    ),
    "Gemma3TextModel": (  # EmbeddingGemma's mask is a rule of its own
        "feature-extraction",
        {
            **{**DECODER, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
            "use_bidirectional_attention": True,
        },
        {"input_ids", "attention_mask"},
    ),
    "AlbertForMultipleChoice": (
        "multiple-choice",
        {**TEXT, "embedding_size": 16},
        {"input_ids", "attention_mask", "token_type_ids"},
    ),
    "DebertaV2ForMultipleChoice": (  # the ids' choices divide rows that the mask counts
        "multiple-choice",
        {**TEXT, "pooler_hidden_size": 32},
        {"input_ids", "attention_mask"},
    ),
    "ModernBertForMultipleChoice": (
        "multiple-choice",
        {**TEXT, **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 1)},
        {"input_ids", "attention_mask"},
    ),
    "LayoutLMForTokenClassification": (
        "token-classification",
        TEXT,
        {"input_ids", "bbox", "attention_mask", "token_type_ids"},
    ),
    "T5ForConditionalGeneration": (
        "language-modeling",
        {**TWO, "decoder_start_token_id": 0},
        {"input_ids", "attention_mask", "decoder_input_ids"},
    ),
    "BartForSequenceClassification": (  # the end token's place is data
        "text-classification",
        {
            **{f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in PARTS.items()},
            **{"d_model": 32, "vocab_size": 100, "max_position_embeddings": 64, "num_labels": 3},
        },
        {"input_ids", "attention_mask"},
    ),
    "MambaForCausalLM": (  # a loop over the tokens
        "language-modeling",
        {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 100, "pad_token_id": 1},
        {"input_ids", "attention_mask"},
    ),
    "WhisperForConditionalGeneration": (
        "language-modeling",
        {
            **{f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in PARTS.items()},
            **{"d_model": 32, "vocab_size": 100, "num_mel_bins": 8, "max_source_positions": 20},
            **{"max_target_positions": 30, "decoder_start_token_id": 2, "pad_token_id": 1},
        },
        {"input_features", "decoder_input_ids"},
    ),
    "CLIPModel": (
        "feature-extraction",
        {"text_config": {**TEXT, "eos_token_id": 3}, "vision_config": PICTURES, "projection_dim": 16},
        {"input_ids", "attention_mask", "pixel_values"},
    ),
}
LOOPS = ("MambaForCausalLM",)  # graphs in graphs are not kept between runs
SHAPES = ({"batch": 1, "seq": 4, "choices": 1}, {"batch": 3, "seq": 23})


def imported(model: Any, **options: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load(folder, max_batch=4, **options)


@pytest.mark.filterwarnings("ignore:.*holds for no other sizes")  # BART's head reads the last of three
@pytest.mark.parametrize("name", CASES)
def test_it_computes_what_transformers_does(name: str) -> None:
    """Rows padded on the right, on the left and not at all, longer than what was traced."""
    task, settings, inputs = CASES[name]
    model = made(name, settings)
    whole = {"task": task} if task == "language-modeling" else {}
    found = imported(model, **whole) if name in LOOPS else kept_graphs.imported(model, max_batch=4, **whole)
    assert (found.task, {n.attributes["name"] for n in found.graph.inputs}) == (task, inputs)

    takes = inputs_of(model, Path("nowhere"), 4, 64)
    for number, sizes in enumerate(SHAPES):
        values = reference.sample(takes, model.config, {**reference.SIZES, **sizes}, number)
        with torch.no_grad():
            given = {k: torch.from_numpy(v) for k, v in values.items()}
            result = model(**given, return_dict=True)
        wanted = {k: result[k].numpy() for k in found.graph.outputs}
        assert reference.farthest(run(found.graph, values), wanted, values)[1] < 1e-5


def test_sound_is_a_wave_where_no_length_of_a_spectrogram_is_stated() -> None:
    """SpeechT5 writes down waves, and `num_mel_bins` is of the spectrograms that its sisters speak."""
    settings = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in PARTS.items()}
    small = {"hidden_size": 32, "vocab_size": 40, "conv_dim": [16] * 7, "num_conv_pos_embedding_groups": 4}
    model = made("SpeechT5ForSpeechToText", {**settings, **small, "num_conv_pos_embeddings": 8})
    takes = inputs_of(model, Path("nowhere"), 4, 64)
    assert {i.name: i.axes for i in takes.given} == {
        "input_values": ("batch", "samples"),
        "decoder_input_ids": ("batch", "target"),
    }


def test_a_mask_that_would_lose_the_past_is_not_taken() -> None:
    """BLOOM adds the mask itself: llmc's ways would show it the future."""
    model = made("BloomForCausalLM", CASES["BloomForCausalLM"][1])
    takes = inputs_of(model, Path("nowhere"), 4, 64)
    values = reference.sample(takes, model.config)
    given = {k: torch.from_numpy(v) for k, v in values.items()}
    model.set_attn_implementation("eager")

    def result() -> dict[str, Any]:
        with torch.no_grad():
            return {"logits": model(**given).logits.numpy()}

    wanted = result()
    assert choose(model, result, wanted, values, 64) == EAGER
    assert reference.farthest(result(), wanted, values)[1] < 1e-6


def test_a_graph_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong between the model and its graph is found before anything is compiled."""
    from llmc.compiler.frontends import aten

    model = made("BertForSequenceClassification", {**TEXT, "num_hidden_layers": 1})
    model.save_pretrained(tmp_path)
    load(tmp_path)  # fills the table
    whole = aten.TABLE["layer_norm.default"]

    def wrong(call: Any) -> Any:
        return call.op("mul", whole(call), call.scalar(1.01, "f32"))

    monkeypatch.setitem(aten.TABLE, "layer_norm.default", wrong)
    with pytest.raises(LlmcError, match="the imported graph computes another 'logits' than transformers"):
        load(tmp_path)


def test_a_window_that_is_lost_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample is longer than the window, or nobody would see that it hides nothing."""
    from llmc.compiler.frontends import implementations, masks

    made("MistralForCausalLM", {**DECODER, "sliding_window": 20, "num_hidden_layers": 1}).save_pretrained(
        tmp_path
    )
    whole = masks.key_mask
    monkeypatch.setattr(implementations, "EAGER", masks.WHOLE)  # no other way is right either
    monkeypatch.setattr(implementations, "WAYS", (masks.WHOLE, masks.WHOLE))

    def register() -> None:
        transformers.AttentionMaskInterface.register(
            masks.WHOLE, lambda local_size=None, **options: whole(local_size=None, **options)
        )

    masks.register()
    monkeypatch.setattr(implementations, "register", register)
    try:
        with pytest.raises(LlmcError, match="the imported graph computes another 'logits'"):
            load(tmp_path, "language-modeling")
    finally:
        transformers.AttentionMaskInterface.register(masks.WHOLE, whole)


def test_rows_are_longer_than_the_narrowest_window() -> None:
    def longest(**windows: Any) -> int:
        return reference.sizes_for(SimpleNamespace(**windows), 512)["seq"]

    assert longest() == longest(sliding_window=None) == longest(sliding_window=4096) == reference.SIZES["seq"]
    assert longest(sliding_window=20) == longest(local_attention=128, sliding_window=20) == 25
    assert reference.sizes_for(SimpleNamespace(sliding_window=20), 16)["seq"] == reference.SIZES["seq"]


def test_sample_tokens_are_of_the_smaller_of_two_vocabularies() -> None:
    """Encoder and decoder may have one each: Marian's, FSMT's, and those of models made of two."""
    takes = Inputs((Input("decoder_input_ids", ("batch", "seq")),), (), {"batch": (1, 4), "seq": (1, 64)})
    for config in (
        {"vocab_size": 90, "decoder_vocab_size": 12},
        {"src_vocab_size": 12, "tgt_vocab_size": 90},
        {"encoder": SimpleNamespace(vocab_size=90), "decoder": SimpleNamespace(vocab_size=12)},
    ):
        drawn = reference.sample(takes, SimpleNamespace(**config))["decoder_input_ids"]
        assert 2 < drawn.max() < 12


def test_a_window_may_be_of_single_layers() -> None:
    class Config:
        per_layer_config = (SimpleNamespace(sliding_window=None), SimpleNamespace(sliding_window=20))

        @property
        def sliding_window(self) -> int:
            raise RuntimeError("'sliding_window' is a per-layer attribute")

    assert reference.sizes_for(Config(), 512)["seq"] == 25


def test_a_class_may_name_several_first_inputs() -> None:
    assert pretrained.reads(["pixel_values", "task_inputs"]) == pretrained.reads("pixel_values") == "image"
    assert pretrained.reads("input_ids") == ""


def test_padded_places_do_not_count_but_all_others_do() -> None:
    mask = np.array([[1, 1, 0]])
    wanted = {"y": np.array([[1.0, 2.0, 3.0]]), "z": np.ones((1, 4))}
    assert (
        reference.farthest({**wanted, "y": np.array([[1.0, 2.0, 9.0]])}, wanted, {"attention_mask": mask})[1]
        == 0
    )
    name, away = reference.farthest(
        {**wanted, "y": np.array([[1.0, 3.0, 3.0]])}, wanted, {"attention_mask": mask}
    )
    assert (name, away) == ("y", 0.5)
    assert reference.farthest({"z": wanted["z"]}, wanted, {})[1] == float("inf")
    assert reference.farthest({"y": np.full((1, 3), np.nan), "z": wanted["z"]}, wanted, {})[1] == float("inf")


def test_a_mask_in_an_output_hides_nothing() -> None:
    lowest = np.finfo(np.float32).min
    wanted = {"y": np.array([[1.0, 2.0, lowest]], np.float32)}
    assert reference.farthest({"y": np.array([[1.0, 2.0, lowest / 2]], np.float32)}, wanted, {})[1] == 0
    assert reference.farthest({"y": np.array([[1.0, 3.0, lowest]], np.float32)}, wanted, {})[1] == 0.5
    assert reference.farthest({"y": np.array([[1.0, 2.0, 0.0]], np.float32)}, wanted, {})[1] > 1e30
    assert reference.farthest({"y": np.array([[1.0, 2.0, -lowest]], np.float32)}, wanted, {})[1] > 1e30


def test_a_class_of_another_model_type_is_refused(tmp_path: Path) -> None:
    import json

    model = made("BertModel", {**TEXT, "num_hidden_layers": 1})
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())

    def refused(**changes: Any) -> str:
        file.write_text(json.dumps({**config, **changes}))
        with pytest.raises(LlmcError) as caught:
            load(tmp_path)
        return str(caught.value)

    assert "GPT2Model is not of the model type 'bert'" in refused(architectures=["GPT2Model"])
    assert "did you mean bert" in refused(model_type="berrt")
    assert "needs Python code from the folder" in refused(model_type="mine", auto_map={"AutoModel": "m.M"})
    assert "no such class in transformers" in refused(architectures=["BertSpecialModel"])
    for other in ("logging", "pipeline", "__class__", "BertConfig", "AutoModel"):  # no models
        assert "no such class in transformers" in refused(architectures=[other])
    assert len(refused(architectures=["x" * 10_000])) < 2000


def test_a_classifier_without_a_padding_token_is_told_what_it_lacks(tmp_path: Path) -> None:
    made("LlamaForSequenceClassification", {**DECODER, "pad_token_id": None}).save_pretrained(tmp_path)
    with pytest.raises(LlmcError, match=r"give config\.json a pad_token_id"):
        load(tmp_path)


def test_pytorch_is_called_as_the_artifact_is(tmp_path: Path) -> None:
    model = made("LlamaForSequenceClassification", DECODER)
    model.save_pretrained(tmp_path)
    found = load_torch(tmp_path)
    values = found.sample({**reference.SIZES, "batch": 2, "seq": 5})
    assert (found.names, found.outputs) == (("input_ids", "attention_mask"), ("logits",))
    assert found.values(values)["logits"].shape == (2, 2)


def test_an_axis_that_the_code_fixes_is_named(tmp_path: Path) -> None:
    """A loop in Python over the tokens is unrolled: it holds for one length."""
    made(
        "XGLMForCausalLM", {"d_model": 32, "num_layers": 1, "attention_heads": 4, "vocab_size": 100}
    ).save_pretrained(tmp_path)
    kind = transformers.XGLMForCausalLM
    whole = kind.forward

    def forward(
        self: Any, input_ids: Any = None, attention_mask: Any = None, return_dict: bool = True
    ) -> Any:
        for _ in range(input_ids.shape[1]):
            input_ids = input_ids + 0
        return whole(self, input_ids=input_ids, attention_mask=attention_mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "forward", forward)
        with pytest.raises(LlmcError, match="its code holds for one size of seq only"):
            load(tmp_path, "language-modeling", max_batch=4)


def test_a_tokenizer_that_pads_with_another_token_is_told(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    made("LlamaForSequenceClassification", {**DECODER, "num_hidden_layers": 1}).save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({"a": 0, "[PAD]": 1, "</s>": 2}, unk_token="a"))
    for pad in ("[PAD]", "</s>"):
        transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token=pad).save_pretrained(tmp_path)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", LlmcWarning)
            load(tmp_path, max_batch=2)
        found = [str(w.message) for w in told if issubclass(w.category, LlmcWarning)]
        wanted = "the tokenizer pads with 2, pad_token_id of config.json is 1"
        assert [wanted in text for text in found] == ([] if pad == "[PAD]" else [True])
