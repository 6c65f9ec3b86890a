"""What every frontend returns: a graph, and what its package needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmc.compiler.frontends.processors import Processor
from llmc.compiler.frontends.sentence import Sentence
from llmc.compiler.frontends.tokenizer import Tokenizer
from llmc.errors import LlmcError

if TYPE_CHECKING:
    from llmc.compiler.graph import Graph
    from llmc.compiler.module import Module

MAX_BATCH = 1024
LARGEST = 2**31 - 1  # of any dim: sizes are counted in 63 bits
HUGE = 10**9  # no dynamic dim of an ONNX file is larger: a size that is cut to more is not cut
GENERIC = "generic"  # the task of a model that is arrays in, arrays out


def want_bound(name: str, value: int | None) -> None:
    """Refuse an upper bound that sizes cannot be counted with; None is the default.

    Raises:
        LlmcError: it is below 1 or larger than 31 bits hold.
    """
    if value is not None and value < 1:
        raise LlmcError(f"{name} is {value}", hint="give a number from 1 on")
    if value is not None and value > LARGEST:
        raise LlmcError(f"{name} is larger than {LARGEST}", hint="give what a machine has the memory for")


@dataclass(frozen=True)
class Imported:
    """A model ready for the passes, and what its package needs to know.

    Args:
        graph: of a folder: inputs `input_ids`, `attention_mask` (default 1) and, where the model tells segments
            apart, `token_type_ids` (default 0), all i64 [batch, seq]; outputs named as transformers names them.
            Of a file: the file's own inputs and outputs.
        task: a name in `tasks.TASKS`, or "generic".
        architecture: transformers' class; of a file, what wrote it.
        labels: class names, empty if the task has none.
        tokenizer: None if the folder has none.
        sentence: pooling and normalisation, computed in the graph; None for other tasks.
        functions: of a model with several, the graphs by name, `graph` the first of them; else empty.
        preprocess: how images or sounds become inputs, as runtime/format.md says; see `processors`.
        processor: transformers' own that does it, to compare with; None if the folder has none.
        scores: of a classifier, what makes its logits what is told: "softmax", "sigmoid" or "none".
        decoder: of a speech model that writes characters, what makes its answers text; see `ctc`.
        generation: of a model that generates text, the manifest's field of that name; see `generation_config`.
        chat_template: the text of its chat template; None if it has none.
        adapters: names of those that are chosen by session; see `beside_base`.
        ensemble: of several models as one, the manifest's field of that name; see `ensemble`.
        pipeline: the passes that a graph's text names to be run, None for all others.
    """

    graph: Graph
    name: str
    task: str
    model_type: str
    architecture: str
    labels: tuple[str, ...]
    tokenizer: Tokenizer | None
    sentence: Sentence | None
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    functions: Mapping[str, Graph] = field(default_factory=dict)
    scores: str | None = None
    decoder: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    pipeline: str | None = None
    processor: Processor | None = None
    adapters: tuple[str, ...] = ()
    ensemble: Mapping[str, Any] = field(default_factory=dict)

    @property
    def module(self) -> Module:
        """All functions of the model."""
        from llmc.compiler.module import Module  # looking at a folder needs no sympy

        return Module(self.functions) if self.functions else Module.of(self.graph)
