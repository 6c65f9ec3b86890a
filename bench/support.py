"""Which model types of the installed transformers llmc takes: each tried, with a small random configuration.

    python bench/support.py                          tries what is not in the cache yet, and writes docs/support.md
    python bench/support.py --only bert,gpt2         these, again
    python bench/support.py --compile 50             also compiles for this machine, until 50 are right
    python bench/support.py --write                  writes docs/support.md from the cache alone
    python bench/support.py --tasks --compile 1000   every class of the families in `FAMILIES`: docs/support-tasks.md

Of each type the main task's class (`support_models.MAIN`) is made, saved, imported, and compared with PyTorch by the
interpreter at three shapes, one with padded rows; then its artifact is compared in the same way. Each runs in a process
of its own with a limit of time and of memory. Results are kept in the cache, a line for each type.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import support_models
import support_seeing
import support_table
from apart import apart, load_libraries

TOLERANCE = 1e-4  # of an output's largest value
SECONDS, GIBIBYTES = 240, 10
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llmc" / "support.jsonl"


def main() -> None:
    options = _options()
    if options.tasks:
        options.cache = options.cache or CACHE.with_name("support-tasks.jsonl")
        options.output = options.output or "docs/support-tasks.md"
    options.cache, options.output = options.cache or CACHE, options.output or "docs/support.md"
    rows = _read(options.cache)
    if not options.write:
        _try_all(options, rows)
    Path(options.output).write_text(support_table.page(rows, options.tasks), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="model types, with commas between")
    parser.add_argument("--compile", type=int, default=0, metavar="N", help="compile until N are right")
    parser.add_argument("--write", action="store_true", help="write the page from the cache")
    parser.add_argument("--tasks", action="store_true", help="every class of the families")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--output")
    parser.add_argument("--again", action="store_true", help="those that failed, too")
    return parser.parse_args()


def _read(cache: Path) -> dict[str, dict[str, Any]]:
    """Model type -> the last that was found."""
    if not cache.exists():
        return {}
    lines = cache.read_text(encoding="utf-8").splitlines()
    return {row["type"]: row for row in map(json.loads, lines)}


def _try_all(options: argparse.Namespace, rows: dict[str, dict[str, Any]]) -> None:
    load_libraries()
    options.cache.parent.mkdir(parents=True, exist_ok=True)
    chosen = options.only.split(",") if options.only else support_models.model_types()
    if options.tasks:
        chosen = support_models.tasks(options.only.split(",") if options.only else support_models.FAMILIES)
    if not options.only:
        chosen = sorted(chosen, key=lambda name: name in rows)  # what nothing is known of comes first
    for number, name in enumerate(chosen, 1):
        compiled = sum(row.get("compiled") is not None for row in rows.values())
        wanted = compiled < options.compile
        known = rows.get(name)
        if known and (options.tasks or not options.only) and not _is_due(known, wanted, options.again):
            continue
        rows[name] = apart(name, functools.partial(_try, name, wanted), SECONDS, GIBIBYTES)
        with options.cache.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[name]) + "\n")
        print(f"{number}/{len(chosen)} {support_table.line(rows[name])}", flush=True)


def _is_due(row: dict[str, Any], compiles: bool, again: bool) -> bool:
    right = row["state"] == "right"
    return (right and compiles and row.get("compiled") is None) or (again and not right)


def _try(name: str, compiles: bool) -> dict[str, Any]:
    """What becomes of a type, or `type/class`: of the smallest configuration with which it can be made and run."""
    kind, _, own = name.partition("/")
    last: dict[str, Any] = {}
    for level in range(len(support_models.LEVELS)):
        row = {"level": level} | _try_level(kind, own or None, level, compiles)
        if row["state"] != "unmade" or last.get("state", "unmade") == "unmade":
            last = row  # why one that was made does not run says more than that a larger one is too large
        made = row["state"] != "unmade" and not row.get("reason", "").startswith(_NOT_RUN)
        if made:
            break
    return {"type": name, "class": own or support_models.main_class(kind), **last}


_NOT_RUN = ("transformers cannot run the model", "transformers cannot read config.json")


def _try_level(name: str, own: str | None, level: int, compiles: bool) -> dict[str, Any]:
    try:
        model = support_models.model_of(name, level, own)
    except Exception as error:  # whatever a configuration made by rule runs into
        return {"state": "unmade", "reason": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.save_pretrained(folder)
        except Exception as error:
            return {"state": "unmade", "reason": f"cannot be saved: {error}".splitlines()[0][:200]}
        return _imported(Path(folder), compiles)


def _imported(folder: Path, compiles: bool) -> dict[str, Any]:
    from llmc.compiler.frontends import huggingface, torch_model
    from llmc.compiler.frontends.vision import SEE
    from llmc.errors import LlmcError

    try:
        task = _task(folder)
        found = huggingface.load(folder, task, max_batch=8)
        if SEE in found.functions:
            return _seeing(folder, found, compiles)
        reference = torch_model.load_torch(folder, task)
        row: dict[str, Any] = {"task": found.task, "worst": _compared(found.graph, reference, None)}
    except LlmcError as error:
        return {"state": "refused", "reason": error.problem[:300], "found": str(error.found or "")[:600]}
    row["state"] = "right" if row["worst"] <= TOLERANCE else "wrong"
    if compiles and row["state"] == "right":
        row |= _compiled(folder, found.graph, reference)
    return row


def _seeing(folder: Path, found: Any, compiles: bool) -> dict[str, Any]:
    """Of a model of images and text."""
    import llmc
    from llmc.compiler.module import Module

    worst = support_seeing.compared(folder, support_seeing.interpreted(found.functions))
    row = {"task": found.task, "worst": worst, "state": "right" if worst <= TOLERANCE else "wrong"}
    if compiles and row["state"] == "right":
        llmc.compile_graph(Module(found.functions), folder / "artifact", target="x86-avx2", padding="zero")
        with llmc.load(folder / "artifact") as model:
            row["compiled"] = support_seeing.compared(folder, support_seeing.run(model))
    return row


def _task(folder: Path) -> str:
    """What is asked for: whole texts of models that generate, which need no states."""
    from llmc.compiler.frontends import tasks

    config = json.loads((folder / "config.json").read_text())
    known = tasks.tasks_of(tasks.architecture_of(config))
    writes = bool(config.get("is_encoder_decoder")) and tasks.TASKS[tasks.SCORING] in known
    return tasks.SCORING if writes or tasks.TASKS[tasks.GENERATION] in known else "auto"


def _compiled(folder: Path, graph: Any, reference: Any) -> dict[str, Any]:
    import llmc
    from llmc.errors import LlmcError

    try:  # of the imported graph, for one instruction set; all else is as by default
        llmc.compile_graph(graph, folder / "artifact", target="x86-avx2", padding="zero")
        with llmc.load(folder / "artifact") as model:
            worst = _compared(graph, reference, model)
    except LlmcError as error:
        return {"compile_reason": error.problem[:300]}
    if worst > TOLERANCE:
        return {"state": "wrong", "reason": f"compiled it is off by {worst:.2g}"}
    return {"compiled": worst}


def _compared(graph: Any, reference: Any, artifact: Any) -> float:
    """The largest difference to PyTorch at all shapes, of the interpreter or of an artifact."""
    from llmc.compiler.frontends.reference import farthest
    from llmc.compiler.interpret import run

    worst = 0.0
    for number, sizes in enumerate(support_models.shapes()):
        values = reference.sample(sizes, number)
        found = run(graph, values) if artifact is None else artifact.run(values)
        worst = max(worst, farthest(found, reference.values(values), values)[1])
    return worst


if __name__ == "__main__":
    main()
