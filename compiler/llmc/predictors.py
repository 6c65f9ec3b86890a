"""What `llmc eval` compares: texts, or paths of images or sounds, in, arrays out, by an artifact or by PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmc.errors import LlmcError, TextsCut
from llmc.runtime.encoder import was_cut
from llmc.runtime.media import Sounds
from llmc.runtime.text import most_rows

Array = np.ndarray[Any, Any]
Predict = Callable[[list[Any]], Array]
EMBEDDING = "sentence-embedding"
OUTPUTS = {
    "text-classification": "logits",
    EMBEDDING: "sentence_embedding",
    "image-classification": "logits",
    "audio-classification": "logits",
}
MEDIA = {"image-classification": "image", "audio-classification": "audio"}  # what a row's file holds
BATCH = 16  # rows of a run


@dataclass(frozen=True)
class Predictor:
    """Texts to outputs; how many texts were cut so far."""

    run: Predict
    cut: Callable[[], int]

    def __call__(self, texts: list[Any]) -> Array:
        return self.run(texts)


def rows_of_a_run(model: Any) -> int:
    """As many as suit, and no more than the artifact takes; one sound where padding would change answers."""
    if model.task not in MEDIA:
        return min(BATCH, most_rows(model) or BATCH)
    if MEDIA[model.task] == "audio" and Sounds(model).alone:
        return 1
    axis = next(iter(model.inputs.values())).shape[0]
    return min(BATCH, axis if isinstance(axis, int) else model.dims[axis][1])


def prepared(model: Any, files: list[Any]) -> Any:
    """The model's inputs for files of images or sounds."""
    return model.preprocess(images=files) if MEDIA[model.task] == "image" else model.preprocess(audio=files)


def of_artifact(model: Any, strict: bool = False) -> Predictor:
    """By an open artifact; if `strict`, a text that is too long is an error."""
    name = OUTPUTS[model.task]
    if model.task in MEDIA:
        return Predictor(lambda files: np.asarray(model.run(prepared(model, files))[name]), lambda: 0)

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

    from llmc.compiler.frontends import overlay, plain_folder, torch_model
    from llmc.runtime.text import Tokenizer
    from llmc.tokens import encoder_of

    with plain_folder.plain(plain_folder.origin(path)) as plain:
        source = torch_model.load_torch(plain.path, model.task)
        tokenizer = overlay.lasting(source.tokenizer, plain.path, path)
    if threads is not None:
        torch.set_num_threads(threads)
    if model.task in MEDIA:
        return _torch_media(source, model)
    if tokenizer is None:
        raise LlmcError("the baseline has no tokenizer", at=str(path))
    longest = min(tokenizer.max_length, Tokenizer.of(model).longest)
    encoder, made = encoder_of(tokenizer, longest), tokenizer.inputs
    fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    place = source.outputs.index(OUTPUTS[model.task])
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


def _torch_media(source: Any, model: Any) -> Predictor:
    """Images and sounds as the artifact prepares them, which is as the folder's processor does."""
    import torch

    place = source.outputs.index(OUTPUTS[model.task])

    @torch.no_grad()
    def predict(files: list[Any]) -> Array:
        made = prepared(model, files)
        result = source.run(*(torch.from_numpy(made[name]) for name in source.names))
        return np.asarray((result[place] if isinstance(result, tuple | list) else result).numpy())

    return Predictor(predict, lambda: 0)


def _field(encoding: Any, name: str, made: bool) -> Any:
    """An input of the model; what the tokenizer does not make has transformers' default."""
    return getattr(encoding, name) if made else [int(name == "attention_mask")] * len(encoding.ids)
