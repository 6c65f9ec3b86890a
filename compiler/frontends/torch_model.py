"""A model folder in PyTorch, called as its artifact is: what artifacts are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.compiler.frontends import forward
from llmc.compiler.frontends.folder import inspect
from llmc.compiler.frontends.huggingface import tokenizer_of
from llmc.compiler.frontends.imported import MAX_BATCH
from llmc.compiler.frontends.inputs import TEXT, Inputs, inputs_of
from llmc.compiler.frontends.pretrained import build
from llmc.compiler.frontends.program import head_of
from llmc.compiler.frontends.quiet import quiet
from llmc.compiler.frontends.tokenizer import Tokenizer


@dataclass(frozen=True)
class TorchModel:
    """The folder's model in PyTorch, called as its artifact is.

    Args:
        inputs: what it takes.
        outputs: their names, in order.
        run: one tensor for each input -> one for each output.
        tokenizer: None if the folder has none.
        config: transformers' configuration.
    """

    inputs: Inputs
    outputs: tuple[str, ...]
    run: Any
    tokenizer: Tokenizer | None
    config: Any

    @property
    def names(self) -> tuple[str, ...]:
        """Of the inputs, in order."""
        return self.inputs.names

    def sample(self, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Any]:
        """Random values of the inputs: see `reference.sample`."""
        from llmc.compiler.frontends import reference

        return reference.sample(self.inputs, self.config, sizes, seed)

    def values(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Arrays in, arrays out by name."""
        import torch

        with torch.no_grad():
            found = self.run(*(torch.from_numpy(inputs[name]) for name in self.names))
        return {name: value.numpy() for name, value in zip(self.outputs, found, strict=True)}


def load_torch(path: str | Path, task: str = "auto") -> TorchModel:
    """A model folder as PyTorch runs it, to compare with.

    Raises:
        LlmcError: as `load`.
    """
    import torch

    from llmc.compiler.frontends import reference
    from llmc.compiler.frontends.implementations import set_way

    summary = inspect(path, task, ignore_unused=True)
    with quiet():
        model, chosen = build(summary, ignore_unused=True)
        inputs = inputs_of(model, summary.root, MAX_BATCH, summary.max_positions)
        forward.in_one_piece(model)
        values = reference.sample(inputs, model.config)
        sample = [torch.from_numpy(values[name]) for name in inputs.names]
        head, outputs = head_of(summary, model, chosen, inputs, sample)
        tokenizer = tokenizer_of(summary) if TEXT in inputs.names else None
        set_way(model, "sdpa" if getattr(model, "_supports_sdpa", False) else "eager")
    return TorchModel(inputs, outputs, head, tokenizer, model.config)
