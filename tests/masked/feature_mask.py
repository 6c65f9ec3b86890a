"""Act as a lesser processor: `pytest --mask-features avx512,amx`.

Only the two places that ask what the processor can do are changed, and only in tests: `host_flags` of
llmc.targets.host, and `llmc_cpu_features` of the C runtime wherever a test compiles it. Python processes that tests
start do the same, by the `sitecustomize` beside this file.
"""

from __future__ import annotations

import importlib.abc
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "LLMC_TESTS_MASK"  # a Mask as JSON, for processes that tests start
HERE = Path(__file__).parent
_SOURCES = ("MODULE_SOURCES", "RUN_SOURCES")
# cpu.c defines _GNU_SOURCE first of all; a static declaration before it keeps its function out of every symbol table.
_WRAPPER = """\
#define _GNU_SOURCE
#include "{folder}/model.h"
static unsigned features_of_the_processor(void);
#define llmc_cpu_features features_of_the_processor
#include "{folder}/cpu.c"
#undef llmc_cpu_features
unsigned llmc_cpu_features(void) {{
    return features_of_the_processor() & ~{bits:#x}u;
}}
"""


@dataclass(frozen=True)
class Mask:
    """What is hidden.

    Args:
        flags: Linux's names of features.
        cpu: a C file to compile in the place of runtime/c/cpu.c.
    """

    flags: tuple[str, ...]
    cpu: str


def mask(names: Sequence[str], folder: Path) -> Mask:
    """Hide every feature whose name in Linux starts with one of `names`; the C file is written to `folder`.

    Raises:
        ValueError: llmc asks for no feature of that name.
    """
    from llmc.runtime.sources import FOLDER
    from llmc.targets import host, store

    known = {flag for flags in host.FLAGS.values() for flag in flags}
    unknown = [name for name in names if not any(flag.startswith(name) for flag in known)]
    if unknown or not all(names):
        raise ValueError(f"no such feature: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    told = known | host.host_flags()  # those that llmc asks for, and what newer processors have beside them
    around = installed()  # what is hidden here is not told, and the processor has it all the same
    flags = {flag for flag in told if flag.startswith(tuple(names))} | set(around.flags if around else ())
    bits = sum(bit for bit, needed in host.FLAGS.items() if needed & flags)
    path = folder / "cpu.c"
    text = _WRAPPER.format(folder=FOLDER, bits=bits)
    store.write(path, text.encode())  # whole at once: each worker of xdist writes the same
    return Mask(tuple(sorted(flags)), str(path))


def install(mask: Mask) -> None:
    """Hide it in this process and those it starts."""
    os.environ[VARIABLE] = json.dumps(asdict(mask))
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(HERE) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), *paths)))
    changes = {"llmc.targets.host": _hide_flags, "llmc.runtime.sources": _hide_bits}
    finder = _Afterwards({name: lambda m, change=change: change(m, mask) for name, change in changes.items()})
    for name in finder.changes.keys() & sys.modules.keys():
        finder.changes[name](sys.modules[name])
    sys.meta_path.insert(0, finder)


def installed() -> Mask | None:
    """What the process that started this one hides."""
    text = os.environ.get(VARIABLE)
    return Mask(**json.loads(text)) if text else None


def _hide_flags(host: Any, mask: Mask) -> None:
    found = host.host_flags
    host.host_flags = lambda: found() - set(mask.flags)


def _hide_bits(sources: Any, mask: Mask) -> None:
    for name in _SOURCES:
        files = (Path(mask.cpu) if file.name == "cpu.c" else file for file in getattr(sources, name))
        setattr(sources, name, tuple(files))


@dataclass(frozen=True)
class _Afterwards(importlib.abc.MetaPathFinder):
    """Changes modules when they have been imported: importing them early would slow every process down."""

    changes: Mapping[str, Callable[[ModuleType], None]]

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self.changes:
            return None
        others = (finder for finder in sys.meta_path if not isinstance(finder, _Afterwards))
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def changed(module: ModuleType) -> None:
                execute(module)
                self.changes[name](module)

            spec.loader.exec_module = changed  # type: ignore[method-assign]
        return spec
