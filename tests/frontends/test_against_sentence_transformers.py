"""Folders that sentence-transformers wrote, with every kind of module: its own numbers for the same texts."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from random_families import random_model

from llmc.compiler.frontends.folder import inspect
from llmc.compiler.frontends.huggingface import load, tokenizer_of
from llmc.compiler.interpret import run
from llmc.compiler.pipeline import Pipeline
from llmc.errors import LlmcError
from llmc.passes import LEVELS, PASSES
from llmc.passes.rows.ragged import ragged_steps
from llmc.tokens import encoder_of

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "query", ":", *"abcdefghijklmnopqrstuvwxyz"]
TEXTS = ["a b c d e f g", "h", "i j k l", "x y"]
MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer import modules as kinds


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`encoder(**settings of the tokenizer)`: a BERT whose layers all are handed out."""
    made = random_model("bert", "Model", num_hidden_layers=2, pad_token_id=0, output_hidden_states=True)

    def save(**settings: Any) -> Path:
        folder = tmp_path_factory.mktemp("bert")
        made.save_pretrained(folder)
        transformers.BertTokenizer({word: i for i, word in enumerate(WORDS)}, **settings).save_pretrained(
            folder
        )
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "output_hidden_states": True}))
        return folder

    return save


def drawn(module: Any) -> Any:
    """Numbers that show."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + 0.2)
    return module


def pooling(width: int = 32, mode: Any = "mean", **options: Any) -> Any:
    return kinds.Pooling(width, mode, **options)


def chain() -> list[Any]:
    """Every other module, on both sides of the pooling."""
    return [
        drawn(kinds.WeightedLayerPooling(32, 2, layer_start=1)),
        drawn(Dense(32, 16, module_input_name="token_embeddings")),
        drawn(kinds.CNN(16, 8, [1, 3, 5])),
        pooling(24, ("mean", "max")),
        kinds.Dropout(0.3),
        drawn(kinds.LayerNorm(48)),
        drawn(Dense(48, 48, activation_function=torch.nn.GELU(), use_residual=True)),
        drawn(Dense(48, 8, bias=False, activation_function=torch.nn.SiLU(), use_residual=True)),
        Normalize(),
    ]


def saved(encoder: Path, parts: list[Any], place: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules = [Transformer(str(encoder)), *parts]
        model = sentence_transformers.SentenceTransformer(modules=modules, device="cpu", **options)
        model.save(str(place))
        return sentence_transformers.SentenceTransformer(str(place), device="cpu", local_files_only=True)


def theirs(model: Any, texts: list[str], **options: Any) -> np.ndarray[Any, Any]:
    """In one batch: a convolution sees the padding."""
    found: np.ndarray[Any, Any] = model.encode(texts, batch_size=len(texts), **options)
    return found


def arrays(folder: Path, texts: list[str]) -> dict[str, Any]:
    made = tokenizer_of(inspect(folder))
    assert made is not None
    rows = encoder_of(made, made.max_length)(texts)
    fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return {name: np.array([getattr(row, field) for row in rows]) for name, field in fields.items()}


@pytest.fixture(scope="module")
def every_mode(
    encoder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path, Any]:
    """The model of sentence-transformers, its folder, and its graph."""
    folder = tmp_path_factory.mktemp("pooled") / "model"
    return saved(encoder(), [pooling(mode=tuple(MODES))], folder), folder, load(folder).graph


def want_same(graph: Any, inputs: dict[str, Any], wanted: np.ndarray[Any, Any]) -> None:
    """The graph as imported, and as it runs: on the tokens that exist."""
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(run(graph, inputs)["sentence_embedding"], wanted, rtol=0, atol=1e-5 * scale)
    fused = Pipeline.parse(LEVELS[3], PASSES).run(graph)[0]
    packed = run(ragged_steps(fused, blank=True).run(fused)[0], inputs)["sentence_embedding"]
    np.testing.assert_allclose(packed, wanted, rtol=0, atol=1e-4 * scale)


def test_all_ways_to_pool(every_mode: tuple[Any, Path, Any]) -> None:
    model, folder, graph = every_mode
    want_same(graph, arrays(folder, TEXTS), theirs(model, TEXTS))


def test_padding_on_the_left(
    every_mode: tuple[Any, Path, Any], encoder: Callable[..., Path], tmp_path: Path
) -> None:
    *_, graph = every_mode
    model = saved(encoder(padding_side="left"), [pooling(mode=tuple(MODES))], tmp_path / "model")
    inputs = arrays(tmp_path / "model", TEXTS)
    assert inputs["attention_mask"][1, 0] == 0
    want_same(graph, inputs, theirs(model, TEXTS))


def test_rows_without_tokens(every_mode: tuple[Any, Path, Any]) -> None:
    """A last token that is not there is a vector of zeros, as it is there."""
    _, folder, graph = every_mode
    inputs = arrays(folder, TEXTS)
    inputs["attention_mask"][2] = 0
    found = run(graph, inputs)["sentence_embedding"][:, -32:]
    assert not found[2].any()
    assert found[0].any()


def test_all_other_modules(encoder: Callable[..., Path], tmp_path: Path) -> None:
    model = saved(encoder(), chain(), tmp_path / "model")
    want_same(load(tmp_path / "model").graph, arrays(tmp_path / "model", TEXTS), theirs(model, TEXTS))


def test_settings(encoder: Callable[..., Path], tmp_path: Path) -> None:
    options = {"prompts": {"q": "query : "}, "default_prompt_name": "q", "truncate_dim": 5}
    saved(encoder(), [pooling()], tmp_path / "model", similarity_fn_name="dot", **options)
    told = inspect(tmp_path / "model").sentence
    assert told is not None
    assert (told.similarity, told.width, told.text.prompt) == ("dot", 5, "q")


def test_layers_that_are_not_handed_out(encoder: Callable[..., Path], tmp_path: Path) -> None:
    """sentence-transformers passes the last one on then, and so does llmc."""
    saved(encoder(), chain(), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "output_hidden_states": False}))
    told = inspect(tmp_path / "model").sentence
    assert told is not None
    assert [type(step).__name__ for step in told.before] == ["Dense", "Layer"]


REFUSED: dict[str, tuple[Callable[[], list[Any]], str]] = {
    "an LSTM": (lambda: [kinds.LSTM(32, 8), pooling(16)], "module LSTM is not supported"),
    "steps of two": (lambda: [kinds.CNN(32, 4, [3], [2]), pooling(4)], "changes the number of tokens"),
    "an even window": (lambda: [kinds.CNN(32, 4, [2]), pooling(4)], "changes the number of tokens"),
    "other layers": (
        lambda: [kinds.WeightedLayerPooling(32, 4, layer_start=1), pooling()],
        "weights 4 layers, and the model has 2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, encoder: Callable[..., Path], tmp_path: Path) -> None:
    parts, words = REFUSED[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules = [Transformer(str(encoder())), *parts()]
        sentence_transformers.SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "model"))
    with pytest.raises(LlmcError, match=words):
        load(tmp_path / "model")
