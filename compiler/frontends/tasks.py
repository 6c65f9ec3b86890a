"""Which model families and tasks can be imported, and how their classes and outputs are named."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from llmc.errors import LlmcError


@dataclass(frozen=True)
class Family:
    """One `model_type` of transformers.

    Args:
        prefix: of its classes, as in `BertForMaskedLM`.
        own_attention: the model computes scores itself and adds the mask to them.
        pad_id: positions start after this padding index, None: at 0.
        pad_stated: whether `pad_token_id` of config.json takes its place.
        kind: what it reads and how: "encoder", "decoder" (text, each token sees those before it), "vision".
        positions: the key of config.json that says how many positions there are.
        suffixes: task -> suffix of its class where that is not the task's own.
    """

    prefix: str
    own_attention: bool = False
    pad_id: int | None = None
    pad_stated: bool = True
    kind: str = "encoder"
    positions: str = "max_position_embeddings"
    suffixes: Mapping[str, str] = field(default_factory=dict)

    def class_of(self, task: Task) -> str:
        """transformers' class for a task."""
        return self.prefix + self.suffixes.get(task.name, task.suffix)

    def reserved(self, config: Mapping[str, Any]) -> int:
        """How many position embeddings no token uses."""
        if self.pad_id is None:
            return 0
        stated = config.get("pad_token_id", self.pad_id) if self.pad_stated else self.pad_id
        return max(stated + 1, 0) if type(stated) is int else self.pad_id + 1

    def tasks(self) -> list[Task]:
        """What models of the family can be compiled for."""
        return [t for t in TASKS.values() if self.kind in t.kinds and t.only in ("", self.prefix)]


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "albert": Family("Albert"),
        "bert": Family("Bert"),
        "camembert": Family("Camembert", pad_id=1),
        "deberta-v2": Family("DebertaV2", own_attention=True),
        "distilbert": Family("DistilBert"),
        "electra": Family("Electra"),
        "gpt2": Family(
            "GPT2", kind="decoder", positions="n_positions", suffixes={"text-generation": "LMHeadModel"}
        ),
        "llama": Family("Llama", kind="decoder"),
        "mistral": Family("Mistral", kind="decoder"),
        "mobilenet_v2": Family("MobileNetV2", kind="vision"),
        "mpnet": Family("MPNet", own_attention=True, pad_id=1, pad_stated=False),
        "qwen2": Family("Qwen2", kind="decoder"),
        "roberta": Family("Roberta", pad_id=1),
        "vit": Family("ViT", kind="vision"),
        "xlm-roberta": Family("XLMRoberta", pad_id=1),
    }
)


@dataclass(frozen=True)
class Task:
    """What a model is for: the suffix of its class, the outputs in order, whether it has labels.

    `kinds` are the kinds of family that have such a head; `only` names the one class prefix, if not all do.
    """

    name: str
    suffix: str
    outputs: tuple[str, ...]
    labelled: bool = False
    only: str = ""
    kinds: tuple[str, ...] = ("encoder",)


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task("feature-extraction", "Model", ("last_hidden_state", "pooler_output")),
            Task("sentence-embedding", "Model", ("sentence_embedding", "last_hidden_state")),
            Task("text-classification", "ForSequenceClassification", ("logits",), labelled=True),
            Task("token-classification", "ForTokenClassification", ("logits",), labelled=True),
            Task("question-answering", "ForQuestionAnswering", ("start_logits", "end_logits")),
            Task("fill-mask", "ForMaskedLM", ("logits",)),
            Task("replaced-token-detection", "ForPreTraining", ("logits",), only="Electra"),
            Task("text-generation", "ForCausalLM", ("logits",), kinds=("decoder",)),
            Task(
                "image-classification",
                "ForImageClassification",
                ("logits",),
                labelled=True,
                kinds=("vision",),
            ),
        )
    }
)


def near(word: str, known: Iterable[str], what: str) -> str:
    """A hint: what is supported, the nearest names first."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=2, cutoff=0.5)
    guess = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{guess}supported {what}: {', '.join(names)}"


def family_of(config: Mapping[str, Any], at: str) -> Family:
    """The family of a `config.json`.

    Raises:
        LlmcError: the model_type is absent or not supported.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise LlmcError(
            "config.json has no model_type",
            at=at,
            hint=f"is this a transformers model? supported model types: {', '.join(FAMILIES)}",
        )
    if model_type not in FAMILIES:
        raise LlmcError(
            f"model type {model_type!r} is not supported",
            at=at,
            hint=near(model_type, FAMILIES, "model types"),
        )
    return FAMILIES[model_type]


def architecture_of(config: Mapping[str, Any]) -> str:
    """The class that wrote the checkpoint, such as `BertForMaskedLM`; empty if unknown."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def task_of(config: Mapping[str, Any], task: str, sentence: bool, at: str) -> Task:
    """The task asked for; "auto" is that of the checkpoint's class, or the folder's sentence embedding.

    Raises:
        LlmcError: no such task, or the architecture is not one of the family's supported ones.
    """
    family = family_of(config, at)
    if task != "auto":
        return _explicit(task, family)
    if sentence:
        return TASKS["sentence-embedding"]
    architecture = architecture_of(config)
    known = {family.class_of(t): t for t in reversed(family.tasks())}
    found = known.get(architecture or f"{family.prefix}Model")
    if architecture == f"{family.prefix}ForPreTraining" and family.kind == "encoder":
        found = found or TASKS["fill-mask"]  # masked words are one of its two heads
    if found is None:
        names = ", ".join(sorted(known))
        raise LlmcError(
            f"architecture {architecture!r} is not supported",
            at=at,
            found=_other_task(architecture, family),
            hint=f"of {family.prefix} models llmc compiles {names}; another head is another model: train one of these",
        )
    return found


def _other_task(architecture: str, family: Family) -> str | None:
    """What a head of this name is for, where other families have it."""
    suffix = architecture.removeprefix(family.prefix)
    task = next((t for t in TASKS.values() if t.suffix == suffix), None)
    return None if task is None else f"a model for {task.name}, which llmc has for other families"


def _explicit(task: str, family: Family) -> Task:
    if task not in TASKS:
        raise LlmcError(f"no task {task!r}", hint=near(task, ["auto", *TASKS], "tasks"))
    if TASKS[task].only not in ("", family.prefix):
        raise LlmcError(
            f"{family.prefix} models have no head for {task}", hint=f"only {TASKS[task].only} does that"
        )
    if TASKS[task] not in family.tasks():
        able = ", ".join(t.name for t in family.tasks())
        raise LlmcError(f"{family.prefix} models have no head for {task}", hint=f"they can do {able}")
    return TASKS[task]


PROBLEMS = {
    "regression": "none",
    "multi_label_classification": "sigmoid",
    "single_label_classification": "softmax",
}
_ACTIVATIONS = {"Identity": "none", "Sigmoid": "sigmoid", "Softmax": "softmax"}


def scores_of(config: Mapping[str, Any], task: str, count: int, at: str) -> str | None:
    """What transformers' pipeline does to the logits of a text classifier: softmax, sigmoid or none.

    An activation that sentence-transformers has noted for a CrossEncoder goes before.

    Args:
        count: how many labels there are; if none is known, nobody can say.

    Raises:
        LlmcError: config.json names something else.
    """
    if task != "text-classification" or not count:
        return None
    noted = config.get("sentence_transformers")
    noted = noted.get("activation_fn") if isinstance(noted, dict) else None
    noted = noted or config.get("sbert_ce_default_activation_function")
    problem = config.get("problem_type") or "single_label_classification"
    if noted:
        name = str(noted)
        found = _ACTIVATIONS.get(name.rpartition(".")[2]) if name.startswith("torch.") else None
        if found is None:
            raise LlmcError(f"the activation {name:.60} of a CrossEncoder is not supported", at=at)
        return found
    if problem not in PROBLEMS:
        raise LlmcError(f"no problem_type {problem!r:.60}", at=at, hint=near(str(problem), PROBLEMS, "types"))
    return "sigmoid" if count == 1 and problem != "regression" else PROBLEMS[problem]
