"""What can be done with each layer to make a model smaller or faster, and the pipeline that does what was chosen.

A layer is a weight of products or look-ups, or an attention. What is tried is a table of pipeline texts: one more is a
line more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from glob import escape

from llmc.compiler.effects import weights
from llmc.compiler.graph import Graph, Node
from llmc.compiler.pipeline import Pipeline
from llmc.errors import LlmcError
from llmc.passes import PASSES
from llmc.passes.only import Only, names_of
from llmc.passes.quantise.int8_attention import Qattention
from llmc.passes.quantise.int16 import with_kernels
from llmc.targets.backend import Backend

FLOAT = "fp32"
WEIGHT, ATTENTION = "weight", "attention"
_ATTENTIONS = ("mha", "ragged_mha")
_LEAST = 1024  # values of a weight that is worth a question


@dataclass(frozen=True)
class Candidate:
    """One thing to do with a layer.

    Args:
        name: as tables show it.
        passes: those on the layer alone, a pipeline's text.
        after: those that follow once, when all layers have theirs.
        kind: of layers that it is for.
        needs: the mode of `--quant`, or the op of stored weights, that a backend must have.
        floats: whether what it makes is float still.
        sampled: instead of `passes` where there are samples to round by; sensitivity is that of `passes`, no worse.
    """

    name: str
    passes: str
    after: str = ""
    kind: str = WEIGHT
    needs: str = ""
    sampled: str = ""
    floats: bool = False

    def followed(self, graph: Graph) -> Graph:
        """A graph with its layer changed, after the passes that follow once."""
        return Pipeline.parse(self.after, PASSES).run(graph)[0]


# In the order they are measured: what mostly pays comes first, for a time budget may end before the last.
CANDIDATES: Sequence[Candidate] = (
    Candidate("int8", "quantize", "qfuse,cse", needs="int8"),
    Candidate("int8", "qattention", kind=ATTENTION, needs="int8"),
    Candidate(
        "w4",
        'blockwise{bits=4,block=32,scales="search"}',
        "int16,cse",
        needs="w4",
        sampled="gptq{bits=4,block=32}",
    ),
    Candidate(
        "w4a8",
        'blockwise{bits=4,block=32,scales="search"},int8-blocks',
        "int16,cse",
        needs="w4a8",
        sampled="gptq{bits=4,block=32},int8-blocks",
    ),
    Candidate("fp16", 'quantize{mode="fp16"}', "qfuse,cse", needs="fp16", floats=True),
    Candidate(
        "w8",
        "blockwise{block=128,table_block=64}",
        "int16,cse",
        needs="w8",
        sampled="gptq{bits=8,block=128,table_block=64}",
    ),
    Candidate("share 16", "share{clusters=16}", needs="codebook"),
    Candidate("prune 0.5", 'prune{sparsity=0.5,scope="layer"}', needs="bitmask"),
    Candidate("rank 0.9", "factorize{energy=0.9}"),
    Candidate("share 256", "share", needs="codebook"),
)


@dataclass(frozen=True)
class Layer:
    """A weight or an attention, and the pattern that names it and no other."""

    name: str
    kind: str
    node: Node
    values: int


def candidates(backend: Backend) -> list[Candidate]:
    """Those that a backend has kernels for."""
    known = {*backend.quantisations, *backend.decodes, ""}
    attention = {ATTENTION} if backend.integer_attention else set()
    found = (c for c in CANDIDATES if c.needs in known and c.kind in {WEIGHT, *attention})
    return [_with_kernels(c, backend) for c in found]


def _with_kernels(candidate: Candidate, backend: Backend) -> Candidate:
    """`candidate` with what `backend` has kernels for behind it."""
    after = Pipeline.parse(candidate.after, PASSES)
    kept = with_kernels(after, backend.integer_rows)
    return candidate if kept is after else replace(candidate, after=str(kept))


def layers(graph: Graph) -> list[Layer]:
    """What can be chosen for, in the order of the graph; one that no pattern names alone is not among them."""
    return [*_weights(graph), *_attentions(graph)]


def _weights(graph: Graph) -> Iterator[Layer]:
    names = {weight: names_of(graph, weight) for weight in weights(graph)}
    for weight, own in names.items():
        if weight.op != "constant" or weight.dtype != "f32":
            continue
        size = int(weight.attributes["value"].array.size)
        others = [name for other, known in names.items() if other is not weight for name in known]
        pattern = next((escape(n) for n in own if n and n not in others), None)
        if pattern is not None and size >= _LEAST:
            yield Layer(pattern, WEIGHT, weight, size)


def _attentions(graph: Graph) -> Iterator[Layer]:
    found = [node for node in graph.nodes if node.op in _ATTENTIONS]
    paths = [node.source.path for node in found]
    for node, path in zip(found, paths, strict=True):
        if path and paths.count(path) == 1:
            yield Layer(escape(path), ATTENTION, node, 0)


Choice = Mapping[Layer, Candidate]  # layers that are not in it stay as they are


def pipeline_of(
    choice: Choice, every: Sequence[Layer], sampled: bool = False, after: bool = True
) -> Pipeline:
    """The passes that do what was chosen, each kind once.

    Args:
        every: all layers of the graph.
        sampled: whether there are samples to round by.
        after: whether the passes behind them are there too; without, values are as good and kernels are not.
    """
    steps: list[Pipeline] = []
    later: dict[str, None] = {}
    for candidate in dict.fromkeys(choice.values()):
        mine = [layer for layer in every if choice.get(layer) is candidate]
        if candidate.kind == ATTENTION:
            skipped = [x.name for x in every if x.kind == ATTENTION and x not in mine]
            steps.append(Pipeline.of(Qattention(skip=tuple(skipped))))
            continue
        passes = candidate.sampled if sampled and candidate.sampled else candidate.passes
        steps.append(Pipeline.of(Only(tuple(layer.name for layer in mine), passes)))
        later |= dict.fromkeys(candidate.after.split(",") if candidate.after else ())
    # one `cse` at the end
    last = [name for name in later if name != "cse"] + [name for name in later if name == "cse"]
    steps.append(Pipeline.parse(",".join(last) if after else "", PASSES))
    return Pipeline(tuple(step for part in steps for step in part.steps))


def want_known(patterns: Sequence[str], every: Sequence[Layer]) -> None:
    """Refuse patterns that name no layer.

    Raises:
        LlmcError: it names some that there are.
    """
    for pattern in patterns:
        if not any(fnmatchcase(layer.name, pattern) for layer in every):
            found = ", ".join(layer.name for layer in every[:5])
            raise LlmcError(f"no layer fits {pattern!r}", found=found, hint="* stands for anything")
