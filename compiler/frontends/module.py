"""A `torch.nn.Module` -> Graph, with a dynamic batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmc.compiler.frontends.imported import want_bound
from llmc.compiler.frontends.versions import warn_if_untested
from llmc.errors import LlmcError

if TYPE_CHECKING:
    from llmc.compiler.graph import Graph


def graph(module: Any, sample: Mapping[str, Any], outputs: Sequence[str], max_batch: int) -> Graph:
    """Trace a module in eval mode.

    Args:
        module: takes tensors, returns a tensor or a tuple of them.
        sample: input name -> example tensor; axis 0 of each is the batch, the others are fixed.
        outputs: names, one for each tensor returned.
        max_batch: upper bound of the batch.

    Raises:
        LlmcError: the module is in training mode, the examples do not fit, or it cannot be imported.
    """
    import torch

    from llmc.compiler.frontends.inputs import Input
    from llmc.compiler.frontends.torch_export import to_graph
    from llmc.compiler.frontends.tracing import trace

    warn_if_untested("torch")
    want_bound("max_batch", max_batch)
    if module.training:
        raise LlmcError("the module is in training mode", hint="call module.eval() first")
    if not sample or any(not isinstance(v, torch.Tensor) or v.dim() == 0 for v in sample.values()):
        raise LlmcError("the example inputs are not tensors with a batch axis", found=str(list(sample)))
    # a batch of one would be taken for a fixed size
    examples = tuple(v[:1].expand(min(2, max_batch), *v.shape[1:]).contiguous() for v in sample.values())
    axes = {0: torch.export.Dim("batch", min=1, max=max_batch)} if max_batch > 1 else {}
    with torch.no_grad():
        program = trace(module, examples, tuple(axes for _ in examples))
        made = module(*examples)
    count = len(made) if isinstance(made, (tuple, list)) else 1
    if count != len(outputs):
        raise LlmcError(f"the module returns {count} tensors", found=f"{len(outputs)} output names")
    declared = [Input(name, ("batch", *map(int, v.shape[1:]))) for name, v in sample.items()]
    return to_graph(program, declared, outputs, {"batch": (1, max_batch)})
