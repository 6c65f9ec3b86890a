"""A model of transformers with the outputs of its task: run, and exported as a program with dynamic axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmc.compiler.frontends.folder import EMBEDDING, Summary
from llmc.compiler.frontends.inputs import Inputs
from llmc.compiler.frontends.joint import ANY, Joint
from llmc.compiler.frontends.sentence import Sentence
from llmc.compiler.frontends.tasks import Task
from llmc.errors import LlmcError, first_line


def head_of(
    summary: Summary, model: Any, task: Task, inputs: Inputs, sample: Sequence[Any]
) -> tuple[Any, tuple[str, ...]]:
    """The model with the task's outputs, and their names.

    Args:
        sample: a tensor for each input; what the model makes of it says which outputs there are.
    """
    from llmc.compiler.frontends.heads import Head
    from llmc.compiler.frontends.sentence_head import SentenceHead

    head = Head(model, inputs.names, (), inputs.fixed)
    if task.name != EMBEDDING:
        found = asked(lambda: head.run(sample)[0], str(summary.root / "config.json"))
        head.outputs = outputs_of(found, task)
        if not head.outputs:
            raise LlmcError(
                f"{type(model).__name__} gives nothing that is a tensor",
                at=str(summary.root / "config.json"),
                found=", ".join(f"{k}: {type(v).__name__}" for k, v in found.items()),
                hint="export the model with torch.export, and compile the .pt2 file",
            )
        return head.eval(), head.outputs
    sentence = summary.sentence or Sentence()
    whole = SentenceHead(head, sentence).eval()
    return whole, whole.outputs


_NO_OUTPUTS = ("loss", "past_key_values", "hidden_states", "attentions")


def outputs_of(result: Mapping[str, Any], task: Task) -> tuple[str, ...]:
    """Names of the outputs that the task has, in its order; all tensors of the result if it has none of them."""
    import torch

    tensors = [k for k, v in result.items() if isinstance(v, torch.Tensor) and not k.endswith(_NO_OUTPUTS)]
    return tuple(n for n in task.outputs if n in tensors) or tuple(tensors)


def asked(run: Callable[[], Any], at: str) -> Any:
    """What the model gives.

    Raises:
        LlmcError: config.json, which is `at`, says what the model cannot be run with.
    """
    import torch

    try:
        with torch.no_grad():
            return run()
    except Exception as error:  # anything that transformers and torch raise
        raise LlmcError(
            f"transformers cannot run the model: {first_line(error)}",
            at=at,
            found=type(error).__name__,
            hint=_NO_PADDING if "no padding token" in str(error) else _OTHERS,
        ) from error


_OTHERS = "is config.json the one saved with these weights?"
_NO_PADDING = "give config.json a pad_token_id: the number of the token that the tokenizer pads with"


def export(head: Any, inputs: Inputs, config: Any, at: str) -> tuple[Any, Inputs]:
    """torch.export with dynamic axes, and the bounds within which what it gives holds; a bound of 1 is static.

    Raises:
        LlmcError: the model does not run as config.json, which is `at`, describes it.
    """
    import torch

    from llmc.compiler.frontends import reference
    from llmc.compiler.frontends.tracing import is_unproved, narrower, trace

    dims = {n: torch.export.Dim(n, min=low, max=high) for n, (low, high) in inputs.bounds.items() if high > 1}
    values = reference.sample(inputs, config, {**reference.SIZES, "batch": 2, "seq": 7})
    sample = tuple(torch.from_numpy(values[name]) for name in inputs.names)
    axes = tuple({i: dims[a] for i, a in enumerate(given.axes) if a in dims} for given in inputs.given)
    asked(lambda: head(*sample), at)  # models make the tables that they keep
    try:
        with torch.no_grad():
            return trace(head, sample, axes), inputs
    except LlmcError as error:
        bounds = narrower(error, inputs.bounds)
        if bounds == inputs.bounds:
            found = asserted(head, inputs, sample, axes) if is_unproved(error) else None
            if found is None:
                raise
            return found
    return export(head, replace(inputs, bounds=bounds), config, at)


def asserted(
    head: Any, inputs: Inputs, sample: Sequence[Any], axes: tuple[Any, ...], joint: Joint = ANY
) -> tuple[Any, Inputs] | None:
    """The program with all that torch cannot prove of its sizes tried, and the bounds within which that is true."""
    import torch

    from llmc.compiler.frontends import guards
    from llmc.compiler.frontends.tracing import trace

    with torch.no_grad():
        program = trace(head, tuple(sample), axes, True, joint)
    pairs = [pair for given, value in zip(inputs.given, sample, strict=True) for pair in _sizes(given, value)]
    held = guards.holding(program, inputs, dict(pairs), joint)
    return None if held is None else (program, replace(inputs, bounds=held))


def _sizes(given: Any, value: Any) -> list[tuple[str, int]]:
    """The size of each dynamic axis of an input."""
    return [(a, n) for a, n in zip(given.axes, value.shape, strict=True) if isinstance(a, str)]
