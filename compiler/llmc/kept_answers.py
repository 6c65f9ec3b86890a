"""What the interpreter says of a graph, kept for the next compile of it.

The self-test of a large model takes most of a second compile: half a dozen calls of the model before the passes, after
lossy ones and after all, each in float64. They are kept by the graph's text, which names weights by their digests, the
inputs, llmc's sources and the versions of what computes them, so nothing ever needs to be invalidated. What is compared
with them, the finished code, is made and run each time. While an extension is loaded, nothing is kept.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence

import numpy as np

from llmc.compiler import extensions
from llmc.compiler.graph import Graph
from llmc.compiler.samples import Arrays, Session, play
from llmc.compiler.text import print_graph, weights_of
from llmc.kept_imports import sources, versions
from llmc.targets.store import Store, folder, key

LEAST = 1 << 24  # numbers in weights: what a smaller graph says is found sooner than read


def plays(graph: Graph, sessions: Sequence[Session]) -> list[Arrays]:
    """`play` of each session."""
    place = folder("answers")
    weights = weights_of(graph)
    size = sum(weight.array.size for weight in weights.values())
    if place is None or size < LEAST or extensions.loaded():
        return [play(graph, session) for session in sessions]
    store, text = Store(place), "\n".join((print_graph(graph), *weights))
    made = [_kept(store, key(text, _said(s), sources(), *versions()), graph, s) for s in sessions]
    store.trim()
    return made


def _said(session: Session) -> str:
    """A digest of its inputs."""
    made = hashlib.blake2b()
    for call in (session.states, *session.calls):
        for name, value in sorted(call.items()):
            made.update(f"{name} {value.dtype} {value.shape}\0".encode())
            made.update(np.ascontiguousarray(value).tobytes())
        made.update(b"\1")
    return made.hexdigest()


def _kept(store: Store, name: str, graph: Graph, session: Session) -> Arrays:
    content = store.get(name)
    if content is not None:
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as stored:
                return {part: stored[part] for part in stored.files}
        except (ValueError, KeyError, OSError, zipfile.BadZipFile):
            pass  # not what was written: made again
    found = play(graph, session)
    written = io.BytesIO()
    np.savez(written, allow_pickle=False, **found)
    store.put(name, written.getvalue())
    return found
