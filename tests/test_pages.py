"""What notebooks show: escaped, self-contained, cut where it is long, plain without jinja2."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stateful_graphs import encoder_decoder

from llmc.compiler.graph import Graph, Source
from llmc.compiler.ops import constant, input_, make
from llmc.compiler.pipeline import Pipeline
from llmc.html import ROWS
from llmc.passes import PASSES
from llmc.report import CompileReport
from llmc.runtime.reports import BenchmarkReport, CompareReport, Latency, Step

EVIL = "<script>alert('&')</script>"


def graph(length: int = 3) -> Graph:
    node = x = input_("x", "f32", ("n", 2))
    for _ in range(length):
        node = make("tanh", (node,), Source(EVIL))
    node = make("add", (node, constant(np.ones((9, 2), np.float32)[:1], EVIL)))
    return Graph((x,), {EVIL: node}, {"n": (1, 8)})


def reports() -> dict[str, Any]:
    latency = Latency(9, *[0.01] * 9)
    bench = BenchmarkReport(
        "m.llmc", EVIL, "", "forward", "avx2", 1, {"batch": 1}, 3, latency, 9.0, 0.1, 1, 1.0, 1.0, 1.0, 1.0,
        (Step("linear", EVIL, 0.1, 1.0, 1.0),),
    )  # fmt: skip
    return {
        "graph": graph(),
        "module": encoder_decoder(),
        "passes": Pipeline.parse("cse", PASSES).run(graph())[1],
        "compile": CompileReport(Path(EVIL), {EVIL: 1.0}, {EVIL: 3}, EVIL, EVIL, 1, 1, 1, 0),
        "bench": bench,
        "compare": CompareReport((EVIL, "b"), latency, latency, 1.0, 0.9, 1.1),
    }


@pytest.mark.parametrize("kind", reports())
@pytest.mark.parametrize("jinja", [True, False])
def test_pages(kind: str, jinja: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not jinja:
        real = builtins.__import__

        def absent(name: str, *rest: Any) -> Any:
            if name == "jinja2":
                raise ImportError(name)
            return real(name, *rest)

        monkeypatch.setattr(builtins, "__import__", absent)
    page = reports()[kind]._repr_html_()
    assert "<script" not in page
    assert "http" not in page
    assert ("<table" if jinja else "<pre>") in page


def test_a_large_graph_is_cut_with_a_word() -> None:
    page = graph(ROWS + 10)._repr_html_()
    assert "... and 13 rows more" in page
    assert page.count("<tr>") == ROWS + 1
