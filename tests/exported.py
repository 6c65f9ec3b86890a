"""Models exported by torch, for tests of the file frontends."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import kept_graphs
import torch

NAMES = ("input_ids", "attention_mask", "token_type_ids")


class Outputs(torch.nn.Module):
    """A transformers model that takes its inputs by position and returns one output."""

    def __init__(self, model: Any, output: str) -> None:
        super().__init__()
        self.model, self.output = model, output
        accepted = inspect.signature(model.forward).parameters
        segments = getattr(model.config, "type_vocab_size", 0) > 1
        self.names = [n for n in NAMES if n in accepted and (n != "token_type_ids" or segments)]

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        given = dict(zip(self.names, values, strict=True))
        result: torch.Tensor = self.model(**given, return_dict=True)[self.output]
        return result


@contextmanager
def quiet() -> Iterator[None]:
    """The exporters print and warn a lot."""
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(StringIO()),
            redirect_stderr(StringIO()),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def sample(count: int) -> tuple[torch.Tensor, ...]:
    """Two texts of seven tokens."""
    ids = torch.arange(2, 16).reshape(2, 7)
    return (ids, torch.ones_like(ids), torch.zeros_like(ids))[:count]


def axes(module: Any, max_seq: int) -> tuple[Any, ...]:
    """torch.export's dynamic axes, one entry for each input."""
    dims = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("sequence", max=max_seq)}
    return tuple(dims for _ in module.names)


def to_onnx(
    model: Any,
    path: Path,
    exporter: str = "dynamo",
    opset: int | None = None,
    output: str = "last_hidden_state",
    max_seq: int = 64,
    **options: Any,
) -> Path:
    """Export with the dynamo or the TorchScript exporter; both with dynamic batch and sequence. Kept between runs."""
    given = (exporter, opset, output, max_seq)
    write = partial(_write_onnx, model, *given, options)
    return kept_graphs.exported(model, path, f"onnx {given} {sorted(options.items())}", write)


def _write_onnx(
    model: Any,
    exporter: str,
    opset: int | None,
    output: str,
    max_seq: int,
    options: dict[str, Any],
    path: Path,
) -> None:
    module = Outputs(model, output).eval()
    if exporter == "dynamo":
        options = options | {"dynamic_shapes": (axes(module, max_seq),), "dynamo": True}
    else:
        named: Sequence[str] = (*module.names, output)
        dynamic = {n: {0: "batch_size", 1: "sequence_length"} for n in named if n != "logits"}
        options = options | {"dynamic_axes": {**dynamic, "logits": {0: "batch_size"}}, "dynamo": False}
        if output != "logits":
            del options["dynamic_axes"]["logits"]
    with quiet():
        torch.onnx.export(
            module,
            sample(len(module.names)),
            str(path),
            input_names=module.names,
            output_names=[output],
            opset_version=opset,
            **options,
        )


def to_pt2(model: Any, path: Path, max_seq: int = 64) -> Path:
    """`torch.export.save` of the model itself, inputs by name. Kept between runs."""
    return kept_graphs.exported(model, path, f"pt2 {max_seq}", partial(_write_pt2, model, max_seq))


def _write_pt2(model: Any, max_seq: int, path: Path) -> None:
    module = Outputs(model, "")
    given = dict(zip(module.names, sample(len(module.names)), strict=True))
    shapes = dict(zip(module.names, axes(module, max_seq), strict=True))
    with quiet():
        program = torch.export.export(model, (), given, dynamic_shapes=shapes)
        torch.export.save(program, path)
