"""What a model says of images and sounds, by its task: labels, boxes, areas, depths, words, embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import click
import numpy as np

from llmc.cli.answers import Array, by_label, describe_answer, label_of, sigmoid, softmax
from llmc.cli.output import printable

THRESHOLD = 0.5  # as in transformers' pipelines
TOP = 5


@dataclass(frozen=True)
class Asked:
    """What answers depend on beside the outputs.

    Args:
        texts: candidates of a model that reads texts too.
        threshold: least score of a box.
    """

    texts: Sequence[str] = ()
    threshold: float = THRESHOLD


def describe(model: Any, outputs: Mapping[str, Array], row: int, image: Any, asked: Asked) -> dict[str, Any]:
    """The JSON-ready answer for one of a batch; unknown tasks give the raw outputs.

    Args:
        image: of Pillow, as it was before it was resized; None for sounds.
    """
    if asked.texts:
        return _candidates(model, outputs, row, asked.texts)
    found = _KINDS.get(str(model.task), _other)(model, outputs, row, image, asked)
    return found if found is not None else {name: array[row] for name, array in outputs.items()}


def _classes(model: Any, outputs: Any, row: int, image: Any, asked: Asked) -> dict[str, Any]:
    """The likeliest classes first."""
    logits = outputs["logits"][row]
    kind = model.scores or ("softmax" if logits.size > 1 else "sigmoid")
    if kind == "none":
        return {"values": by_label(model, range(len(logits)), logits)}
    chances = softmax(logits) if kind == "softmax" else sigmoid(logits)
    order = np.argsort(-chances, kind="stable")[:TOP]
    return {"label": label_of(model, int(order[0])), "probabilities": by_label(model, order, chances)}


def _candidates(model: Any, outputs: Any, row: int, texts: Sequence[str]) -> dict[str, Any]:
    """The probability of each text for an image; of SigLIP each for itself."""
    logits = outputs["logits_per_image"][row, : len(texts)]
    chances = sigmoid(logits) if model.scores == "sigmoid" else softmax(logits)
    order = np.argsort(-chances, kind="stable")
    scores = {texts[i]: float(chances[i]) for i in order}
    return {"label": texts[order[0]], "probabilities": scores}


def _boxes(model: Any, outputs: Any, row: int, image: Any, asked: Asked) -> dict[str, Any] | None:
    """Boxes whose score is above the threshold, the best first, in pixels of the image that was given.

    A head with one class more than there are labels has "no object" as its last, and its classes exclude each other;
    in the others each class of each query is a box for itself.
    """
    if "pred_boxes" not in outputs:
        return None
    logits, boxes = outputs["logits"][row], outputs["pred_boxes"][row].astype(np.float64)
    if logits.shape[-1] == len(model.labels or ()) + 1:
        chances = softmax(logits)[:, :-1]
        kept = np.eye(chances.shape[1], dtype=bool)[chances.argmax(1)]
    else:
        chances = sigmoid(logits)
        kept = np.ones(chances.shape, bool)
    queries, classes = np.nonzero(kept & (chances > asked.threshold))
    best = np.argsort(-chances[queries, classes], kind="stable")[: len(boxes)]
    found = []
    for query, label in zip(queries[best], classes[best], strict=True):
        x, y, width, height = boxes[query] * (image.width, image.height, image.width, image.height)
        box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        score = float(chances[query, label])
        found.append({"label": label_of(model, int(label)), "score": score, "box": box})
    return {"objects": found}


def class_map(outputs: Mapping[str, Array], row: int, image: Any) -> Array:
    """u16 [height, width] of the image: the class of each pixel, scores being interpolated between theirs."""
    logits = outputs["logits"][row]
    return np.asarray(resized(logits, image.height, image.width).argmax(0), np.uint16)


def resized(planes: Array, height: int, width: int) -> Array:
    """f32 [channels, height, width] by linear interpolation, as PyTorch's with align_corners=False."""
    for axis, size in ((1, height), (2, width)):
        have = planes.shape[axis]
        place = np.clip((np.arange(size) + 0.5) * have / size - 0.5, 0, None)
        low = np.minimum(place.astype(int), have - 1)
        share = (place - low).astype(np.float32)
        share = share[:, None] if axis == 1 else share
        high = np.minimum(low + 1, have - 1)
        planes = planes.take(low, axis) * (1 - share) + planes.take(high, axis) * share
    return planes


def _areas(model: Any, outputs: Any, row: int, image: Any, asked: Asked) -> dict[str, Any] | None:
    """The share of pixels of each class that there is, the largest first."""
    if getattr(outputs.get("logits"), "ndim", 0) != 4:
        return None
    numbers, counts = np.unique(class_map(outputs, row, image), return_counts=True)
    shares = dict(zip(numbers.tolist(), counts / (image.width * image.height), strict=True))
    return {"areas": by_label(model, numbers[np.argsort(-counts, kind="stable")], shares)}


def _depth(model: Any, outputs: Any, row: int, image: Any, asked: Asked) -> dict[str, Any]:
    depth = outputs["predicted_depth"][row]
    return {"depth": {"least": float(depth.min()), "most": float(depth.max()), "shape": list(depth.shape)}}


def _words(model: Any, outputs: Any, row: int, image: Any, asked: Asked) -> dict[str, Any] | None:
    """The likeliest token of each frame, repetitions and blanks left out."""
    facts, logits = model.manifest.postprocess, outputs.get("logits")
    if "blank" not in facts or getattr(logits, "ndim", 0) != 3:
        return None
    return {"text": spelled(logits[row].argmax(-1).tolist(), model.labels or (), facts)}


def spelled(best: Sequence[int], tokens: Sequence[str], facts: Mapping[str, Any]) -> str:
    """Numbers of tokens, one a frame, as text, as Wav2Vec2CTCTokenizer does it."""
    kept = [number for number, _ in groupby(best) if number != facts["blank"]]
    known = [tokens[n] if n < len(tokens) else "" for n in kept]
    text = "".join(facts["space"] if token == facts["delimiter"] else token for token in known).strip()
    return text.lower() if facts["lower"] else text


_VECTORS = ("image_embeds", "pooler_output", "sentence_embedding", "embeddings")


def _other(model: Any, outputs: Any, row: int, image: Any, asked: Asked) -> dict[str, Any] | None:
    """An embedding, if the model has one."""
    name = next((n for n in _VECTORS if n in outputs), None)
    if name is None:
        return None
    vector = outputs[name][row].reshape(-1)
    return {"embedding": vector, "norm": float(np.linalg.norm(vector))}


_KINDS: Mapping[str, Callable[[Any, Any, int, Any, Asked], dict[str, Any] | None]] = {
    "image-classification": _classes,
    "audio-classification": _classes,
    "object-detection": _boxes,
    "image-segmentation": _areas,
    "depth-estimation": _depth,
    "automatic-speech-recognition": _words,
}


def show(answers: Sequence[Mapping[str, Any]]) -> None:
    """The answers as text: the file, then a line or a few."""
    for answer in answers:
        click.echo(printable(str(answer["file"])))
        for line in _lines({k: v for k, v in answer.items() if k != "file"}):
            click.echo(f"  {printable(line)}")


def _lines(answer: dict[str, Any]) -> list[str]:
    if "objects" in answer:
        found = [
            f"{o['score']:.4f} {o['label']:<12} " + " ".join(f"{v:.1f}" for v in o["box"])
            for o in answer["objects"]
        ]
        return found or ["nothing above the threshold"]
    if "areas" in answer:
        return [f"{100 * share:5.1f} % {name}" for name, share in answer["areas"].items()]
    if "depth" in answer:
        depth = answer["depth"]
        return [f"depth {depth['least']:.5g} to {depth['most']:.5g}, {' x '.join(map(str, depth['shape']))}"]
    if "segments" in answer:
        return [f"{s['start']:8.2f} {s['end']:8.2f}  {s['text']}" for s in answer["segments"]]
    if "text" in answer:
        return [answer["text"] or "(nothing was said)"]
    return describe_answer(answer)
