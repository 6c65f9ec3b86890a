"""What tests of generated texts share: a prompt, what whole passes give, manifests that say something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from llmc import LlmcError
from llmc.runtime.manifest import seal

PROMPT = [5, 6, 7, 8]


def changed(artifact, folder, **entries):
    """A copy of an artifact whose manifest says something else of generation."""
    copied = Path(shutil.copytree(artifact, folder / "changed.llmc"))
    fields = json.loads((copied / "manifest.json").read_text())
    fields["generation"] |= entries
    (copied / "manifest.json").write_text(json.dumps(seal(fields)))
    return copied


def greedy(model, ids, count):
    """By whole passes, a session for each token."""
    made = list(ids)
    for _ in range(count):
        with model.session() as session:
            for begin in range(0, len(made), 16):
                part = made[begin : begin + 16]
                keep = [len(part) - 1]
                logits = session.run({"input_ids": [part], "logits_to_keep": keep})["logits"]
        made.append(int(np.argmax(logits[0, -1])))
        if made[-1] == 0:
            break
    return made[len(ids) :]


def refused(message, function, *arguments, **named):
    with pytest.raises(LlmcError) as caught:
        function(*arguments, **named)
    assert message in str(caught.value), str(caught.value)
