"""Whether an artifact computes each sample of a batch for itself, where large batches run in smaller ones.

That is decided by what ops say of themselves (`compiler/sample_axis.py`). One that says so and does not would be wrong
at batches only that are larger than any the self-test tries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from llmc.compiler.dims import dim_names, symbol
from llmc.compiler.graph import Graph, Node
from llmc.compiler.module import Module
from llmc.compiler.ops import OPS
from llmc.compiler.sample_axis import sample_dim
from llmc.runtime.selftest import Call, Case, difference

_TRIED = 2  # samples of a batch


def mixed(model: Any, module: Module, cases: Iterable[Case]) -> list[str]:
    """A sentence for each output of which a sample is another one alone than in its batch.

    Args:
        model: the artifact of `module`, loaded.
        cases: calls to try; of each function the first with several samples.
    """
    calls = [call for case in cases for call in case]
    found = []
    for name, graph in module.functions.items():
        along = sample_dim(graph)
        tried = (c for c in calls if c.function == name and _count(graph, c, along) >= _TRIED)
        if along and (call := next(tried, None)) is not None:
            found += [f"{what}{_ops(graph)}" for what in _differing(model, graph, call, along)]
    return found


def _differing(model: Any, graph: Graph, call: Call, along: str) -> Iterator[str]:
    with model.session() as session:
        whole = {k: v.copy() for k, v in session.run(call.inputs, function=call.function).items()}
        alone = [
            {
                k: v.copy()
                for k, v in session.run(_sample(graph, call, along, at), function=call.function).items()
            }
            for at in range(_TRIED)
        ]
    for output, node in graph.outputs.items():
        if not node.shape or along not in dim_names(node.shape[0]):
            continue
        rows = np.concatenate([one[output] for one in alone])
        gap, same = difference(rows, whole[output][: len(rows)], *model.manifest.selftest)
        if not same:
            yield f"{output} of one sample is off by {gap:.3g} from what it is in its batch"


def _count(graph: Graph, call: Call, along: str) -> int:
    """The samples of a call."""
    plain = (n.attributes["name"] for n in _inputs(graph, along) if n.shape[0] == symbol(along))
    return max((len(call.inputs[name]) for name in plain if name in call.inputs), default=0)


def _sample(graph: Graph, call: Call, along: str, at: int) -> dict[str, Any]:
    """The inputs of one sample of a call."""
    cut, count = {n.attributes["name"] for n in _inputs(graph, along)}, _count(graph, call, along)
    return {
        name: value[at * len(value) // count : (at + 1) * len(value) // count] if name in cut else value
        for name, value in call.inputs.items()
    }


def _inputs(graph: Graph, along: str) -> list[Node]:
    """The inputs that hold samples along a dim, each one row or several."""
    return [node for node in graph.inputs if along and node.shape and along in dim_names(node.shape[0])]


def _ops(graph: Graph) -> str:
    """The ops from outside, one of which may say of itself what is not so."""
    outside = sorted({f"{n.op} ({OPS[n.op].origin})" for n in graph.nodes if OPS[n.op].origin})
    return f"; look at the traits rows and first_axis of {', '.join(outside)}" if outside else ""
