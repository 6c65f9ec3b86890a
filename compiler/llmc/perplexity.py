"""How surprised a language model is by a text: its perplexity, beside that of a baseline on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.dataset import read_rows
from llmc.errors import LlmcError, first_line, many
from llmc.runtime.prompts import encoder_of, generation_of
from llmc.runtime.scoring import chosen, logprobs
from llmc.torch_baseline import built

if TYPE_CHECKING:
    from llmc.runtime.encoder import Encoder
    from llmc.runtime.generation_entry import GenerationEntry
    from llmc.runtime.model import Model

Array = np.ndarray[Any, Any]
Score = Callable[[Sequence[int], int], Array]
WINDOW = 1024  # tokens that the model sees at once, where it takes so many
MOST_BYTES = 1 << 28


@dataclass
class Perplexity:
    """What was measured.

    Args:
        tokens: that were scored: all but the first.
        window, stride: tokens that are seen at once, and by how many the next window begins later.
        perplexity: exp of the mean negative logarithm; `baseline_perplexity` on the same windows, None without one.
        rise: by which share it is above the baseline's.
    """

    task: str
    tokens: int
    window: int
    stride: int
    perplexity: float
    baseline_perplexity: float | None = None
    rise: float | None = None
    broken: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return dict(vars(self))


def perplexity(
    artifact: str | Path,
    data: str | Path,
    baseline: str | Path | None = None,
    *,
    column: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    max_rise: float | None = None,
    adapter: str | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Perplexity:
    """Measure on a .txt file as it is, or on the texts of a table with a blank line between.

    A window's tokens that an earlier one has scored are context alone, as in transformers' guide to perplexity.

    Args:
        data, column: the texts; see `dataset.read_rows`.
        baseline: an artifact with the same tokens, or a model folder, which PyTorch runs.
        window: the artifact's bound at most; None: that or 1024.
        stride: None: half a window.
        limit: stop after so many tokens.
        max_rise: the largest share above the baseline's that breaks no limit.
        adapter: one of those beside the artifact's model; the baseline has none.
        progress: gets the number of tokens done.

    Raises:
        LlmcError: the artifact does not generate or has no tokenizer, a number makes no sense, the data is unreadable
            or too short, the baseline has other tokens.
    """
    import llmc

    model = llmc.load(artifact, threads=threads)
    entry, encoder = _asked(model, artifact)
    window, stride = _sizes(entry.max_length, window, stride)
    ids = encoder.ids(text_of(Path(data), column))[:limit]
    if len(ids) < 2:
        raise LlmcError("the data is too short", at=str(data), hint="it needs two tokens at least")
    scores = [_of_artifact(model, adapter)]
    if baseline is not None:
        scores.append(_of_baseline(Path(baseline), ids, threads))
    sums = _summed(scores, ids, window, stride, progress)
    figures = [math.exp(min(total / (len(ids) - 1), 700)) for total in sums]
    found = Perplexity(model.task, len(ids) - 1, window, stride, figures[0])
    if baseline is not None:
        found.baseline_perplexity = figures[1]
        found.rise = figures[0] / figures[1] - 1
    if max_rise is not None and (found.rise is None or found.rise > max_rise):
        told = (
            "there is no baseline" if found.rise is None else f"perplexity rises by {100 * found.rise:.3g} %"
        )
        found.broken.append(f"{told}, at most {100 * max_rise:g} % is allowed")
    return found


def _asked(model: Model, artifact: str | Path) -> tuple[GenerationEntry, Encoder]:
    """How a model that goes on with a text is run, and its tokenizer.

    Raises:
        LlmcError: it is no such model, or has none.
    """
    entry, encoder = generation_of(model), encoder_of(model)
    if entry.encoder is not None:
        raise LlmcError(
            "the model makes a text of another, so a text alone has no perplexity",
            at=str(artifact),
            hint="llmc.references.nearness holds its texts to others; llmc eval does for models that read text",
        )
    if encoder is None:
        raise LlmcError("the artifact has no tokenizer", at=str(artifact))
    return entry, encoder


def _sizes(longest: int, window: int | None, stride: int | None) -> tuple[int, int]:
    window = min(longest, WINDOW) if window is None else window
    if not 2 <= window <= longest:
        raise LlmcError(
            f"the window is {many(window, 'tokens')}, must be within 2..{longest}, the model's bound"
        )
    stride = max(window // 2, 1) if stride is None else stride
    if not 1 <= stride < window:  # a window's first token has nothing before it
        raise LlmcError(f"the stride is {stride} tokens, must be within 1..{window - 1}, below the window")
    return window, stride


def text_of(data: Path, column: str | None) -> str:
    if data.suffix != ".txt":
        return "\n\n".join(row.text for row in read_rows(data, column))
    try:
        if data.stat().st_size > MOST_BYTES:
            raise LlmcError("the text is too large", at=str(data), hint="--limit counts tokens: cut the file")
        return data.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LlmcError(f"cannot read the data: {error.strerror or error}", at=str(data)) from None
    except UnicodeDecodeError as error:
        raise LlmcError("the data is not UTF-8 text", at=str(data), found=str(error)) from None


def windows(count: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first scored, end) of each window over `count` tokens; each token but the first is scored once."""
    scored = 1
    for begin in range(0, count, stride):
        end = min(begin + window, count)
        if end > scored:
            yield begin, scored, end
        scored = max(scored, end)
        if end == count:
            return


def _summed(
    scores: Sequence[Score], ids: Sequence[int], window: int, stride: int, progress: Callable[[int], None]
) -> list[float]:
    """Of each model the sum of negative logarithms."""
    sums = [0.0] * len(scores)
    for begin, first, end in windows(len(ids), window, stride):
        for i, score in enumerate(scores):
            sums[i] -= float(score(ids[begin:end], first - begin).sum())
        progress(end)
    for total in sums:
        if not math.isfinite(total):
            raise LlmcError("a model gave logits that are no numbers, so there is no perplexity")
    return sums


def _of_artifact(model: Any, adapter: str | None = None) -> Score:
    session = model.session(adapter=adapter)
    return lambda ids, begin: logprobs(model, ids, begin, session)


def _of_baseline(path: Path, ids: Sequence[int], threads: int | None) -> Score:
    if not (path / "manifest.json").is_file():
        return _of_folder(path, max(ids), threads)
    import llmc

    other = llmc.load(path, threads=threads)
    if generation_of(other).vocabulary <= max(ids):
        raise LlmcError("the baseline has other tokens than the artifact", at=str(path))
    return _of_artifact(other)


def _of_folder(path: Path, highest: int, threads: int | None) -> Score:
    """By PyTorch in float32, as transformers builds the model; no code of the folder is run."""
    import torch

    model = built("AutoModelForCausalLM", path)
    if model.config.get_text_config().vocab_size <= highest:
        raise LlmcError("the baseline has other tokens than the artifact", at=str(path))
    if threads is not None:
        torch.set_num_threads(threads)

    @torch.no_grad()
    def score(ids: Sequence[int], begin: int) -> Array:
        try:
            logits = model(torch.tensor([list(ids)]), use_cache=False).logits
        except Exception as error:  # such as fewer positions than the window has
            problem = f"PyTorch cannot run the baseline on {len(ids)} tokens: {first_line(error)}"
            raise LlmcError(problem, at=str(path), hint="give a smaller --window") from None
        return chosen(logits[0, begin - 1 : -1].float().numpy(), np.array(ids[begin:]))

    return score
