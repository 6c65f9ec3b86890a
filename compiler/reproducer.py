"""A fault in a file: the graph a pass was given, its weights and the pass, for `llmc opt FILE` to run again.

They are a graph's two files (graph_file.py), the pipeline in a comment of the text.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from llmc.compiler.graph import Graph, Weight
from llmc.compiler.graph_file import PIPELINE, read_graph, write_graph
from llmc.errors import LlmcError


def write_reproducer(graph: Graph, pipeline: str, why: str) -> Path:
    """Write both files to a new temporary folder and return the text's path.

    Raises:
        LlmcError: there is no room for them.
    """
    name = re.sub(r"\W+", "-", pipeline.partition("{")[0].rpartition(":")[2]).strip("-") or "pass"
    try:
        path = Path(tempfile.mkdtemp(prefix="llmc-repro-")) / f"{name}.txt"
        write_graph(
            path, graph, head=[why, f"{PIPELINE}{pipeline}", f"run again: llmc opt {path} --verify-each"]
        )
    except OSError as error:
        raise LlmcError(f"cannot write a reproducer: {error.strerror or error}") from error
    return path


def read_text(path: Path, weights: Mapping[str, Weight]) -> tuple[Graph, str | None]:
    """A graph's text with `weights` and those beside it, and the pipeline it names.

    Raises:
        LlmcError: the text is malformed, or a weight is missing.
    """
    found = read_graph(path, weights)
    return next(iter(found.module.functions.values())), found.pipeline
