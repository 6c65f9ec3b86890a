"""What a model does with texts, where its artifact has a tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

from llmc.errors import TextsCut
from llmc.runtime.arrays import Array

if TYPE_CHECKING:
    from llmc.runtime.model import Model


class TextCalls:
    """The part of `Model` that takes texts."""

    def run_text(
        self,
        texts: str | tuple[str, str] | Sequence[str | tuple[str, str]],
        *,
        truncate: bool = True,
        prompt: str | None = None,
    ) -> dict[str, Array]:
        """Tokenise and run: one text, one (text, pair), or a list of either, which makes one batch.

        Longer texts are cut to the model's bound, with a warning (`llmc.errors.TextsCut`), unless `truncate` is False,
        shorter ones padded to the longest. `prompt` names one of the model's prompts instead of its default, if it
        has any.

        Raises:
            LlmcError: the artifact has no tokenizer or no such prompt, or a text is empty of tokens, too long or no
                Unicode (`llmc.runtime.encoder.BadTexts` says which).
        """
        from llmc.runtime.encoder import was_cut
        from llmc.runtime.text import Tokenizer

        model = cast("Model", self)
        model._open_handle()
        tokenizer = Tokenizer.of(model)
        encodings = tokenizer.encode(texts, truncate=truncate, prompt=prompt)
        if cut := was_cut(encodings):
            warnings.warn(TextsCut(len(cut), len(encodings), tokenizer.longest), stacklevel=2)
        return model.run(tokenizer.arrays(encodings))

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        normalize: bool = False,
        truncate_dim: int | None = None,
    ) -> Array:
        """Embed any number of texts, in batches of like lengths; options are those of sentence-transformers.

        Args:
            texts: one text, a list, or anything that gives texts one after the other.
            prompt_name: one of the model's prompts instead of its default.
            prompt: a text to go before every text; `prompt_name` counts for nothing then.
            batch_size: texts of a run.
            normalize: make every vector of length 1, after it was truncated.
            truncate_dim: keep that many numbers of each vector.

        Returns:
            f32 `[texts, width]` in the order of the texts; of one text that is no list `[width]`. `torch.from_numpy`
            makes a tensor of it on the same memory.

        Raises:
            LlmcError: the model gives no sentence embedding, has no tokenizer or no such prompt, an option makes no
                sense, or a text is none (`llmc.runtime.encoder.BadTexts` says which).
        """
        from llmc.runtime.embeddings import encode

        model = cast("Model", self)
        model._open_handle()
        return encode(model, texts, prompt_name, prompt, batch_size, normalize, truncate_dim)

    @property
    def cut_texts(self) -> int:
        """How many texts were longer than the model takes and were cut, so far."""
        from llmc.runtime.text import Tokenizer

        return Tokenizer.of(cast("Model", self)).cut_texts
