"""`only`: other passes on the weights of some layers, so that a pipeline can treat each layer as suits it."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar

from llmc.compiler.effects import Effect, listening, tell, weights
from llmc.compiler.graph import Graph, Node
from llmc.compiler.ops import make
from llmc.compiler.pipeline import LOSSY, Keeps, Pass, Pipeline, near
from llmc.errors import LlmcError
from llmc.passes.compress.weights import replaced


@dataclass(frozen=True)
class Only(Pass):
    """Run passes as if the weights of all but some layers were computed.

    Bodies of loops and branches are left as they are.

    Args:
        layers: patterns of the weights' names, or of the modules that read them.
        passes: what to run, as a pipeline's text.
    """

    keeps: ClassVar[Keeps] = LOSSY
    layers: tuple[str, ...] = ()
    passes: str = ""

    def __post_init__(self) -> None:
        if self.layers or self.passes:
            self._want_both()

    def _want_both(self) -> None:
        if not self.layers or not self.pipeline.steps:
            hint = 'only{layers=["encoder.layer.0.*"],passes="prune{sparsity=0.5}"}'
            raise LlmcError("only: names no layers, or no passes", hint=hint)

    @property
    def pipeline(self) -> Pipeline:
        """The passes that are run."""
        from llmc.passes import PASSES  # which holds this one too

        return Pipeline.parse(self.passes, PASSES)

    @property
    def wants_samples(self) -> bool:  # type: ignore[override]  # as the passes do
        """Whether a pass does."""
        return any(step.change.wants_samples for step in self.pipeline.steps)

    def enters(self) -> bool:
        """Layers are named for a whole graph."""
        return False

    def run(self, graph: Graph) -> Graph:
        """Hide the other weights behind views that change nothing, run, and take the views away again."""
        self._want_both()
        wanted = layers_named(graph, self.layers)
        views = {w: make("reshape", (w,), w.source, shape=w.shape) for w in weights(graph) if w not in wanted}
        shown = after = replaced(graph, views)
        with listening() as heard:
            for step in self.pipeline.steps:
                after = step.change.run(after)
        _tell_of(heard, {id(weight.attributes["value"]) for weight in views if weight.op == "constant"})
        if after is shown:
            return graph
        return _joined(graph, replaced(after, {view: weight for weight, view in views.items()}))


def _joined(before: Graph, after: Graph) -> Graph:
    """`after` with the nodes of `before` where nothing is another: who holds values by node need not make them anew."""
    known = {_key(node, node.inputs): node for node in before.nodes}
    done: dict[Node, Node] = {}
    for node in after.nodes:
        inputs = tuple(done[i] for i in node.inputs)
        same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
        done[node] = known.get(_key(node, inputs)) or (node if same else node.with_inputs(inputs))
    return after.exchanged(done.__getitem__)


def _key(node: Node, inputs: tuple[Node, ...]) -> Hashable:
    """By identity of constants, whose values are not to be compared."""
    return (
        node if node.op == "constant" else (node.op, inputs, node.source, frozenset(node.attributes.items()))
    )


def _tell_of(heard: Iterable[Effect], hidden: Collection[int]) -> None:
    """What the passes told, with the true reason why the hidden weights stayed."""
    for effect in heard:
        other = (
            replace(v, reason="of other layers") if id(v.thing) in hidden else v for v in effect.verdicts
        )
        tell(effect.what, other)


def names_of(graph: Graph, weight: Node) -> tuple[str, ...]:
    """What a pattern of `Only` may fit: the weight's own name, and the modules of those that read it."""
    own = (weight.attributes["value"].name,) if weight.op == "constant" else ()
    return tuple(dict.fromkeys((*filter(None, own), *(user.source.path for user in graph.users[weight]))))


def layers_named(graph: Graph, patterns: Sequence[str]) -> set[Node]:
    """The weights that patterns fit.

    Raises:
        LlmcError: one fits none.
    """
    names = {weight: names_of(graph, weight) for weight in weights(graph)}
    found: set[Node] = set()
    for pattern in patterns:
        fitting = {w for w, known in names.items() if any(fnmatchcase(name, pattern) for name in known)}
        if not fitting:
            known = {name for own in names.values() for name in own}
            raise LlmcError(f"only: no weight fits {pattern!r}", hint=near(pattern, known))
        found |= fitting
    return found
