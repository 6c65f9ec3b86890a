"""Encoder-decoders as `encode` and `step`: call by call they compute what transformers does for source and text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kept_graphs
import numpy as np
import pytest
import torch
from random_any import made
from random_seq2seq import CASES, LEARNED, TASKS

from llmc.compiler.frontends import generation_config, seq2seq, seq2seq_folder
from llmc.compiler.frontends.folder import inspect
from llmc.compiler.interpret import step
from llmc.compiler.module import Module, State
from llmc.compiler.verify import verify_module
from llmc.errors import LlmcError

CALLS = (7, 1, 1, 4, 1, 12, 3)


def source_of(model: Any, graph: Any, tokens: int) -> dict[str, Any]:
    (node,) = graph.inputs
    rng = np.random.default_rng(tokens)
    if node.attributes["name"] == "input_ids":
        return {"input_ids": rng.integers(4, 100, (1, tokens))}
    shape = [size if isinstance(size, int) else tokens for size in node.shape]
    return {node.attributes["name"]: rng.normal(size=shape).astype(np.float32)}


def lengths_of(graph: Any) -> tuple[int, ...]:
    """Of sources: the least, more than were traced, and many; one where all are as long."""
    (bounds,) = graph.dims.values() or [(20, 20)]
    return tuple(
        dict.fromkeys((bounds[0], min(2 * bounds[0] + 21, bounds[1]), min(64 * bounds[0], bounds[1])))
    )


def played(functions: Any, source: Any, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """All logits of a text [1, n], by calls of several lengths."""
    _, states = step(functions["encode"], source, {})
    found, at = [], 0
    for tokens in CALLS:
        given = {"input_ids": ids[:, at : at + tokens], "logits_to_keep": np.arange(tokens)}
        outputs, states = step(functions["step"], given, states)
        found.append(outputs["logits"])
        at += tokens
    return np.concatenate(found, 1)


def text(start: int) -> np.ndarray[Any, Any]:
    ids = np.random.default_rng(0).integers(4, 100, (1, sum(CALLS)))
    ids[0, 0] = start
    return ids


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.imports) if n == "BartForConditionalGeneration" else n for n in CASES],
)
def test_every_step_is_that_of_source_and_text_at_once(name: str, tmp_path: Path) -> None:
    """Of sources of one token, of more than were traced, and of the most."""
    model = made(name, CASES[name])
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path)  # some compute their positions anew
    found = kept_graphs.imported(model)
    kind = name.removesuffix("ForConditionalGeneration").removesuffix("Model")
    assert found.task == TASKS.get(kind, "text2text-generation")
    assert list(found.functions) == ["encode", "step"]
    verify_module(Module(found.functions))
    start = model.config.decoder_start_token_id
    assert found.generation["encoder"] == {
        "function": "encode",
        "source": found.graph.inputs[0].attributes["name"],
        "start": start,
    }
    ids = text(start)
    for tokens in lengths_of(found.graph):
        source = source_of(model, found.graph, tokens)
        given = {k: torch.from_numpy(v) for k, v in source.items()}
        with torch.no_grad():
            wanted = model(**given, decoder_input_ids=torch.from_numpy(ids), use_cache=False).logits.numpy()
        away = np.abs(played(found.functions, source, ids) - wanted).max() / np.abs(wanted).max()
        assert away < 1e-5, tokens


def test_what_is_kept_of_source_and_text() -> None:
    """`step` reads keys and values of the source and changes none; neither makes a mask."""
    found = kept_graphs.imported(made("BartForConditionalGeneration", LEARNED))
    step_, encode = found.functions["step"], found.functions["encode"]
    own = {f"layers.0.{part}": "f32[1, 4, past, 8], axis 2 grows" for part in ("keys", "values")}
    cross = {f"cross.0.{part}": "f32[1, 4, source, 8]" for part in ("keys", "values")}
    assert {s.name: str(s) for s in map(State.of, step_.states)} == own | cross
    assert {s.name: str(s) for s in map(State.of, encode.states)} == cross
    assert (set(step_.updates), set(encode.updates)) == (set(own), set(cross))
    kinds = [(n.attributes["causal"], len(n.inputs)) for n in step_.nodes if n.op == "attention"]
    assert sorted(kinds) == [(False, 3), (True, 3)]
    assert {len(n.inputs) for n in encode.nodes if n.op == "attention"} == {3}


def test_weights_of_both_functions_are_one() -> None:
    """The table of tokens, which the head has too."""
    found = kept_graphs.imported(made("BartForConditionalGeneration", LEARNED))
    tables = [
        {n.attributes["value"].digest for n in graph.nodes if n.op == "constant" and n.shape == (100, 32)}
        for graph in found.functions.values()
    ]
    assert tables[0] == tables[1]
    assert len(tables[0]) == 1


def opened(folder: Path, name: str = "BartForConditionalGeneration") -> tuple[Any, Any]:
    """What the folder of a model says, and the model."""
    model = made(name, CASES[name])
    model.save_pretrained(folder)
    return inspect(folder), model


def test_bounds_of_source_and_text(tmp_path: Path) -> None:
    """A text may be longer than the source's positions, but not than was asked for."""
    summary, model = opened(tmp_path, "WhisperForConditionalGeneration")
    source, bounds = seq2seq_folder._source(model, summary, summary.max_positions)
    assert (source.axes, bounds) == ((1, 8, 40), {"seq": (1, 40)})
    assert seq2seq_folder._source(model, summary, 15)[1] == {"seq": (1, 15)}
    (tmp_path / "text").mkdir()
    summary, model = opened(tmp_path / "text")
    assert seq2seq_folder._source(model, summary, 32)[1] == {"seq": (1, 32), "source": (1, 32)}


def test_what_a_folder_says(tmp_path: Path) -> None:
    """Of an older folder options are in config.json; to a model without an encoder its prompt is the source."""
    said = {
        "num_beams": 4,
        "no_repeat_ngram_size": 3,
        "encoder_no_repeat_ngram_size": 2,
        "length_penalty": 2.0,
    }
    names = {"function": "step", "tokens": "input_ids", "logits": "logits", "vocabulary": 9, "max_length": 9}
    encoder = {"function": "encode", "source": "input_ids"}
    config = {"is_encoder_decoder": True, "bos_token_id": 3, **said, "d_model": 8}
    found = generation_config.read(tmp_path, config, **names, encoder=encoder).facts
    assert found["defaults"] == said
    assert found["encoder"] == {**encoder, "start": 3}
    (tmp_path / "generation_config.json").write_text('{"encoder_no_repeat_ngram_size": 2}')
    found = generation_config.read(tmp_path, config, **names).facts
    assert found["defaults"] == {"encoder_no_repeat_ngram_size": 2}


def test_a_model_that_begins_with_nothing_is_told(tmp_path: Path) -> None:
    summary, model = opened(tmp_path)
    summary.config.update(decoder_start_token_id=None, bos_token_id=None)
    (tmp_path / "generation_config.json").unlink()
    assert seq2seq_folder.load(summary, model, 64) == ({}, "no decoder_start_token_id is given")


def test_functions_that_compute_something_else_are_refused() -> None:
    found = kept_graphs.imported(made("BartForConditionalGeneration", LEARNED))
    source, ids = torch.full((1, 3), 5), torch.from_numpy(text(2))
    wanted = {"logits": np.ones((1, sum(CALLS), 100), np.float32)}
    with pytest.raises(
        LlmcError, match="computes other logits, token by token, than transformers for the whole text"
    ):
        seq2seq._want_same(found.functions, source, ids, wanted, "here")
