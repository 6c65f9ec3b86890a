"""How an ensemble makes one answer of its members' answers: `--ensemble`, and the nodes that it becomes.

Logits are read as a user reads them, as probabilities by softmax or sigmoid, and what comes out means the same: the
logits of an ensemble are the logarithms of the mean probability (of one that stands alone, its log-odds), computed from
logarithms throughout, so that none of them is lost to float32. Other outputs are numbers, whose mean is theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np

from llmc.compiler.frontends.combining_files import Head, read_head, read_weights_of
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.graph import Node, Source, Weight
from llmc.compiler.ops import constant, make
from llmc.errors import LlmcError

METHODS = "mean, vote, a JSON file of weights, or stack:FILE"
SOURCE = Source("ensemble")
TIE = 2.0**-10  # of a vote: what the mean probability decides, less than one member's
_LOWEST = -1e30  # below all logarithms: where every member says -inf, the difference to it is a number
_LAST = -1
_SOFTMAX = {  # task -> the axis of the classes of its logits
    **dict.fromkeys(("text-classification", "image-classification", "audio-classification"), _LAST),
    **dict.fromkeys(("video-classification", "token-classification", "multiple-choice"), _LAST),
    **dict.fromkeys(("next-sentence-prediction", "fill-mask", "language-modeling"), _LAST),
    "automatic-speech-recognition": _LAST,
    "image-segmentation": 1,
}
_SIGMOID = ("replaced-token-detection", "audio-frame-classification")
_NUMBERS = (
    *("feature-extraction", "sentence-embedding", "question-answering", "depth-estimation"),
    *("image-to-image", "masked-image-modeling", "generic", "graph", "module"),
)
TASKS = frozenset((*_SOFTMAX, *_SIGMOID, *_NUMBERS))


@dataclass(frozen=True)
class Method:
    """What `--ensemble` asks for.

    Args:
        name: mean, vote, weights or stack.
        weights: of the members' mean, positive, 1 together.
        head: of a stack.
    """

    name: str
    weights: tuple[float, ...]
    head: Head | None = None


@dataclass(frozen=True)
class Meaning:
    """How the values of an output are read.

    Args:
        kind: "softmax" along `axis` or "sigmoid", which make probabilities of them, "directions" of length 1 along
            `axis`, or "numbers".
    """

    kind: str
    axis: int = 0


def method_of(text: str, names: Sequence[str]) -> Method:
    """What `--ensemble TEXT` asks for.

    Args:
        names: of the members, in order.

    Raises:
        LlmcError: there is no such method, or its file is not usable.
    """
    even = (1 / len(names),) * len(names)
    if text in ("mean", "vote"):
        return Method(text, even)
    kind, found, file = text.partition(":")
    if found and kind == "stack":
        return Method("stack", even, read_head(Path(file)))
    if Path(text).suffix.lower() == ".json":
        return Method("weights", read_weights_of(Path(text), names))
    raise LlmcError(f"no ensemble {text!r:.80}", at="--ensemble", hint=f"use {METHODS}")


def meaning_of(imported: Imported, name: str, rank: int) -> Meaning:
    """How an output of a model is read."""
    task, sentence = imported.task, imported.sentence
    if name == "sentence_embedding" and sentence is not None and sentence.normalized:
        return Meaning("directions", rank - 1)
    if name != "logits" or task in _NUMBERS:
        return Meaning("numbers")
    if imported.scores == "none":
        return Meaning("numbers")
    if imported.scores == "sigmoid" or task in _SIGMOID:
        return Meaning("sigmoid", rank - 1)
    return Meaning("softmax", _SOFTMAX[task] % rank)


def combined(method: Method, name: str, meaning: Meaning, members: Sequence[Node]) -> Node:
    """One answer of the members' answers, which have one type.

    Args:
        name: of the output.

    Raises:
        LlmcError: the method is not for such an output, or its file does not fit it.
    """
    if members[0].dtype not in ("f32", "f64"):
        found = str(members[0].type)
        raise LlmcError(f"the output {name} is no float, so it has no mean", at="--ensemble", found=found)
    if method.name == "vote":
        return _vote(name, meaning, members, method.weights)
    if method.head is not None:
        return _stack(method.head, name, meaning, members)
    if meaning.kind == "softmax":
        return _log_mean([_op("log_softmax", m, axis=meaning.axis) for m in members], method.weights)
    if meaning.kind == "sigmoid":
        yes, no = _log_odds(members, method.weights)
        return _op("sub", yes, no)
    mean = _weighted(members, method.weights)
    return _unit(mean, meaning.axis) if meaning.kind == "directions" else mean


# --- nodes


def _op(op: str, *inputs: Node | float, **attributes: object) -> Node:
    dtype = next(i.dtype for i in inputs if isinstance(i, Node))
    kind = np.float64 if dtype == "f64" else np.float32
    made = (
        i if isinstance(i, Node) else constant(Weight(np.asarray(i, kind)), source=SOURCE) for i in inputs
    )
    return make(op, tuple(made), SOURCE, **attributes)


def _fold(op: str, nodes: Sequence[Node]) -> Node:
    return reduce(lambda a, b: _op(op, a, b), nodes)


def _weighted(nodes: Sequence[Node], weights: Sequence[float]) -> Node:
    """sum_i w_i x_i"""
    return _fold("add", [_op("mul", node, weight) for node, weight in zip(nodes, weights, strict=True)])


def _log_mean(logs: Sequence[Node], weights: Sequence[float]) -> Node:
    """log(sum_i w_i exp(l_i))"""
    terms = [_op("add", node, math.log(weight)) for node, weight in zip(logs, weights, strict=True)]
    most = _op("maximum", _fold("maximum", terms), _LOWEST)
    total = _fold("add", [_op("exp", _op("sub", term, most)) for term in terms])
    return _op("add", most, _op("log", total))


def _log_odds(members: Sequence[Node], weights: Sequence[float]) -> tuple[Node, Node]:
    """The logarithms of the mean of sigmoid(z_i), and of 1 minus it.

    log sigmoid(z) = min(z, 0) - log(1 + exp(-|z|)), and 1 - sigmoid(z) = sigmoid(-z)
    """
    rest = [_op("log", _op("add", _op("exp", _op("neg", _op("abs", z))), 1.0)) for z in members]

    def mean(ends: Callable[[Node], Node]) -> Node:
        return _log_mean([_op("sub", ends(z), r) for z, r in zip(members, rest, strict=True)], weights)

    return mean(lambda z: _op("minimum", z, 0.0)), mean(lambda z: _op("minimum", _op("neg", z), 0.0))


def _unit(x: Node, axis: int) -> Node:
    """x / max(|x|, 1e-12), as torch.nn.functional.normalize has it"""
    length = _op("sqrt", _op("sum", _op("mul", x, x), axes=(axis,), keepdims=True))
    return _op("div", x, _op("maximum", length, 1e-12))


# --- votes


def _vote(name: str, meaning: Meaning, members: Sequence[Node], weights: Sequence[float]) -> Node:
    """The logits of the shares of members; the mean probability decides between equal ones."""
    if meaning.kind not in ("softmax", "sigmoid") or members[0].type.rank != 2:
        raise LlmcError(
            f"a vote is of classes, one answer for each sample, which the output {name} does not hold",
            at="--ensemble vote",
            found=str(members[0].type),
            hint="use mean",
        )
    count = len(members)
    if meaning.kind == "softmax":
        votes = _fold("add", [_chosen(m) for m in members])
        mean = _log_mean([_op("log_softmax", m, axis=meaning.axis) for m in members], weights)
        return _op("sub", _log_votes(votes, mean), math.log(count + TIE))
    votes = _fold("add", [_op("cast", _op("gt", z, 0.0), dtype="f32") for z in members])
    yes, no = _log_odds(members, weights)
    against = _op("sub", float(count), votes)
    return _op("sub", _log_votes(votes, yes), _log_votes(against, no))


def _chosen(logits: Node) -> Node:
    """1 at the class that a member names, the first of the likeliest, 0 at all others: f32 [batch, classes]."""
    named = _op("argmax", logits, axis=1, keepdims=True)
    classes = make("iota", (), SOURCE, length=logits.shape[1])
    row = _op("reshape", classes, shape=(1, logits.shape[1]))
    return _op("cast", _op("eq", named, row), dtype="f32")


def _log_votes(votes: Node, log_mean: Node) -> Node:
    """log(votes + TIE exp(l)), of no votes log TIE + l: a share of 0 is no -inf."""
    some = _op("log", _op("add", _op("maximum", votes, 1.0), _op("mul", _op("exp", log_mean), TIE)))
    return _op("where", _op("gt", votes, 0.0), some, _op("add", log_mean, math.log(TIE)))


# --- stacks


def _stack(head: Head, name: str, meaning: Meaning, members: Sequence[Node]) -> Node:
    """linear(concat(x_0, x_1, ...), weight, bias), of logits or of the probabilities they mean"""
    last = members[0].type.rank - 1
    count = members[0].shape[last] if last > 0 else None
    if name != "logits" or not isinstance(count, int) or meaning.axis not in (0, last):
        raise LlmcError(
            f"a stack is of logits of classes in the last axis, which the output {name} does not hold",
            at="--ensemble stack",
            found=str(members[0].type),
            hint="use mean",
        )
    wanted = [count, count * len(members)]
    if list(head.weight.shape) != wanted:
        raise _other_size(head, wanted, len(members))
    if head.bias is not None and head.bias.shape != (count,):
        problem = f"the stack's bias has {head.bias.size} numbers, not one for each of {count} classes"
        raise LlmcError(problem, at=str(head.file))
    parts = [_probabilities(m, meaning) if head.probabilities else m for m in members]
    weights = [constant(head.weight, "ensemble.weight", SOURCE)]
    weights += [] if head.bias is None else [constant(head.bias, "ensemble.bias", SOURCE)]
    epilogue = () if head.bias is None else ("bias",)
    return _op("linear", _op("concat", *parts, axis=last), *weights, epilogue=epilogue)


def _other_size(head: Head, wanted: Sequence[int], count: int) -> LlmcError:
    one = list(head.weight.shape) == [1, wanted[1]] and wanted[0] == 2
    hint = "a regression of one row w for two classes is the rows 0 and w, its bias 0 and b" if one else None
    return LlmcError(
        "the stack's weight does not fit the members' logits",
        at=str(head.file),
        found=f"{list(head.weight.shape)}, wanted {wanted}: classes, classes of {count} members side by side",
        hint=hint,
    )


def _probabilities(logits: Node, meaning: Meaning) -> Node:
    if meaning.kind == "softmax":
        return _op("softmax", logits, axis=meaning.axis)
    return _op("sigmoid", logits) if meaning.kind == "sigmoid" else logits
