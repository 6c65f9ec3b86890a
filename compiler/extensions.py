"""What a file or a package of somebody else adds to llmc: ops, kernels, passes, targets.

An `Extension` is data. `load` checks all of it before anything is entered, so that one that fails leaves the tables
as they were; what it declares is wrapped, so that what it raises later is told in its own terms.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

from llmc.compiler.extension import Extension, Tables, check
from llmc.compiler.guards import lowering, reading, told
from llmc.compiler.modules import Ran, forget, load_point, run_file
from llmc.compiler.ops.declare import OPS, Op
from llmc.compiler.spec import Pass
from llmc.errors import LlmcError, in_a_line

__all__ = ["ENTRY_POINTS", "Extension", "Loaded", "load", "load_installed", "loaded", "unload"]

ENTRY_POINTS = "llmc.extensions"


@dataclass(frozen=True)
class Loaded:
    """An extension in force.

    Args:
        given: as it was declared.
        guarded: the same, its functions wrapped.
        origin: name and place, for messages.
        place: the file, all of its path, or entry point; empty for an object.
        sha256: of the file; empty otherwise.
    """

    given: Extension
    guarded: Extension
    origin: str
    place: str = ""
    sha256: str = ""


_loaded: dict[str, Loaded] = {}
_installed: list[str] = []  # entry points that were loaded


def load(source: str | Path | Extension) -> Extension:
    """Load the extension that a Python file or a variable holds. Loading the same twice changes nothing.

    A file that has changed since is loaded again in place of what it was.

    Raises:
        LlmcError: the file fails or holds no extension, or what it declares is wrong: nothing of it is loaded.
    """
    if isinstance(source, Extension):
        return _enter(source, "", "")
    ran = run(source, "extension")
    place = str(Path(source).expanduser().resolve())
    return _enter(extension_of(ran.module, str(source)), place, ran.sha256, str(source))


def run(path: str | Path, what: str) -> Ran:
    """`run_file` of a user's file, which may not enter ops by itself: they would stay when it fails.

    Raises:
        LlmcError: as `run_file`, or it does.
    """
    before, stray = set(OPS), []
    try:
        ran = run_file(path, what)
    finally:
        stray = [name for name in OPS if name not in before and not OPS[name].origin]
        for name in stray:
            del OPS[name]
    if stray:
        forget(path)
        hint = "make it by llmc.compiler.ops.declare.define, and name it in an llmc.Extension"
        raise LlmcError(
            f"op {stray[0]} is declared by `op`, which is for llmc's own", at=str(path), hint=hint
        )
    return ran


def load_installed() -> None:
    """Load the extensions of installed packages: entry points in the group `llmc.extensions`.

    Raises:
        LlmcError: one of them fails; the message names the entry point.
    """
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        place = f"entry point {point.name} = {point.value}"
        if place in _installed:
            continue
        found = load_point(point, f"the installed extension {point.name!r}", place)
        _enter(extension_of(found, place), place, "")
        _installed.append(place)


def extension_of(found: Any, place: str) -> Extension:
    """The one extension that a module or an entry point holds."""
    values = vars(found).values() if isinstance(found, ModuleType) else [found]
    held = {id(v): v for v in values if _is_extension(v)}
    if len(held) != 1:
        raise LlmcError(
            f"it holds {len(held) or 'no'} extension{'s' * (len(held) > 1)}",
            at=place,
            hint='write extension = llmc.Extension("name", ops=(...), ...), once',
        )
    return next(iter(held.values()))


def holds_extension(module: ModuleType) -> bool:
    """Whether a module that was run for another reason declares one."""
    return any(map(_is_extension, vars(module).values()))


def _is_extension(value: Any) -> TypeGuard[Extension]:
    """By its type: to ask a stand-in for what is not there yet would raise."""
    return issubclass(type(value), Extension)


def unload(name: str) -> None:
    """Forget the extension called `name`; graphs that hold its ops are no longer valid."""
    gone = _loaded.pop(name)
    for op in gone.given.ops:
        del OPS[op.name]
    if gone.place in _installed:
        _installed.remove(gone.place)


# --- what is in force


def loaded() -> tuple[Loaded, ...]:
    """All extensions, in the order they were loaded."""
    return tuple(_loaded.values())


def passes() -> Mapping[str, type[Pass]]:
    """name -> pass."""
    return {p.name: p for item in _loaded.values() for p in item.given.passes}


def targets() -> Mapping[str, Any]:
    """name -> target."""
    return {t.name: t for item in _loaded.values() for t in item.given.targets}


def scalars(backend: str) -> Mapping[str, Callable[..., Any]]:
    """Element-wise op -> what computes it on values in registers."""
    return _joined(item.guarded.scalars for item in _loaded.values())(backend)


def backends() -> Mapping[str, Any]:
    """name -> backend."""
    return {b.name: b for item in _loaded.values() for b in item.given.backends}


def formats(backend: str) -> Mapping[str, Callable[..., Any]]:
    """op of a stored weight -> how products read it."""
    return _joined(item.guarded.formats for item in _loaded.values())(backend)


def kernels(backend: str) -> Mapping[str, Callable[..., Any]]:
    """op -> lowering."""
    return _joined(item.guarded.kernels for item in _loaded.values())(backend)


def _joined(tables: Iterator[Tables]) -> Callable[[str], dict[str, Callable[..., Any]]]:
    return lambda backend: {op: f for table in tables for op, f in table.get(backend, {}).items()}


def described() -> list[dict[str, str]]:
    """For a manifest: which extensions, and the sha256 of their files."""
    return [{"name": item.given.name, "sha256": item.sha256} for item in _loaded.values()]


# --- loading


def _enter(found: Extension, place: str, sha256: str, said: str = "") -> Extension:
    """Check everything, then enter it; `said` is the place as the user wrote it."""
    earlier = _loaded.get(found.name) if isinstance(found.name, str) else None
    if earlier is not None and (earlier.given is found or (sha256 and earlier.sha256 == sha256)):
        return earlier.given
    origin = f"extension {found.name}" + (f" ({said or place})" if place else "")
    if earlier is not None and earlier.place != place:
        raise LlmcError("another extension of that name is loaded", at=origin, found=earlier.origin)
    known = {n: op for n, op in OPS.items() if earlier is None or op.origin != earlier.origin}
    others = [item for item in _loaded.values() if item is not earlier]
    try:
        check(found, known, [item.given for item in others])
    except LlmcError as error:
        raise LlmcError(
            f"{origin}: {error.problem}", at=error.at, found=error.found, hint=error.hint
        ) from None
    except Exception as error:
        raise LlmcError(f"{origin}: it cannot be read: {in_a_line(error)}") from error
    guarded = _guarded(found, origin)
    if earlier is not None:
        unload(found.name)
    _loaded[found.name] = Loaded(found, guarded, origin, place, sha256)
    OPS.update({op.name: op for op in guarded.ops})
    return found


def _guarded(found: Extension, origin: str) -> Extension:
    ops = tuple(_guarded_op(op, origin, found) for op in found.ops)
    scalars = _each(found.scalars, lambda b, op, f: told(f, f"the {b} kernel of {op}", origin))
    kernels = _each(found.kernels, lambda b, op, f: lowering(f, f"the {b} kernel of {op}", origin))
    formats = _each(found.formats, lambda b, op, f: reading(f, f"the {b} reader of {op}", origin))
    return replace(found, ops=ops, scalars=scalars, kernels=kernels, formats=formats)


def _each(tables: Tables, change: Callable[[str, str, Any], Callable[..., Any]]) -> Tables:
    return {b: {op: change(b, op, f) for op, f in table.items()} for b, table in tables.items()}


def _guarded_op(op: Op, origin: str, found: Extension) -> Op:
    computed = {
        b for tables in (found.scalars, found.kernels) for b, table in tables.items() if op.name in table
    }
    alone = {b for b in computed if op.name not in found.scalars.get(b, {})}
    return replace(
        op,
        origin=origin,
        rule=told(op.rule, f"the type rule of {op.name}", origin),
        reference=told(op.reference, f"the reference of {op.name}", origin),
        partial=op.partial and told(op.partial, f"the trait partial of {op.name}", origin),
        constraints=op.constraints and told(op.constraints, f"the trait constraints of {op.name}", origin),
        fusible=bool(computed) and not alone,
    )
