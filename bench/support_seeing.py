"""Models of images and text beside PyTorch: the logits of whole texts with images, seen and read in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Played = Callable[[Mapping[str, Any], Any], Any]  # what `see` takes, tokens i64 [1, n] -> their logits
CALL = 64  # tokens of a call: an image that is seen whole is in one


def compared(folder: Path, played: Played) -> float:
    """The largest difference to PyTorch, as a part of the largest logit, for texts with one to three images."""
    worst = 0.0
    for given, ids, wanted in _cases(folder):
        away = np.abs(played(given, ids) - wanted).max() / np.abs(wanted).max()
        worst = max(worst, float(away))
    return worst


def _cases(folder: Path) -> Iterator[tuple[dict[str, Any], Any, Any]]:
    """What `see` takes, the tokens of a text, and what transformers makes of both at once."""
    import torch

    from llmc.compiler.frontends import eyes, vision
    from llmc.compiler.frontends.folder import inspect
    from llmc.compiler.frontends.pretrained import build

    summary = inspect(folder, ignore_unused=True)
    model, _ = build(summary, ignore_unused=True)
    seeing = eyes.of(model, summary.root, summary.max_positions)
    for count in (1, 2, 3):
        of_grids = getattr(seeing, "of_grids", None)  # of images of any size
        values = of_grids([(2, 3), (3, 1), (4, 4)][:count]) if of_grids else seeing.drawn(count)
        ids = vision.text(seeing, values, summary.max_positions)
        with torch.no_grad():
            asked = seeing.asked(ids, values, ids.shape[1])
            wanted = model(**asked, use_cache=False).logits.numpy()
        names = [one.name for one in seeing.inputs]
        yield {n: v.numpy() for n, v in zip(names, values, strict=True)}, ids.numpy(), wanted


def interpreted(functions: Mapping[str, Any]) -> Played:
    """By the interpreter."""
    from llmc.compiler.interpret import step

    def play(given: Mapping[str, Any], ids: Any) -> Any:
        _, states = step(functions["see"], dict(given), {})
        found = []
        for part in np.split(ids, range(CALL, ids.shape[1], CALL), axis=1):
            outputs, states = step(functions["step"], _read(part), states)
            found.append(outputs["logits"])
        return np.concatenate(found, 1)

    return play


def run(model: Any) -> Played:
    """By an artifact."""

    def play(given: Mapping[str, Any], ids: Any) -> Any:
        with model.session() as session:
            session.run(given, function="see")
            parts = np.split(ids, range(CALL, ids.shape[1], CALL), axis=1)
            return np.concatenate([session.run(_read(part), function="step")["logits"] for part in parts], 1)

    return play


def _read(ids: Any) -> dict[str, Any]:
    return {"input_ids": ids, "logits_to_keep": np.arange(ids.shape[1])}
