"""What a user of llmc might write: .ci/wheel shows it to mypy and pyright, which must know every type in it."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import numpy as np

import llmc
from llmc.compiler.graph import Node
from llmc.compiler.ops import make
from llmc.compiler.rewrite import RewritePass
from llmc.passes import PASSES
from llmc.runtime import BenchmarkReport


def double(node: Node) -> Node | None:
    """add(x, x) -> mul(x, 2)"""
    if node.op == "add" and node.inputs[0] is node.inputs[1]:
        return make("mul", (node.inputs[0], node.inputs[0]), node.source)
    return None


class Double(RewritePass):
    rules = (double,)


def names() -> list[str]:
    return [kind.name for kind in PASSES.values()]


def measure(path: Path) -> BenchmarkReport:
    try:
        model = llmc.load(path, threads=2)
    except llmc.LlmcError as error:
        raise SystemExit(error.hint) from error
    assert_type(model, llmc.Model)
    with model.session() as session:
        assert_type(session, llmc.Session)
        session.run({"ids": np.zeros((1, 4), np.int64)})
    return model.benchmark(batch=1)


def build(folder: Path) -> Path:
    return llmc.compile(folder, "m.llmc", quant="int8").path
