"""Small random models that make texts, and what this processor makes, for tests of other processors.

One has keys and values that grow, one states of a recurrence and of a convolution, one an encoder beside its decoder.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from random_any import DECODER, made
from random_seq2seq import RELATIVE

import llmc
from llmc.runtime.manifest import MANIFEST

MAMBA = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 100, "pad_token_id": 1}
MODELS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": DECODER,
    "MambaForCausalLM": MAMBA,
    "T5ForConditionalGeneration": RELATIVE,
}
TOKENS, WORDS = 16, 100
PROMPT, SOURCE = (5, 17, 60, 8, 99, 23, 4), (44, 7, 81, 30, 12)
ASKED: dict[str, Any] = {  # no token twice: a random model says one for ever
    **{"max_new_tokens": TOKENS, "eos_token_id": [], "no_repeat_ngram_size": 1},
    "top_logprobs": WORDS,
}
Steps = list[
    tuple[int, dict[int, float]]
]  # of each new token: itself, and the logarithms of all probabilities


def reads(name: str) -> bool:
    """Whether a model reads a source, and its text begins with one token."""
    return name.startswith("T5")


def compiled(name: str, path: Path, **options: Any) -> Path:
    """The artifact of one of the models."""
    with tempfile.TemporaryDirectory() as folder:
        made(name, MODELS[name]).save_pretrained(folder)
        llmc.compile(folder, path, max_seq=40, **options)
    return path


def steps(model: Any, name: str) -> Steps:
    """What a model on this machine says."""
    given = SOURCE if reads(name) else PROMPT
    found = model.generate(list(given), **ASKED)
    return [(token.id, dict(token.top)) for token in found.tokens]


def arguments(name: str) -> list[str]:
    """Those of tests/arm/steps.c behind the artifact: how many tokens, the source's length, source and prompt."""
    ids: Sequence[int] = (*SOURCE, 0) if reads(name) else PROMPT
    return [str(n) for n in (TOKENS, len(SOURCE) if reads(name) else 0, *ids)]


def assert_alike(one: Path, other: Path) -> None:
    """Two artifacts have the same functions and states."""
    for part in ("functions", "states", "generation"):
        a, b = (json.loads((path / MANIFEST).read_text())[part] for path in (one, other))
        assert a == b, part


def main(path: str, name: str) -> None:
    """Print the steps of an artifact, for a process that has another driver."""
    with llmc.load(path) as model:
        print(json.dumps(steps(model, name)))


def read(text: str) -> Steps:
    """What `main` prints."""
    return [(token, {int(k): v for k, v in top.items()}) for token, top in json.loads(text)]
