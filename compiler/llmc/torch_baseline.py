"""A baseline that PyTorch runs, out of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmc.errors import LlmcError, first_line


def built(kind: str, path: str | Path) -> Any:
    """The model in eval mode, in float32, of one of transformers' Auto classes.

    Raises:
        LlmcError: transformers cannot build it.
    """
    import torch
    import transformers

    from llmc.compiler.frontends.quiet import quiet

    try:
        with quiet():
            model = getattr(transformers, kind).from_pretrained(
                str(path), local_files_only=True, trust_remote_code=False, dtype=torch.float32
            )
    except Exception as error:  # anything that transformers raises
        problem = f"transformers cannot build the baseline: {first_line(error)}"
        raise LlmcError(problem, at=str(path)) from None
    return model.eval()
