"""Small random encoders exported by both torch.onnx exporters, against PyTorch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from exported import to_onnx

from llmc.compiler.frontends.dispatch import load
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.verify import verify
from llmc.passes import LEVELS, PASSES

O3 = Pipeline.parse(LEVELS[3], PASSES)
SHAPES = [(1, 1), (3, 17), (2, 64)]
FAMILIES = ("bert", "distilbert", "roberta", "electra", "albert", "mpnet", "deberta-v2")
FAST = {("bert", "dynamo"), ("bert", "script"), ("roberta", "script")}
CASES = [
    pytest.param(f, e, marks=[] if (f, e) in FAST else [pytest.mark.slow])
    for f in FAMILIES
    for e in ("dynamo", "script")
]


@pytest.mark.parametrize(("family", "exporter"), CASES)
def test_family(family: str, exporter: str, make_model: Any, difference: Any, tmp_path: Path) -> None:
    model = make_model(family, "Model")

    imported = load(to_onnx(model, tmp_path / "m.onnx", exporter))

    verify(imported.graph)
    assert imported.task == "generic"
    assert imported.graph.dims["seq"] == (1, 64) or family in ("mpnet", "deberta-v2")
    assert difference(model, imported.graph, SHAPES) < 1e-5
    after, _ = O3.run(imported.graph)
    assert difference(model, after, SHAPES) < 2e-5
    ops = Counter(n.op for n in after.nodes)
    assert (ops["mha"], ops["layer_norm"] + ops["embed_norm"]) == (2, 5)
