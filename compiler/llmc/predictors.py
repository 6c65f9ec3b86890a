"""What `llmc eval` compares: texts in, arrays out, by an artifact or by PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmc.errors import LlmcError, TextsCut
from llmc.runtime.encoder import was_cut

Array = np.ndarray[Any, Any]
Predict = Callable[[list[Any]], Array]
OUTPUTS = {"text-classification": "logits", "sentence-embedding": "sentence_embedding"}


@dataclass(frozen=True)
class Predictor:
    """Texts to outputs; how many texts were cut so far."""

    run: Predict
    cut: Callable[[], int]

    def __call__(self, texts: list[Any]) -> Array:
        return self.run(texts)


def of_artifact(model: Any, strict: bool = False) -> Predictor:
    """By an open artifact; if `strict`, a text that is too long is an error."""
    name = OUTPUTS[model.task]

    def predict(texts: list[Any]) -> Array:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TextsCut)  # all are told of at the end
            return np.asarray(model.run_text(texts, truncate=not strict)[name])

    return Predictor(predict, lambda: int(model.cut_texts))


def of_baseline(path: str | Path, model: Any, threads: int | None) -> Predictor:
    """By another artifact or, with PyTorch, by a folder; for the task of `model`."""
    import llmc

    if (Path(path) / "manifest.json").is_file():
        other = llmc.load(path, threads=threads)
        if other.task != model.task:
            raise LlmcError(f"the baseline's task is {other.task}, not {model.task}", at=str(path))
        return of_artifact(other)
    return _torch(Path(path), model, threads)


def _torch(path: Path, model: Any, threads: int | None) -> Predictor:
    """The folder in PyTorch, its own tokenizer cut at the artifact's longest sequence."""
    import torch

    from llmc.compiler.frontends import huggingface, overlay, plain_folder
    from llmc.runtime.text import Tokenizer
    from llmc.tokens import encoder_of

    with plain_folder.plain(plain_folder.origin(path)) as plain:
        source = huggingface.load_torch(plain.path, model.task)
        tokenizer = overlay.lasting(source.tokenizer, plain.path, path)
    if tokenizer is None:
        raise LlmcError("the baseline has no tokenizer", at=str(path))
    longest = min(tokenizer.max_length, Tokenizer.of(model).longest)
    encoder, made = encoder_of(tokenizer, longest), tokenizer.inputs
    fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    place = source.outputs.index(OUTPUTS[model.task])
    if threads is not None:
        torch.set_num_threads(threads)

    cut = 0

    @torch.no_grad()
    def predict(texts: list[Any]) -> Array:
        nonlocal cut
        encoded = encoder(texts)
        cut += len(was_cut(encoded))
        given = [torch.tensor([_field(e, fields[n], n in made) for e in encoded]) for n in source.names]
        result = source.run(*given)
        chosen = result[place] if isinstance(result, tuple | list) else result
        return np.asarray(chosen.numpy())

    return Predictor(predict, lambda: cut)


def _field(encoding: Any, name: str, made: bool) -> Any:
    """An input of the model; what the tokenizer does not make has transformers' default."""
    return getattr(encoding, name) if made else [int(name == "attention_mask")] * len(encoding.ids)
