"""Several fine-tuned models of one signature as one: their graphs side by side over the same inputs.

Every member's nodes and weights bear its name before their own, so that all that shows a graph shows whose they are.
Weights of equal content are one constant from here on, by the name of the first that has it; that what is computed
alike from them is computed once is the work of the pass `cse`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmc.compiler.counted import counted_dims
from llmc.compiler.dims import Bounds
from llmc.compiler.frontends import graph_text, hub
from llmc.compiler.frontends.combining import TASKS, Method, combined, meaning_of
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.frontends.tokenizer import Tokenizer
from llmc.compiler.graph import Graph, Node, Source, Weight
from llmc.compiler.ops import make
from llmc.errors import LlmcError

MOST = 64
_MASK = "attention_mask"
_OWN = re.compile(r"[^A-Za-z0-9._-]+")
_FREE = ("tokenizer's max_length", "tokenizer's inputs", "chat_template", "generation")  # joined, or nobody's


def member_names(models: Sequence[str | Path]) -> tuple[str, ...]:
    """What members are called: as their folders or files, numbered where two are called alike.

    Raises:
        LlmcError: there are too few or too many, or one is given twice.
    """
    paths = [Path(model) for model in models]
    if not 2 <= len(paths) <= MOST:
        raise LlmcError(
            f"an ensemble has 2 to {MOST} members", found=str(len(paths)), hint="give others by --member DIR"
        )
    for number, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:number]]:
            hint = 'one that is to count more: --ensemble weights.json with {"weights": [2, 1, ...]}'
            raise LlmcError("a member is given twice", at=str(path), hint=hint)
    names: list[str] = []
    for path in paths:
        name = _OWN.sub("-", path.stem if path.is_file() else hub.name_of(path)) or "member"
        same = sum(1 for other in names if other == name or other.startswith(f"{name}-"))
        names.append(next(n for n in _numbered(name, same) if n not in names))
    return tuple(names)


def _numbered(name: str, same: int) -> Iterator[str]:
    yield name
    for number in range(2, same + 3):
        yield f"{name}-{number}"


def joined(members: Sequence[Imported], names: Sequence[str], method: Method) -> Imported:
    """The ensemble as a model.

    Raises:
        LlmcError: a member is of a kind that has no mean, or differs from the first one in more than its weights.
    """
    first = members[0]
    for name, member in zip(names, members, strict=True):
        _want_plain(name, member)
        if member is not first:
            _want_alike((names[0], first), (name, member))
    graph = _graph(members, names, method)
    return replace(
        first,
        graph=graph,
        name=f"{names[0]}-ensemble",
        model_type="+".join(dict.fromkeys(m.model_type for m in members)),
        architecture="+".join(dict.fromkeys(m.architecture for m in members)),
        tokenizer=_tokenizer(members, names),
        pipeline=None,
        ensemble={"method": method.name, "members": [*_listed(members, names, method)]},
    )


def _listed(
    members: Sequence[Imported], names: Sequence[str], method: Method
) -> Iterator[Mapping[str, str | float]]:
    """What the manifest says of each member."""
    for name, member, weight in zip(names, members, method.weights, strict=True):
        entry: dict[str, str | float] = {"name": name, "architecture": member.architecture}
        yield entry | ({"weight": round(weight, 6)} if method.name == "weights" else {})


# --- what members must have in common


def _want_plain(name: str, member: Imported) -> None:
    if member.functions or member.graph.states:
        keeps = "keeps states from call to call" if member.module.states else "has several functions"
        hint = (
            "--task language-modeling makes an ensemble of whole texts' logits"
            if member.task == "text-generation"
            else None
        )
        raise LlmcError(
            f"{name} {keeps}: an ensemble is of models that answer in one call",
            at=name,
            found=f"a {member.task} model",
            hint=hint,
        )
    if member.task not in TASKS:
        raise LlmcError(
            f"answers of {member.task} have no mean",
            at=name,
            hint=f"ensembles are of {', '.join(sorted(TASKS))}",
        )
    if counted := counted_dims(member.graph):
        hint = "give the model, not a graph that passes have packed"
        raise LlmcError(f"{name} counts sizes itself: {', '.join(counted)}", at=name, hint=hint)


Named = tuple[str, Imported]


def _want_alike(a: Named, b: Named) -> None:
    """Refuse members that are not asked the same, or do not answer the same."""
    known, other = _facts(a[1]), _facts(b[1])
    for key in dict.fromkeys((*known, *other)):
        found = _difference(known.get(key), other.get(key), key)
        if found is not None:
            place, left, right = found
            raise LlmcError(
                f"{b[0]} differs from {a[0]} in {_called(key)}",
                at=place[:200],
                found=f"{left} in {a[0]}, {right} in {b[0]}",
                hint=_HINTS.get(key),
            )
    for what, left, right in _signatures(a[1].graph, b[1].graph):
        raise LlmcError(f"{b[0]} differs from {a[0]} in {what}", found=f"{left} in {a[0]}, {right} in {b[0]}")


_HINTS = {
    "task": "--task asks all of them for one",
    "labels": "members name the same classes in the same order: give their config.json one id2label",
    "tokenizer.json": "members read the same tokens: fine-tunes of one base do",
}


def _called(key: str) -> str:
    return {"task": "its task", "labels": "its labels", "tokenizer.json": "its tokenizer"}.get(key, key)


def _facts(member: Imported) -> dict[str, Any]:
    """What changes answers, but for the graph; the likeliest mistakes first."""
    said = graph_text.said(member)
    facts = {"task": said.pop("task"), "labels": said.pop("labels", []), "scores": said.pop("scores", None)}
    facts |= {key: value for key, value in sorted(said.items()) if key not in _FREE}
    if member.tokenizer is not None:
        facts[graph_text.TOKENIZER] = json.loads(member.tokenizer.text)
    return facts


def _difference(a: Any, b: Any, place: str) -> tuple[str, str, str] | None:
    """Where two JSON values differ first, and what each has there."""
    if isinstance(a, dict) and isinstance(b, dict):
        pairs = [(f"{place}.{key}", a.get(key), b.get(key)) for key in dict.fromkeys((*a, *b))]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = [(f"{place}[{i}]", x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        return None if a == b else (place, _short(a), _short(b))
    return next((found for where, x, y in pairs if (found := _difference(x, y, where))), None)


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _signatures(a: Graph, b: Graph) -> Iterator[tuple[str, str, str]]:
    """What differs in inputs that both have, in those that one has alone, and in outputs."""
    ours, theirs = _inputs(a), _inputs(b)
    for name in dict.fromkeys((*ours, *theirs)):
        left, right = ours.get(name), theirs.get(name)
        if left is None or right is None:
            if not _may_lack(name, left or right):
                yield f"the input {name}", _type(left), _type(right)
            continue
        facts = [(str(n.type), n.attributes["default"]) for n in (left, right)]
        if facts[0] != facts[1] or not _common(left, right):
            yield f"the input {name}", _type(left), _type(right)
    left_outputs, right_outputs = _outputs(a), _outputs(b)
    if left_outputs != right_outputs:
        yield "the outputs", left_outputs, right_outputs


def _outputs(graph: Graph) -> str:
    return ", ".join(f"{name} {node.type}" for name, node in sorted(graph.outputs.items()))


def _inputs(graph: Graph) -> Mapping[str, Node]:
    return {node.attributes["name"]: node for node in graph.inputs}


def _may_lack(name: str, node: Node | None) -> bool:
    """Whether a member may do without an input; one without a mask would read the padding of others."""
    return node is not None and node.attributes["default"] is not None and name != _MASK


def _type(node: Node | None) -> str:
    if node is None:
        return "none"
    default, (low, high) = node.attributes["default"], _range(node)
    told = "" if default is None else f", default {default}"
    return f"{node.type}{told}{'' if low is None else f', from {low} to {high}'}"


def _range(node: Node) -> tuple[Any, Any]:
    return node.attributes["low"], node.attributes["high"]


def _common(*nodes: Node) -> bool:
    """Whether a value is legal for all."""
    low, high = _narrowest(nodes)
    return low is None or high is None or bool(low <= high)


# --- the graph


def _graph(members: Sequence[Imported], names: Sequence[str], method: Method) -> Graph:
    graphs = [member.graph for member in members]
    inputs = {name: _shared(name, graphs) for graph in graphs for name in _inputs(graph)}
    constants: dict[str, Node] = {}
    found = [_Part(name, inputs, constants).of(g) for name, g in zip(names, graphs, strict=True)]
    outputs = {}
    for name, node in graphs[0].outputs.items():
        meaning = meaning_of(members[0], name, node.type.rank)
        outputs[name] = combined(method, name, meaning, [part[name] for part in found])
    return Graph(tuple(inputs.values()), outputs, _dims(graphs, names))


def _shared(name: str, graphs: Sequence[Graph]) -> Node:
    """The input of all members, of values that are legal for each."""
    nodes = [node for graph in graphs if (node := _inputs(graph).get(name)) is not None]
    low, high = _narrowest(nodes)
    return make("input", (), nodes[0].source, **{**nodes[0].attributes, "low": low, "high": high})


def _narrowest(nodes: Sequence[Node]) -> tuple[Any, Any]:
    lows, highs = zip(*map(_range, nodes), strict=True)
    low = max((n for n in lows if n is not None), default=None)
    return low, min((n for n in highs if n is not None), default=None)


def _dims(graphs: Sequence[Graph], names: Sequence[str]) -> dict[str, Bounds]:
    """The sizes that all members take."""
    dims: dict[str, Bounds] = {}
    for graph, member in zip(graphs, names, strict=True):
        for name, (low, high) in graph.dims.items():
            before = dims.get(name, Bounds(low, high))
            dims[name] = Bounds(max(low, before.low), min(high, before.high))
            if dims[name].low > dims[name].high:
                found = f"{name} from {low} to {high}, {before.low} to {before.high} before"
                raise LlmcError(f"{member} takes no size that the others take", at=member, found=found)
    return dims


class _Part:
    """One member's nodes on the inputs of all."""

    def __init__(self, member: str, inputs: Mapping[str, Node], constants: dict[str, Node]) -> None:
        self._member, self._inputs, self._constants = member, inputs, constants

    def of(self, graph: Graph) -> Mapping[str, Node]:
        """The member's outputs."""
        return graph.rebuild(self._moved).outputs

    def _moved(self, _: Node, node: Node) -> Node:
        if node.op == "input":
            return self._inputs[node.attributes["name"]]
        if node.op == "constant":
            weight: Weight = node.attributes["value"]
            return self._constants.setdefault(weight.digest, self._constant(node, weight))
        return self._own(node)

    def _constant(self, node: Node, weight: Weight) -> Node:
        named = weight.named(f"{self._member}.{weight.name}" if weight.name else "")
        return replace(self._own(node), attributes={"value": named})

    def _own(self, node: Node) -> Node:
        """The node under the member's name, those of its bodies too."""
        bodies = {n: v.rebuild(self._inner) for n, v in node.attributes.items() if isinstance(v, Graph)}
        path = f"{self._member}.{node.source.path}" if node.source.path else self._member
        return replace(node, source=Source(path, node.source.line), attributes={**node.attributes, **bodies})

    def _inner(self, _: Node, node: Node) -> Node:
        return node if node.op == "input" else self._own(node)


# --- texts


def _tokenizer(members: Sequence[Imported], names: Sequence[str]) -> Tokenizer | None:
    """The members' tokenizer: texts as long as all of them take, and what it makes for those that read it."""
    tokenizers = [member.tokenizer for member in members if member.tokenizer is not None]
    if not tokenizers:
        return None
    made: dict[str, tuple[str, bool]] = {}
    for name, member in zip(names, members, strict=True):
        for given in _inputs(member.graph):
            makes = member.tokenizer is not None and given in member.tokenizer.inputs
            other, before = made.setdefault(given, (name, makes))
            if before is not makes:
                maker, lacks = (name, other) if makes else (other, name)
                found = f"made by the tokenizer of {maker}, at its default in {lacks}"
                raise LlmcError(f"{name} differs from {other} in the input {given}", found=found)
    inputs = [i for tokenizer in tokenizers for i in tokenizer.inputs if made.get(i, ("", True))[1]]
    return replace(
        tokenizers[0],
        max_length=min(tokenizer.max_length for tokenizer in tokenizers),
        inputs=tuple(dict.fromkeys(inputs)),
    )
