"""What models are for: the heads that transformers' classes have, and what each gives.

Which families there are is not said here: transformers knows. A task is one entry in `TASKS`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llmc.errors import LlmcError


@dataclass(frozen=True)
class Task:
    """What a model is for.

    Args:
        suffixes: how transformers' classes of it end, the usual one first.
        auto: transformers' class that picks the one of a model type.
        outputs: what the graph keeps of the model's outputs, in order, where the model has them; all if it has
            none of these, or none is named.
        labelled: whether outputs stand for the names of `id2label`.
        reads: the kind of input that tells it from a task with the same suffix; empty if it does not matter.
    """

    name: str
    suffixes: tuple[str, ...]
    auto: str
    outputs: tuple[str, ...] = ("logits",)
    labelled: bool = False
    reads: str = ""

    @property
    def suffix(self) -> str:
        """The usual end of a class's name."""
        return self.suffixes[0]


def _labelled(name: str, kind: str, *outputs: str, reads: str = "", others: tuple[str, ...] = ()) -> Task:
    """A task of the head `ForKind` with labels."""
    suffixes = (f"For{kind}", *others)
    return Task(name, suffixes, f"AutoModelFor{kind}", outputs or ("logits",), True, reads)


GENERATION, SCORING = "text-generation", "language-modeling"  # token by token; whole texts at once
_DECODERS = ("ForCausalLM", "LMHeadModel", "GenerationDecoder")
_PAIR = "EncoderDecoderModel"  # any encoder and any decoder
_WRITERS = ("ForConditionalGeneration", "MTModel", "ForSpeechSeq2Seq", _PAIR)  # encoder-decoders
_TOWERS = ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds", "audio_embeds")
_VECTORS = ("last_hidden_state", "pooler_output", *_TOWERS)
PRETRAINED = "ForPreTraining"  # masked words are one of its heads, which has a class of its own
_TRUNKS = (
    *("EncoderModel", "TextModel", "VisionModel", "AudioModel", "Encoder"),
    *("TextModelWithProjection", "VisionModelWithProjection", "AudioModelWithProjection"),
)
_TEACHER = ("ForImageClassificationWithTeacher",)
_SEGMENTS = ("logits", "class_queries_logits", "masks_queries_logits", "pred_boxes", "pred_masks")

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task("feature-extraction", ("Model", *_TRUNKS), "AutoModel", _VECTORS),
            Task(
                "sentence-embedding",
                ("Model", *_TRUNKS),
                "AutoModel",
                ("sentence_embedding", "last_hidden_state"),
            ),
            _labelled("text-classification", "SequenceClassification"),
            _labelled(
                "audio-classification",
                "AudioClassification",
                reads="audio",
                others=("ForSequenceClassification",),
            ),
            _labelled("token-classification", "TokenClassification"),
            Task(
                "question-answering",
                ("ForQuestionAnswering", "ForQuestionAnsweringSimple"),
                "AutoModelForQuestionAnswering",
                ("start_logits", "end_logits"),
            ),
            Task("multiple-choice", ("ForMultipleChoice",), "AutoModelForMultipleChoice"),
            Task(
                "next-sentence-prediction",
                ("ForNextSentencePrediction",),
                "AutoModelForNextSentencePrediction",
            ),
            Task("fill-mask", ("ForMaskedLM", "WithLMHeadModel", PRETRAINED), "AutoModelForMaskedLM"),
            Task("replaced-token-detection", ("ElectraForPreTraining",), "AutoModelForPreTraining"),
            Task(GENERATION, _DECODERS, "AutoModelForCausalLM"),
            Task(
                "automatic-speech-recognition",
                ("ForCTC", "ForSpeechSeq2Seq", "ForConditionalGeneration", _PAIR),
                "AutoModelForCTC",
                reads="audio",
            ),
            Task(
                "image-text-to-text",
                ("ForConditionalGeneration", _PAIR),
                "AutoModelForImageTextToText",
                reads="image",
            ),
            Task(
                "text2text-generation",
                ("ForConditionalGeneration", "MTModel", _PAIR),
                "AutoModelForSeq2SeqLM",
            ),
            _labelled("image-classification", "ImageClassification", "logits", others=_TEACHER),
            _labelled("video-classification", "VideoClassification"),
            _labelled("image-segmentation", "SemanticSegmentation", *_SEGMENTS),
            _labelled(
                "universal-segmentation", "UniversalSegmentation", *_SEGMENTS, others=("ForSegmentation",)
            ),
            _labelled("object-detection", "ObjectDetection", "logits", "pred_boxes"),
            Task(
                "depth-estimation",
                ("ForDepthEstimation",),
                "AutoModelForDepthEstimation",
                ("predicted_depth",),
            ),
            Task("masked-image-modeling", ("ForMaskedImageModeling",), "AutoModelForMaskedImageModeling", ()),
            Task(
                "image-to-image",
                ("ForImageSuperResolution",),
                "AutoModelForImageToImage",
                ("reconstruction",),
            ),
            _labelled("audio-frame-classification", "AudioFrameClassification"),
            Task("audio-xvector", ("ForXVector",), "AutoModelForAudioXVector", ("logits", "embeddings")),
            Task(SCORING, (*_DECODERS, *_WRITERS), "AutoModelForCausalLM"),  # the last: of the same heads
        )
    }
)


# A class whose name ends otherwise: arrays in, arrays out, by transformers' names.
OTHER = Task("generic", (), "AutoModel", ())


def near(word: str, known: Iterable[str], what: str) -> str:
    """A hint: what is supported, the nearest names first."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=2, cutoff=0.5)
    guess = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{guess}supported {what}: {', '.join(names)}"


def architecture_of(config: Mapping[str, Any]) -> str:
    """The class that wrote the checkpoint, such as `BertForMaskedLM`; empty if unknown."""
    names = config.get("architectures")
    if isinstance(names, str):
        return names
    return str(names[0]) if isinstance(names, list) and names else ""


def task_of(config: Mapping[str, Any], task: str, sentence: bool, at: str) -> Task:
    """The task asked for; "auto" is that of the checkpoint's class, else `OTHER`, or the folder's sentence embedding.

    Raises:
        LlmcError: no such task, or config.json names no model type.
    """
    if not isinstance(config.get("model_type"), str):
        raise LlmcError("config.json has no model_type", at=at, hint="is this a transformers model?")
    if task != "auto":
        if task not in TASKS:
            raise LlmcError(f"no task {task!r}", hint=near(task, ["auto", *TASKS], "tasks"))
        return TASKS[task]
    if sentence:
        return TASKS["sentence-embedding"]
    architecture = architecture_of(config)
    if not architecture:
        return TASKS["feature-extraction"]
    return next(iter(tasks_of(architecture)), OTHER)


def tasks_of(architecture: str) -> list[Task]:
    """The tasks of a class of transformers by the longest end of its name; several where inputs decide."""
    ends = {len(s): s for t in TASKS.values() for s in t.suffixes if architecture.endswith(s)}
    if not ends:
        return []
    suffix = ends[max(ends)]
    found = [t for t in TASKS.values() if suffix in t.suffixes and t.name != "sentence-embedding"]
    return sorted(found, key=lambda t: bool(t.reads))


def read_by(task: Task, architecture: str, reads: str) -> Task:
    """The task of the same head for models that read audio or images."""
    if task.name == SCORING or task.reads == reads or task not in (known := tasks_of(architecture)):
        return task
    return next((t for t in known if t.reads == reads), task)


PROBLEMS = {
    "regression": "none",
    "multi_label_classification": "sigmoid",
    "single_label_classification": "softmax",
}
_CLASSIFIERS = ("text-classification", "image-classification", "audio-classification")
_ACTIVATIONS = {"Identity": "none", "Sigmoid": "sigmoid", "Softmax": "softmax"}


def scores_of(config: Mapping[str, Any], task: str, count: int, at: str) -> str | None:
    """What transformers' pipeline does to the logits of a classifier: softmax, sigmoid or none.

    An activation that sentence-transformers has noted for a CrossEncoder goes before.

    Args:
        count: how many labels there are; if none is known, nobody can say.

    Raises:
        LlmcError: config.json names something else.
    """
    if task not in _CLASSIFIERS or not count:
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
    if not isinstance(problem, str) or problem not in PROBLEMS:
        raise LlmcError(f"no problem_type {problem!r:.60}", at=at, hint=near(str(problem), PROBLEMS, "types"))
    return "sigmoid" if count == 1 and problem != "regression" else PROBLEMS[problem]
