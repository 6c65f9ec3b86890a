"""A model folder's graph without its weights: a few layers, traced on tensors that have shapes and no memory.

What the other layers are is the same again, so what llmc lacks shows in these; sizes come from the whole model on
PyTorch's `meta` device. A folder of seven billion parameters takes seconds and none of its weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.compiler.frontends import classes, forward
from llmc.compiler.frontends.folder import Summary, inspect
from llmc.compiler.frontends.imported import MAX_BATCH
from llmc.compiler.frontends.inputs import inputs_of
from llmc.compiler.frontends.program import export, outputs_of
from llmc.compiler.frontends.quiet import quiet
from llmc.compiler.frontends.report import LACKING
from llmc.compiler.frontends.sizes import DEPTHS
from llmc.errors import LlmcError, first_line

if TYPE_CHECKING:
    from llmc.compiler.graph import Graph

FEW = 2  # layers, and as many more as there are kinds of them
_ROW = 1024  # columns, about
_TABLE = 65536 // 4  # values of an embedding table; smaller ones stay as they are


@dataclass(frozen=True)
class Outline:
    """What is known of a model before its weights are read.

    Args:
        summary: of the folder.
        architecture: transformers' class.
        parameters: number of weights.
        products: how many of them are in matrices that quantisation stores in fewer bits.
        layers: how many there are, how many `graph` has.
        graph: of few layers with weights that are all zero; None if the model cannot be imported.
        problem: why it cannot, or why that cannot be told without weights.
    """

    summary: Summary
    architecture: str
    parameters: int
    products: int
    layers: tuple[int, int]
    graph: Graph | None
    problem: LlmcError | None

    @property
    def certain(self) -> bool:
        """Whether a problem is one of the model, and not of tensors without values while it was traced."""
        known = (LACKING, "rotary scaling", "its code holds for one size")
        return self.problem is None or any(words in self.problem.problem for words in known)


def outline(path: str | Path, task: str = "auto", max_seq: int | None = None) -> Outline:
    """Look at a folder, of which config.json may be all that there is.

    Raises:
        LlmcError: config.json is damaged, or transformers has no such model.
    """
    summary = inspect(path, task, ignore_unused=True, need_weights=False)
    root = str(summary.root)
    with quiet():
        config = classes.config_of(root, summary.config)
        kind = classes.class_of(config, summary.architecture, summary.task, f"{root}/config.json")
        whole = _on_meta(kind, config, root)
        shallow = few_layers(config)
        graph, problem = None, None
        try:
            graph = _graph(summary, kind, shallow, max_seq or summary.max_positions)
        except LlmcError as error:
            problem = error
    sizes = {id(p): p for p in whole.parameters()}.values()
    return Outline(
        summary,
        kind.__name__,
        sum(p.numel() for p in sizes),
        _in_products(whole),
        (_depth(config), _depth(shallow)),
        graph,
        problem,
    )


def _on_meta(kind: Any, config: Any, root: str) -> Any:
    """The whole model, without memory."""
    import torch

    try:
        with torch.device("meta"):
            return kind(copy.deepcopy(config))
    except Exception as error:  # anything that transformers and torch raise
        raise LlmcError(
            f"transformers cannot make the model: {first_line(error)}",
            at=f"{root}/config.json",
            found=type(error).__name__,
        ) from error


def _in_products(model: Any) -> int:
    import torch

    kinds = [m for m in model.modules() if isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D"]
    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m.weight.numel() > _TABLE]
    return sum({id(m.weight): m.weight.numel() for m in (*kinds, *tables)}.values())


def few_layers(config: Any) -> Any:
    """The configuration with every kind of layer, but few of each."""
    few = copy.deepcopy(config)
    for part in (few, *(getattr(few, name, None) for name in getattr(few, "sub_configs", {}))):
        if part is None:
            continue
        kinds = getattr(part, "layer_types", None)
        first = list(dict.fromkeys(kinds)) if isinstance(kinds, list) else []
        count = max(FEW, len(first))
        for key in DEPTHS:
            if isinstance(getattr(part, key, None), int):
                setattr(part, key, min(getattr(part, key), count))
        if first:
            part.layer_types = [first[i % len(first)] for i in range(_depth(part))]
    return few


def _depth(config: Any) -> int:
    text = getattr(config, "text_config", None) or config
    return next((n for key in DEPTHS if isinstance(n := getattr(text, key, None), int)), 0)


def _graph(summary: Summary, kind: Any, config: Any, max_seq: int) -> Graph:
    """The graph of a shallow model whose weights are nowhere."""
    import torch
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    from llmc.compiler.frontends import reference
    from llmc.compiler.frontends.heads import ROOT, EndHead, Head
    from llmc.compiler.frontends.implementations import EAGER, set_way
    from llmc.compiler.frontends.torch_export import to_graph

    config._attn_implementation = "sdpa" if getattr(kind, "_supports_sdpa", False) else EAGER
    fake = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    try:
        with fake:
            model = kind(config).eval()
    except Exception as error:
        raise LlmcError(f"a model of few layers cannot be made: {first_line(error)}") from error
    set_way(model, config._attn_implementation)
    forward.in_one_piece(model)
    forward.whole(model)
    inputs = inputs_of(model, summary.root, MAX_BATCH, max_seq)
    values = reference.sample(inputs, model.config)
    tensors = tuple(torch.from_numpy(values[name]) for name in inputs.names)
    head = Head(model, inputs.names, (), inputs.fixed).eval()
    with fake, torch.no_grad():
        try:
            head.outputs = outputs_of(head.run(tensors)[0], summary.task)
        except Exception as error:
            raise LlmcError(f"transformers cannot run the model: {first_line(error)}") from error
        if EndHead.fits(model):
            head = EndHead(model, inputs.names, head.outputs, inputs.fixed).eval()
        forward.one_pass(model, max_seq)
        program, inputs = export(head, inputs, model.config, str(summary.root / "config.json"))
    return to_graph(program, inputs.given, head.outputs, inputs.bounds, ROOT, weight=nowhere)


def nowhere(tensor: Any) -> Any:
    """An array of a tensor's shape and dtype that takes no memory: one zero, read everywhere."""
    import torch

    kind = torch.empty(0, dtype=tensor.dtype).numpy().dtype
    return np.broadcast_to(np.zeros((), kind), tuple(tensor.shape))


def weight_bytes(found: Outline, group: int | None = None, zero_points: bool = False) -> Mapping[str, int]:
    """What weights.bin takes about, by `--quant`: matrices of products and tables in fewer bits, all else in f32.

    Args:
        group, zero_points: of w8, w4 and w4a8, as `llmc.compile` has them.
    """
    rest = 4 * (found.parameters - found.products)
    eight, four = (
        found.products * bits // 8
        + found.products * (16 + zero_points * bits) // 8 // (_ROW if group == 0 else group or own)
        + rest
        for bits, own in ((8, 128), (4, 32))  # columns that a half-precision scale is for
    )
    return {
        "none": 4 * found.parameters,
        "bf16": 2 * found.products + rest,
        "bf16a16": 2 * found.products + rest,
        "fp16": 2 * found.products + rest,
        "int8": found.products + math.ceil(found.products / 256) + rest,
        "int8-static": found.products + math.ceil(found.products / 256) + rest,
        "w8": eight,
        "w4": four,
        "w4a8": four,
    }
