"""Heads and neurons of PyTorch's weights held at zero: which they are, by magnitude or by gradients on data.

By gradients: what the loss would change by without a unit, to first order, is the sum over its activations of value
times gradient (Molchanov et al. 2019, "Importance estimation for neural network pruning"; of heads Michel, Levy and
Neubig 2019, "Are sixteen heads really better than one?").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmc.compiler.effects import listening
from llmc.compiler.graph import Graph, Node
from llmc.compiler.pipeline import Pipeline
from llmc.distillation import Examples
from llmc.errors import LlmcError
from llmc.masks import Part, located
from llmc.passes import PASSES
from llmc.passes.compress import prune_heads, prune_neurons, shortcuts
from llmc.passes.compress.prune import Prune
from llmc.passes.compress.prune_channels import PruneChannels
from llmc.passes.compress.prune_heads import PruneHeads
from llmc.passes.compress.prune_neurons import PruneNeurons
from llmc.passes.compress.weights import Array, place

WAYS = ("gradients", "magnitude")
ROWS = 512  # that gradients are taken of
Change = PruneHeads | PruneNeurons


def changes_of(specs: Sequence[str]) -> Sequence[Change] | Prune:
    """The passes that `--prune`, once or more, names: those of units, or one of single weights.

    Raises:
        LlmcError: one is not understood, or they do not go together.
    """
    changes = [step.change for step in Pipeline.parse(shortcuts.compression(specs), PASSES).steps]
    units = [change for change in changes if isinstance(change, Change)]
    if len(units) == len(changes) and len({type(change) for change in units}) == len(units):
        return units
    if len(changes) == 1 and isinstance(changes[0], Prune):
        return changes[0]
    if any(isinstance(change, PruneChannels) for change in changes):
        raise LlmcError(
            "recover trains no convolutions, whose channels this removes: it holds heads, neurons or single weights",
            at=" ".join(f"--prune {spec}" for spec in specs),
            hint="`llmc compile --prune channels:0.3 --calib FOLDER` removes channels, by the samples' activations",
        )
    raise LlmcError(
        "recover holds either heads and neurons at zero, once each, or single weights",
        at=" ".join(f"--prune {spec}" for spec in specs),
        hint="recover heads and neurons alone; `llmc compile` takes what else is to be pruned as well",
    )


@dataclass(frozen=True)
class Rows:
    """Of a matrix the rows that make the units of a group: as many to each, one unit after the other."""

    name: str
    turned: bool
    first: int


@dataclass(frozen=True)
class Group:
    """The heads of one attention, or the inner columns of one feed-forward block.

    Args:
        count, size: how many units there are, and the rows of each, which are columns of what reads them.
        made: whose rows they are.
        read: the parameters whose columns read them.
        norms: how much each weighs by magnitude.
    """

    count: int
    size: int
    made: Sequence[Rows]
    read: Sequence[Part]
    norms: Array


class Units:
    """Which heads and neurons of a model stay, chosen once, from the weights that it came with.

    Args:
        changes: the passes that remove them.
        model: a `torch.nn.Module`, with the values that `graph` was made of.
        graph: of the same model, before the passes.

    Raises:
        LlmcError: a pass changes nothing, or a product has a weight that is not the model's own.
    """

    def __init__(self, changes: Sequence[Change], model: Any, graph: Graph) -> None:
        self._changes, own = changes, dict(model.named_parameters())
        found = [_products(change, graph) for change in changes]
        nodes = list(
            dict.fromkeys(node for groups in found for made, out, *_ in groups for node in (*made, out))
        )
        parts = located([(_array(node), place(node)) for node in nodes], model)
        parts_of = dict(zip(nodes, parts, strict=True))
        self.groups = [[_group(parts_of, *products) for products in groups] for groups in found]
        self._order: list[Sequence[Array]] = []
        for change, groups in zip(changes, self.groups, strict=True):
            if not groups:
                raise _useless(change, graph)
        self._graph = graph
        self.rank({})
        made = {rows.name for group in self._all() for rows in group.made}
        read = {part.name for group in self._all() for part in group.read}  # whose biases stay
        names = made | read | set(map(bias_of, made))
        self.weights = {name: weight for name, weight in own.items() if name in names}

    def rank(self, importance: Mapping[str, Array]) -> None:
        """Choose anew which units go.

        Args:
            importance: of each unit, by the name of the first parameter that reads it; missing: by magnitude.
        """
        self._order = []
        for change, groups in zip(self._changes, self.groups, strict=True):
            scores = [importance.get(group.read[0].name, group.norms) for group in groups]
            kept = change.kept(scores) if isinstance(change, PruneHeads) else map(change.kept, scores)
            gone = [np.setdiff1d(np.arange(len(s)), k) for s, k in zip(scores, kept, strict=True)]
            if not any(map(len, gone)):
                raise _useless(change, self._graph)
            self._order.append(
                [g[np.argsort(s[g], kind="stable")] for s, g in zip(scores, gone, strict=True)]
            )

    def kept(self) -> Iterator[tuple[Group, Array]]:
        """Each group, and the units of it that stay, ascending."""
        for group, gone in self._chosen(1.0):
            yield group, np.setdiff1d(np.arange(group.count), gone)

    def at(self, share: float = 1.0) -> Mapping[str, Any]:
        """Name -> bool tensor, True where a weight stays.

        Args:
            share: of the units that are to go, the least important: so many, 0 to 1.
        """
        import torch

        masks = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in self.weights.items()}
        for group, gone in self._chosen(share):
            places = torch.from_numpy((gone[:, None] * group.size + np.arange(group.size)).reshape(-1))
            for rows in group.made:
                (masks[rows.name].T if rows.turned else masks[rows.name])[rows.first + places] = False
                if (bias := masks.get(bias_of(rows.name))) is not None:
                    bias[rows.first + places] = False
            for part in group.read:
                part.of(masks[part.name])[:, places] = False
        return masks

    def _chosen(self, share: float) -> Iterator[tuple[Group, Array]]:
        for groups, order in zip(self.groups, self._order, strict=True):
            for group, gone in zip(groups, order, strict=True):
                yield group, gone[: round(share * len(gone))]

    def _all(self) -> Iterator[Group]:
        return (group for groups in self.groups for group in groups)


def _useless(change: Change, graph: Graph) -> LlmcError:
    """What a pass that changes nothing says of what it left."""
    with listening() as heard:
        change.run(graph)
    found = "; ".join(str(effect) for effect in heard if effect.verdicts)
    return LlmcError("--prune changes nothing in this model", at=str(change), found=found or None)


Products = tuple[Sequence[Node], Node, Sequence[tuple[Node, int]], int, int, Array]


def _products(change: Change, graph: Graph) -> Sequence[Products]:
    """Of each group: what makes its units, what reads them, where they begin, how many and how large they are."""
    if isinstance(change, PruneHeads):
        return [
            (
                layer.mha.inputs[:3],
                layer.out,
                [(node, layer.columns(0, i).start) for i, node in enumerate(layer.mha.inputs[:3])],
                layer.heads,
                int(layer.mha.attributes["head_dim"]),
                prune_heads.scores(layer),
            )
            for layer in change.chosen(graph)
        ]
    return [
        (b.ups, b.down, [(up, 0) for up in b.ups], b.width, 1, prune_neurons.scores(b))
        for b in change.chosen(graph)
    ]


def _group(
    parts_of: Mapping[Node, Sequence[Part]],
    ups: Sequence[Node],
    out: Node,
    begins: Sequence[tuple[Node, int]],
    count: int,
    size: int,
    norms: Array,
) -> Group:
    made = []
    for node, start in begins:
        part = next(p for p in parts_of[node] if p.rows.start <= start < p.rows.stop)
        if start + count * size > part.rows.stop:
            raise LlmcError(
                "heads or neurons lie in several parameters", at=place(node), hint="leave it out: skip=[...]"
            )
        made.append(Rows(part.name, part.turned, start - part.rows.start))
    return Group(count, size, made, parts_of[out], norms)


def _array(node: Node) -> Array:
    return np.asarray(node.inputs[1].attributes["value"].array)


def bias_of(name: str) -> str:
    """The name of what a product with this weight adds, if it adds anything."""
    return f"{name.removesuffix('weight')}bias"


# --- gradients


def let_train(model: Any) -> None:
    """All floats but the tables, which neither zeros nor levels of products are chosen of."""
    import torch

    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    for weight in model.parameters():
        weight.requires_grad_(weight.is_floating_point() and id(weight) not in tables)


def importance(units: Units, model: Any, examples: Examples, batch: int) -> Mapping[str, Array]:
    """Of each unit the mean over samples of |sum of value times gradient|, as `Units.rank` takes it.

    The loss is that of labels; without them of answers drawn by the model's own probabilities.
    """
    import torch

    let_train(model)
    sums: dict[str, Any] = {}
    hooks = []
    for group in (g for groups in units.groups for g in groups):
        name = group.read[0].name
        module = model.get_submodule(name.rpartition(".")[0])
        hooks.append(module.register_forward_pre_hook(_adder(sums, name, group)))
    rows = range(min(ROWS, len(examples.rows)))
    draw = torch.Generator().manual_seed(0)
    try:
        for start in range(0, len(rows), batch):
            _task_loss(model, examples, rows[start : start + batch], draw).backward()
            model.zero_grad()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total.numpy() for name, total in sums.items()}


def _adder(sums: dict[str, Any], name: str, group: Group) -> Any:
    def before(module: Any, inputs: Sequence[Any]) -> None:
        x = inputs[0].detach()

        def add(gradient: Any) -> None:
            by_unit = (x * gradient).reshape(len(x), -1, group.count, group.size).sum((1, 3))
            found = by_unit.abs().double().sum(0)
            sums[name] = sums[name] + found if name in sums else found

        inputs[0].register_hook(add)

    return before


def _task_loss(model: Any, examples: Examples, rows: Iterable[int], draw: Any) -> Any:
    """Summed over rows: of labels, else of answers drawn as the model gives them."""
    import torch
    from torch.nn import functional

    chosen = list(rows)
    given = examples.batch(chosen)
    logits = model(**given).logits
    real = given.get("attention_mask", torch.ones_like(given["input_ids"]))
    if examples.scores == "none":
        return (logits * (torch.randint(0, 2, logits.shape, generator=draw) * 2 - 1)).sum()
    if examples.scores == "sigmoid":
        answers = torch.bernoulli(logits.detach().sigmoid(), generator=draw)
        return functional.binary_cross_entropy_with_logits(logits, answers, reduction="sum")
    if examples.labelled:
        labels = examples.labels(chosen, given["input_ids"], real)
    else:
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=draw)[:, 0]
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), reduction="sum")
