"""The texts that PyTorch makes of others, by transformers' `generate`, for a comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.errors import LlmcError
from llmc.runtime.prompts import encoder_of, generation_of, given_of
from llmc.torch_baseline import built

if TYPE_CHECKING:
    from llmc.runtime.model import Model


def of_folder(
    path: Path, model: Model, options: Mapping[str, Any], threads: int | None
) -> Callable[[Sequence[Sequence[int]]], list[str]]:
    """What a folder's model makes of the artifact's tokens, in float32 and a source at a time; no code of it is run.

    Raises:
        LlmcError: transformers cannot build it, or it has fewer tokens.
    """
    import torch

    from llmc.compiler.frontends.quiet import quiet

    entry, encoder = generation_of(model), encoder_of(model)
    assert encoder is not None
    decode = encoder.text_of
    other = built("AutoModelForSeq2SeqLM", path)
    if other.get_input_embeddings().num_embeddings < entry.vocabulary:
        raise LlmcError("the baseline has other tokens than the artifact", at=str(path))
    if threads is not None:
        torch.set_num_threads(threads)

    @torch.no_grad()
    def one(source: Sequence[int]) -> str:
        asked = dict(options)
        given = given_of(model, entry, source, True, asked)
        with quiet():
            made = other.generate(torch.tensor([list(given.source)]), **asked)
        return decode(made[0].tolist()[1:])  # without the token that it begins with

    return lambda sources: [one(source) for source in sources]
