"""A folder's model as the import builds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llmc.compiler.frontends import plain_folder
from llmc.compiler.frontends.folder import inspect
from llmc.compiler.frontends.pretrained import build
from llmc.compiler.frontends.quiet import quiet


def built(folder: Path, task: str = "auto") -> Any:
    """The model that would be exported."""
    with plain_folder.plain(plain_folder.origin(folder)) as found, quiet():
        return build(inspect(found.path, task))[0]


def want_same(folder: Path, model: Any) -> None:
    found = built(folder)
    assert type(found) is type(model)
    wanted, states = model.state_dict(), found.state_dict()
    assert set(states) == set(wanted)
    for name, value in states.items():
        assert value.dtype in (torch.float32, torch.int64)
        assert torch.equal(value, wanted[name].to(value.dtype)), name
