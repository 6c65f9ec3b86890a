"""Machine code that an earlier compile made, found without TVM, whose import takes seconds.

An object file is kept by what its kernel's TIR says (build.py), and TIR is made by TVM. What a kernel is made from is
known before: its family and key, the instruction set, llmc's own sources and TVM's version. Names of these are kept
beside, each with the name of the object. Kernels of others, whose sources are not llmc's, are made anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llmc import __version__, compiler
from llmc.compiler import extensions
from llmc.compiler.calls import Call
from llmc.targets import store
from llmc.targets.cpu.peak import emit_peak
from llmc.targets.target import Cpu, Target

Emit = Callable[[str, Cpu], Any]
_TVM = ("apache-tvm", "apache-tvm-ffi")


def wanted(calls: Sequence[Call], target: Target) -> Iterator[tuple[str, str, Emit, Cpu]]:
    """Symbol, what is kept of it by another name, emitter and instruction set of each object file; "" for what
    must be asked for by its TIR."""
    emitters: dict[tuple[str, str], tuple[str, Emit]] = {
        (c.kernel.family, c.kernel.symbol): (_said(c), c.kernel.emit) for c in calls
    }
    emitters["fma_loop", "fma_loop"] = "", emit_peak
    for (family, stem), (said, emit) in emitters.items():
        for cpu in dict.fromkeys(cpu.code_for(family) for cpu in target.cpus):
            symbol = f"{stem}_{cpu.name}"
            known = _is_own(emit) and not extensions.loaded()
            name = store.key("known", symbol, said, target.triple, repr(cpu), _sources()) if known else ""
            yield symbol, name, emit, cpu


def objects(calls: Sequence[Call], target: Target, kept: store.Store) -> dict[str, bytes] | None:
    """Symbol -> object file, as `build.compile_calls` gives them; None if one is not known."""
    found: dict[str, bytes] = {}
    before = kept.found
    for symbol, name, _, _ in wanted(calls, target):
        pointed = kept.get(name) if name else None
        content = kept.get(pointed.decode()) if pointed is not None else None
        if content is None:
            kept.found = before
            return None
        found[symbol] = content
    kept.found = before + len(found)
    return found


def _said(call: Call) -> str:
    k = call.kernel
    return repr((k.family, k.key, k.pointers, k.scalars, k.scratch, k.threads, k.written))


def _is_own(emit: Any) -> bool:
    """Whether llmc's own sources say what it does, and what it is given."""
    if isinstance(emit, partial):
        given = (*emit.args, *emit.keywords.values())
        return _is_own(emit.func) and all(_is_own(x) for x in given if callable(x))
    return str(getattr(emit, "__module__", "")).startswith("llmc.")


@cache
def _sources() -> str:
    """Of all that emitters are made of, and what compiles what they say."""
    made = hashlib.blake2b()
    for module in (compiler, store):  # the package itself, and one of those in the folder of all targets
        for path in sorted(Path(str(module.__file__)).parent.rglob("*.py")):
            made.update(path.read_bytes())
    return " ".join([made.hexdigest(), __version__, *(version(name) for name in _TVM)])
