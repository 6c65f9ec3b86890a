"""Which causal model types of the installed transformers generate token by token: each tried, small and random.

    python bench/generation.py                     tries what is not in the cache yet, and writes docs/causal.md
    python bench/generation.py --only llama,mamba  these, again
    python bench/generation.py --again             those that do not generate, again
    python bench/generation.py --write             writes docs/causal.md from the cache alone

Of each type the causal class is made, saved and imported. Where it becomes `step`, a prompt, 40 tokens one by one and
two calls of several tokens are run by the interpreter, and every logit is compared with those of one pass over the
whole text, and with PyTorch's. Each runs in a process of its own with a limit of time and of memory.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import generation_table
import support_models
from apart import apart, load_libraries

TOLERANCE = 1e-4  # of the largest logit
SECONDS, GIBIBYTES = 400, 10
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llmc" / "generation.jsonl"
CALLS = (5, *(1,) * 40, 3, 4)  # tokens of each call


def main() -> None:
    options = _options()
    rows = _read(options.cache)
    if not options.write:
        _try_all(options, rows)
    Path(options.output).write_text(generation_table.page(rows, causal_types()), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="model types, with commas between")
    parser.add_argument("--again", action="store_true", help="those that do not generate, too")
    parser.add_argument("--write", action="store_true", help="write the page from the cache")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--output", default="docs/causal.md")
    return parser.parse_args()


def _read(cache: Path) -> dict[str, dict[str, Any]]:
    """Model type -> the last that was found."""
    lines = cache.read_text(encoding="utf-8").splitlines() if cache.exists() else []
    return {row["type"]: row for row in map(json.loads, lines)}


def causal_types() -> dict[str, str]:
    """Model type -> its causal class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    return {kind: name if isinstance(name, str) else name[0] for kind, name in sorted(NAMES.items())}


def _try_all(options: argparse.Namespace, rows: dict[str, dict[str, Any]]) -> None:
    load_libraries()
    options.cache.parent.mkdir(parents=True, exist_ok=True)
    types = causal_types()
    chosen = options.only.split(",") if options.only else list(types)
    due = [n for n in chosen if options.only or n not in rows or (options.again and not _generates(rows[n]))]
    for number, name in enumerate(due, 1):
        rows[name] = apart(name, functools.partial(_try, name, types[name]), SECONDS, GIBIBYTES)
        rows[name] |= {"class": types[name], **_when()}
        with options.cache.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[name]) + "\n")
        print(f"{number}/{len(due)} {generation_table.line(rows[name])}", flush=True)


def _generates(row: dict[str, Any]) -> bool:
    return bool(row["state"] == "step")


def _when() -> dict[str, str]:
    import transformers

    return {"date": datetime.date.today().isoformat(), "transformers": transformers.__version__}


def _try(model_type: str, name: str) -> dict[str, Any]:
    """What becomes of one model type: of the smallest configuration with which it can be made and run."""
    row: dict[str, Any] = {}
    for level in range(len(support_models.LEVELS)):
        row = {"type": model_type, "level": level, **_try_level(model_type, name, level)}
        if row["state"] != "unmade":
            break
    return row


def _try_level(model_type: str, name: str, level: int) -> dict[str, Any]:
    import numpy as np
    import torch

    try:
        model = support_models.model_of(model_type, level, name)
        most = min(model.config.get_text_config().vocab_size, 100)
        ids = np.random.default_rng(0).integers(4, most, (1, sum(CALLS)))
        with torch.no_grad():
            wanted = model(input_ids=torch.from_numpy(ids), use_cache=False).logits.numpy()
    except Exception as error:  # whatever a configuration made by rule runs into
        return {"state": "unmade", "reason": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.save_pretrained(folder)
        except Exception as error:
            return {"state": "unmade", "reason": f"cannot be saved: {error}".splitlines()[0][:200]}
        return _imported(Path(folder), ids, wanted)


def _imported(folder: Path, ids: Any, wanted: Any) -> dict[str, Any]:
    from llmc.compiler.frontends import huggingface, tasks
    from llmc.errors import LlmcError, LlmcWarning

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = huggingface.load(folder, tasks.GENERATION)
        except LlmcError as error:
            return {"state": "refused", "reason": error.problem[:300], "found": str(error.found or "")[:600]}
    if found.task != tasks.GENERATION:
        words = [str(w.message) for w in told if issubclass(w.category, LlmcWarning)]
        lacks = [word.partition(_LACKS)[2] for word in words if _LACKS in word]
        return {"state": "whole", "reason": lacks[0][:300] if lacks else ""}
    return _compared(found.functions["step"], ids, wanted)


_LACKS = "cannot generate token by token: "


def _compared(graph: Any, ids: Any, wanted: Any) -> dict[str, Any]:
    """How far logits, call by call, are off those of one pass, and of PyTorch's."""
    import numpy as np

    steps, whole = _played(graph, ids, CALLS), _played(graph, ids, (sum(CALLS),))
    away = [float(np.abs(steps - other).max() / np.abs(wanted).max()) for other in (whole, wanted)]
    row = {"one_pass": away[0], "torch": away[1], "states": _states(graph)}
    return {"state": "step" if max(away) <= TOLERANCE else "wrong", **row}


def _played(graph: Any, ids: Any, calls: tuple[int, ...]) -> Any:
    """All logits of a text [1, n], in calls of so many tokens."""
    import numpy as np

    from llmc.compiler.interpret import step

    states: Any = {}
    found, at = [], 0
    for tokens in calls:
        given = {"input_ids": ids[:, at : at + tokens], "logits_to_keep": np.arange(tokens)}
        outputs, states = step(graph, given, states)
        found.append(outputs["logits"])
        at += tokens
    return np.concatenate(found, 1)


def _states(graph: Any) -> dict[str, int]:
    """How many states grow, and how many keep their shape."""
    grow = sum(node.attributes["grows"] is not None for node in graph.states)
    return {"grow": grow, "keep": len(graph.states) - grow}


if __name__ == "__main__":
    main()
