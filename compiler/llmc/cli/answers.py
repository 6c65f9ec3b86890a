"""Texts in, answers out: tokenise for an artifact and turn its outputs into what the task means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import click
import numpy as np

from llmc.cli.output import printable
from llmc.errors import LlmcError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Encoded:
    """Texts, the tokenizer's own encodings of them, and the padded arrays i64[batch, seq] by input name."""

    texts: list[str]
    pairs: list[str]
    encodings: list[Any]
    arrays: dict[str, Array]
    tokenizer: Any


def encode(
    model: Any, texts: list[str], pairs: list[str], prompt: str | None = None, *, truncate: bool = True
) -> Encoded:
    """Tokenise with the artifact's tokenizer, padded to the longest text and cut at the `seq` bound if `truncate`.

    Raises:
        LlmcError: the artifact has no tokenizer or no such prompt, or a text is not to be tokenised.
    """
    from llmc.runtime.text import Tokenizer

    tokenizer = Tokenizer.of(model)
    batch = list(zip(texts, pairs, strict=True)) if pairs else list(texts)
    encodings = tokenizer.encode(batch, prompt=prompt, truncate=truncate)
    return Encoded(texts, pairs, encodings, tokenizer.arrays(encodings), tokenizer.encoder.cut)


def softmax(logits: Array) -> Array:
    """Softmax over the last axis, in double."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def sigmoid(logits: Array) -> Array:
    """1 / (1 + exp(-x)), in double."""
    return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64))))


def describe(model: Any, encoded: Encoded, outputs: Any) -> list[dict[str, Any]]:
    """One JSON-ready answer for each text, by the model's task; unknown tasks give the raw outputs."""
    kinds = {
        "sentence-embedding": _embedding,
        "text-classification": _classes,
        "token-classification": _tokens,
        "question-answering": _span,
        "fill-mask": _fill,
    }
    answer = kinds.get(str(model.task), _raw)
    return [{"text": text, **answer(model, encoded, outputs, row)} for row, text in enumerate(encoded.texts)]


def label_of(model: Any, index: int) -> str:
    """The name of a class."""
    labels = model.labels or ()
    return str(labels[index]) if index < len(labels) else f"LABEL_{index}"


def by_label(model: Any, classes: Iterable[Any], values: Array | Mapping[int, Any]) -> dict[str, float]:
    """Name -> value of each class, in that order; a name that several classes have is followed by the number."""
    count = Counter(model.labels or ())
    names = ((i, label_of(model, i)) for i in map(int, classes))
    return {f"{name} ({i})" if count[name] > 1 else name: float(values[i]) for i, name in names}


def _embedding(model: Any, encoded: Encoded, outputs: Any, row: int) -> dict[str, Any]:
    vector = outputs["sentence_embedding"][row]
    return {"embedding": vector, "norm": float(np.linalg.norm(vector))}


_SCORES = {"softmax": softmax, "sigmoid": sigmoid}


def _classes(model: Any, encoded: Encoded, outputs: Any, row: int) -> dict[str, Any]:
    """Probabilities by falling size; of a regression the numbers as they are."""
    logits = outputs["logits"][row]
    kind = getattr(model, "scores", None) or ("softmax" if logits.size > 1 else "sigmoid")
    if kind not in _SCORES:
        return {"values": by_label(model, range(len(logits)), logits)}
    chances = _SCORES[kind](logits)
    order = np.argsort(-chances, kind="stable")
    return {"label": label_of(model, int(order[0])), "probabilities": by_label(model, order, chances)}


def _tokens(model: Any, encoded: Encoded, outputs: Any, row: int) -> dict[str, Any]:
    e, chances = encoded.encodings[row], softmax(outputs["logits"][row])
    found = []
    for i, (start, end) in enumerate(e.offsets):
        if e.special_tokens_mask[i]:
            continue
        best = int(chances[i].argmax())
        label, chance = label_of(model, best), float(chances[i, best])
        found.append(
            {"token": e.tokens[i], "start": start, "end": end, "label": label, "probability": chance}
        )
    return {"tokens": found}


def _span(model: Any, encoded: Encoded, outputs: Any, row: int) -> dict[str, Any]:
    """The span in the second text with the largest start * end probability, at most 30 tokens long.

    As in transformers' pipeline, probabilities are of the places in that text and of the first token, which stands for
    "no answer": neither the question nor padding, which a batch decides, takes a share.
    """
    e = encoded.encodings[row]
    inside = np.array([s == (1 if encoded.pairs else 0) for s in e.sequence_ids])
    if not inside.any():
        return {"answer": "", "probability": 0.0, "start": 0, "end": 0}
    count = len(inside)
    possible = inside.copy()
    begin = int(np.argmax(e.attention_mask))
    possible[begin] |= bool(e.special_tokens_mask[begin])
    logits = (outputs[name][row, :count] for name in ("start_logits", "end_logits"))
    first, last = (softmax(np.where(possible, values, -np.inf)) for values in logits)
    scores = np.outer(first * inside, last * inside)
    scores = np.triu(scores) - np.triu(scores, 30)
    i, j = np.unravel_index(int(scores.argmax()), scores.shape)
    start, end = e.offsets[int(i)][0], e.offsets[int(j)][1]
    context = encoded.pairs[row] if encoded.pairs else encoded.texts[row]
    return {"answer": context[start:end], "probability": float(scores[i, j]), "start": start, "end": end}


def _fill(model: Any, encoded: Encoded, outputs: Any, row: int) -> dict[str, Any]:
    """The five likeliest pieces at each mask."""
    tokenizer, e = encoded.tokenizer, encoded.encodings[row]
    mask = next((i for i in map(tokenizer.token_to_id, ("[MASK]", "<mask>")) if i is not None), None)
    if mask not in e.ids:
        token = tokenizer.id_to_token(mask) if mask is not None else "[MASK]"
        raise LlmcError(
            "this text has no mask to fill", found=encoded.texts[row], hint=f"write {token} in its place"
        )
    masks = []
    for position in (i for i, token in enumerate(e.ids) if token == mask):
        chances = softmax(outputs["logits"][row, position])
        best = np.argsort(-chances, kind="stable")[:5]
        masks.append([{"token": tokenizer.decode([int(i)]), "probability": float(chances[i])} for i in best])
    return {"masks": masks}


def _raw(model: Any, encoded: Encoded, outputs: Any, row: int) -> dict[str, Any]:
    return {name: array[row] for name, array in outputs.items()}


def show(answers: list[dict[str, Any]]) -> None:
    """The answers as text, one or a few lines each."""
    for answer in answers:
        click.echo(printable(answer["text"]))
        for line in describe_answer(answer):
            click.echo(f"  {printable(line)}")


def describe_answer(answer: dict[str, Any]) -> list[str]:
    """The lines below a text."""
    if "embedding" in answer:
        vector = answer["embedding"]
        numbers = " ".join(f"{v:+.4f}" for v in vector[:8])
        return [f"embedding [{numbers} ...]  {len(vector)} numbers, norm {answer['norm']:.4f}"]
    if "probabilities" in answer:
        ranked = list(answer["probabilities"].items())[:5]
        return ["  ".join(f"{name} {value:.4f}" for name, value in ranked)]
    if "values" in answer:
        return ["  ".join(f"{name} {value:.6g}" for name, value in answer["values"].items())]
    if "tokens" in answer:
        return [f"{t['token']:<16} {t['label']:<12} {t['probability']:.4f}" for t in answer["tokens"]]
    if "answer" in answer:
        where = f"characters {answer['start']} to {answer['end']}"
        return [f"{answer['answer']!r}  probability {answer['probability']:.4f}, {where}"]
    if "masks" in answer:
        return ["  ".join(f"{f['token']} {f['probability']:.4f}" for f in fills) for fills in answer["masks"]]
    return [f"{name} {tuple(v.shape)}" for name, v in answer.items() if name != "text"]
