"""What `transformers.exporters` changes in models while they are traced, without its cost for models that need none.

Its exporter replaces code that torch.export cannot follow (loops over chunks, `histc`, caches' counters) and clears
tensors that modules keep between calls. Entering all its patches imports some hundred modules of other models, which
takes seconds; only those of modules that are there already can matter.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def patched(module: Any) -> Iterator[None]:
    """Patches of what is loaded, while a module is traced; nothing for models that are not transformers'."""
    if not any(type(m).__module__.startswith("transformers.") for m in module.modules()):
        yield
        return
    from transformers.exporters import exporter_dynamo as dynamo
    from transformers.exporters import utils

    loaded = [patch for patch in utils._PATCHES.get("dynamo", ()) if _is_loaded(patch[0])]
    with ExitStack() as stack:
        for path, attribute, change in loaded:
            owner = utils.import_dotted_path(path, missing_ok=True)
            if owner is not None:
                stack.enter_context(utils.patch_attribute(owner, attribute, change))
        for owner, attribute, own in _our_own():
            stack.enter_context(utils.patch_attribute(owner, attribute, lambda _, own=own: own))
        stack.enter_context(dynamo.reset_model_state(module))
        yield


def _our_own() -> Iterator[tuple[Any, str, Any]]:
    """What torch.export would unroll or read as something else: owner, name, and what stands there meanwhile.

    Positions that the model has made itself never belong to several texts packed into one row.
    """
    from llmc.compiler.frontends.scans import selective_scan

    loaded = [
        m
        for name, m in sys.modules.items()
        if name.startswith("transformers.models.") and ".modeling_" in name
    ]
    yield from (
        (m, "mamba_selective_scan", selective_scan) for m in loaded if hasattr(m, "mamba_selective_scan")
    )
    masking = sys.modules.get("transformers.masking_utils")
    if masking is not None and hasattr(masking, "find_packed_sequence_indices"):
        yield masking, "find_packed_sequence_indices", lambda position_ids: None


def _is_loaded(path: str) -> bool:
    """Whether the module in which a dotted path lies has been imported."""
    parts = path.split(".")
    ends = (".".join(parts[: n + 1]) for n in range(len(parts)))
    longest = max((end for end in ends if end in sys.modules), default="", key=len)
    below = path[len(longest) :].lstrip(".").split(".")[0]
    return bool(longest) and (not below or below[:1].isupper() or hasattr(sys.modules[longest], below))
