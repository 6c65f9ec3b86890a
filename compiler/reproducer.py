"""A fault in a file: the graph a pass was given, its weights and the pass, for `llmc opt FILE` to run again.

`NAME.txt` is a graph's text with the pipeline in a comment; `NAME.npz` beside it holds the weights that the
text names by digest.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llmc.compiler.graph import Graph, Weight
from llmc.compiler.parse import parse_graph
from llmc.compiler.text import INLINE, print_graph, weights_of
from llmc.errors import LlmcError

_PIPELINE = "# pipeline: "


def write_reproducer(graph: Graph, pipeline: str, why: str) -> Path:
    """Write both files to a new temporary folder and return the text's path.

    Raises:
        LlmcError: there is no room for them.
    """
    name = re.sub(r"\W+", "-", pipeline.partition("{")[0].rpartition(":")[2]).strip("-") or "pass"
    try:
        path = Path(tempfile.mkdtemp(prefix="llmc-repro-")) / f"{name}.txt"
        head = [f"# {why}", f"{_PIPELINE}{pipeline}", f"# run again: llmc opt {path} --verify-each"]
        path.write_text("\n".join([*(" ".join(line.split()) for line in head), print_graph(graph)]))
        large = {d: w.array for d, w in weights_of(graph).items() if _is_named(w)}
        np.savez(path.with_suffix(".npz"), allow_pickle=False, **large)
    except OSError as error:
        raise LlmcError(f"cannot write a reproducer: {error.strerror or error}") from error
    return path


def _is_named(weight: Weight) -> bool:
    """Whether the text may leave the values out: it does for large ones and unusual NaNs."""
    return weight.array.size > INLINE or weight.array.dtype.kind == "f"


def read_text(path: Path, weights: Mapping[str, Weight]) -> tuple[Graph, str | None]:
    """A graph's text with `weights` and those beside it, and the pipeline it names.

    Raises:
        LlmcError: the text is malformed, or a weight is missing.
    """
    text = path.read_text()
    lines = (line for line in text.splitlines() if line.startswith(_PIPELINE))
    pipeline = next((line.removeprefix(_PIPELINE) for line in lines), None)
    return parse_graph(text, {**weights, **_weights(path.with_suffix(".npz"))}), pipeline


def _weights(path: Path) -> dict[str, Weight]:
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = [Weight(arrays[name]) for name in arrays.files]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise LlmcError(f"not weights that can be read: {error}", at=str(path)) from error
    return {w.digest: w for w in found}
