"""What a file or a package of somebody else adds to llmc: ops, kernels, passes, targets.

An `Extension` is data. `load` checks all of it before anything is entered, so that one that fails leaves the tables
as they were; what it declares is wrapped, so that what it raises later is told in its own terms.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from llmc.compiler.calls import Call
from llmc.compiler.modules import run_file
from llmc.compiler.ops.declare import OPS, Fault, Op, fault_place
from llmc.compiler.spec import Pass
from llmc.errors import LlmcError

ENTRY_POINTS = "llmc.extensions"

Tables = Mapping[str, Mapping[str, Callable[..., Any]]]  # backend -> op -> function


@dataclass(frozen=True)
class Extension:
    """What is added.

    Args:
        name: what messages and manifests call it.
        ops: as `llmc.compiler.ops.declare.define` makes them.
        scalars: backend ("cpu", "cuda") -> element-wise op of this extension -> `emit(k, dtype, *operands,
            **attributes)`: the value of its operands, TIR vectors of llmc dtype `dtype`, by the `Emitter` k. f16 is
            computed in f32. Chains, broadcasting and all sizes are llmc's business.
        kernels: backend -> op -> `lower(node) -> Call | None`, for ops of every kind, llmc's own too: it is
            asked first, and None declines.
        passes: classes, found in pipelines by their `name`.
        targets: objects of `llmc.targets.Target`, found by their `name`.
    """

    name: str
    ops: Sequence[Op] = ()
    scalars: Tables = field(default_factory=dict)
    kernels: Tables = field(default_factory=dict)
    passes: Sequence[type[Pass]] = ()
    targets: Sequence[Any] = ()


@dataclass(frozen=True)
class Loaded:
    """An extension in force.

    Args:
        given: as it was declared.
        guarded: the same, its functions wrapped.
        origin: name and place, for messages.
        place: the file or entry point, empty for an object.
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
    ran = run_file(source, "extension")
    return _enter(extension_of(ran.module, str(source)), str(source), ran.sha256)


def load_installed() -> None:
    """Load the extensions of installed packages: entry points in the group `llmc.extensions`.

    Raises:
        LlmcError: one of them fails; the message names the entry point.
    """
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        place = f"entry point {point.name} = {point.value}"
        if place in _installed:
            continue
        try:
            found = point.load()
        except Exception as error:
            problem = f"the installed extension {point.name!r} fails: {type(error).__name__}: {error}"
            raise LlmcError(problem, at=place, hint="mend or uninstall its package") from error
        _enter(extension_of(found, place), place, "")
        _installed.append(place)


def extension_of(found: Any, place: str) -> Extension:
    """The one extension that a module or an entry point holds."""
    values = vars(found).values() if isinstance(found, ModuleType) else [found]
    held = {id(v): v for v in values if isinstance(v, Extension)}
    if len(held) != 1:
        raise LlmcError(
            f"it holds {len(held) or 'no'} extension{'s' * (len(held) > 1)}",
            at=place,
            hint='write extension = llmc.Extension("name", ops=(...), ...), once',
        )
    return next(iter(held.values()))


def holds_extension(module: ModuleType) -> bool:
    """Whether a module that was run for another reason declares one."""
    return any(isinstance(value, Extension) for value in vars(module).values())


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


def kernels(backend: str) -> Mapping[str, Callable[..., Any]]:
    """op -> lowering."""
    return _joined(item.guarded.kernels for item in _loaded.values())(backend)


def _joined(tables: Iterator[Tables]) -> Callable[[str], dict[str, Callable[..., Any]]]:
    return lambda backend: {op: f for table in tables for op, f in table.get(backend, {}).items()}


def described() -> list[dict[str, str]]:
    """For a manifest: which extensions, and the sha256 of their files."""
    return [{"name": item.given.name, "sha256": item.sha256} for item in _loaded.values()]


# --- loading


def _enter(found: Extension, place: str, sha256: str) -> Extension:
    """Check everything, then enter it."""
    earlier = _loaded.get(found.name) if isinstance(found.name, str) else None
    if earlier is not None and (earlier.given is found or (sha256 and earlier.sha256 == sha256)):
        return earlier.given
    origin = f"extension {found.name}" + (f" ({place})" if place else "")
    if earlier is not None and Path(earlier.place).resolve() != Path(place).resolve():
        raise _wrong("another extension of that name is loaded", origin, earlier.origin)
    known = {n: op for n, op in OPS.items() if earlier is None or op.origin != earlier.origin}
    others = [item for item in _loaded.values() if item is not earlier]
    try:
        _check(found, known, others)
    except LlmcError as error:
        raise LlmcError(
            f"{origin}: {error.problem}", at=error.at, found=error.found, hint=error.hint
        ) from None
    except Exception as error:
        raise LlmcError(f"{origin}: it cannot be read: {type(error).__name__}: {error}") from error
    guarded = _guarded(found, origin)
    if earlier is not None:
        unload(found.name)
    _loaded[found.name] = Loaded(found, guarded, origin, place, sha256)
    OPS.update({op.name: op for op in guarded.ops})
    return found


def _wrong(
    problem: str, at: str | None = None, found: str | None = None, hint: str | None = None
) -> LlmcError:
    return LlmcError(problem, at=at, found=found, hint=hint)


def _check(found: Extension, known: Mapping[str, Op], others: Sequence[Loaded]) -> None:
    if not isinstance(found.name, str) or not found.name:
        raise _wrong("its name is not a text", found=repr(found.name))
    own: dict[str, Op] = {}
    for op in found.ops:
        if not isinstance(op, Op):
            hint = "make it by llmc.compiler.ops.declare.define"
            raise _wrong(f"one of its ops is {op!r}, not an Op", hint=hint)
        if op.name in own:
            raise _wrong(
                f"op {op.name} is declared twice", fault_place(op.rule), fault_place(own[op.name].rule)
            )
        if op.name in known:
            raise _wrong(
                f"op {op.name} is {known[op.name].origin or 'an op of llmc itself'}", fault_place(op.rule)
            )
        own[op.name] = op
    _check_tables(
        "scalars",
        found.scalars,
        {n for n, op in own.items() if op.elementwise},
        "an element-wise op of its own",
    )
    _check_tables("kernels", found.kernels, {*own, *known}, "an op")
    _check_names("pass", _pass_names(found), {n for item in others for n in _pass_names(item.given)})
    _check_names("target", _target_names(found), {n for item in others for n in _target_names(item.given)})


def _check_tables(what: str, tables: Tables, allowed: set[str], kind: str) -> None:
    for backend, table in tables.items():
        for op, function in table.items():
            if op not in allowed:
                raise _wrong(f"{what} of {backend}: {op!r} is not {kind}")
            if not callable(function):
                raise _wrong(f"{what} of {backend}: for {op} there is {function!r}, not a function")


def _pass_names(found: Extension) -> list[str]:
    for kind in found.passes:
        if not (isinstance(kind, type) and issubclass(kind, Pass)):
            raise _wrong(f"{kind!r} is not a pass", hint="derive it from llmc.compiler.pipeline.Pass")
    return [kind.name for kind in found.passes]


def _target_names(found: Extension) -> list[str]:
    for target in found.targets:
        if not isinstance(getattr(target, "name", None), str):
            raise _wrong(f"{target!r} is not a target", hint="make it an object of llmc.targets.Target")
    return [target.name for target in found.targets]


def _check_names(what: str, names: Sequence[str], taken: set[str]) -> None:
    for name in names:
        if name in taken or names.count(name) > 1:
            raise _wrong(f"the {what} {name} is declared twice")


# --- what its functions raise


def _guarded(found: Extension, origin: str) -> Extension:
    ops = tuple(_guarded_op(op, origin, found) for op in found.ops)
    scalars = {
        b: {op: _told(f, f"the {b} kernel of {op}", origin) for op, f in t.items()}
        for b, t in found.scalars.items()
    }
    kernels = {
        b: {op: _lowering(f, f"the {b} kernel of {op}", origin) for op, f in t.items()}
        for b, t in found.kernels.items()
    }
    return replace(found, ops=ops, scalars=scalars, kernels=kernels)


def _guarded_op(op: Op, origin: str, found: Extension) -> Op:
    computed = {
        b for tables in (found.scalars, found.kernels) for b, table in tables.items() if op.name in table
    }
    alone = {b for b in computed if op.name not in found.scalars.get(b, {})}
    return replace(
        op,
        origin=origin,
        rule=_told(op.rule, f"the type rule of {op.name}", origin),
        reference=_told(op.reference, f"the reference of {op.name}", origin),
        partial=op.partial and _told(op.partial, f"the trait partial of {op.name}", origin),
        fusible=bool(computed) and not alone,
    )


def _told(function: Callable[..., Any], what: str, origin: str) -> Callable[..., Any]:
    """`function`, whose faults name the extension."""

    @wraps(function)
    def run(*arguments: Any, **keywords: Any) -> Any:
        try:
            return function(*arguments, **keywords)
        except Fault as error:
            problem = f"{origin}: {error.problem}"
            raise Fault(problem, at=error.at, found=error.found, hint=error.hint) from error.__cause__
        except LlmcError:
            raise
        except Exception as error:
            problem = f"{what} fails: {type(error).__name__}: {error}"
            found = ", ".join(_shown(a) for a in arguments) or None
            raise Fault(f"{origin}: {problem}", at=fault_place(function, error), found=found) from error

    return run


def _shown(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else repr(value)[:100]


def _lowering(lower: Callable[..., Any], what: str, origin: str) -> Callable[..., Any]:
    """A lowering whose faults, and those of the code it writes, name the extension."""
    told = _told(lower, what, origin)

    @wraps(lower)
    def run(node: Any, *arguments: Any) -> Any:
        call = told(node, *arguments)
        if call is None:
            return None  # it declines
        if not isinstance(call, Call):
            raise LlmcError(f"{origin}: {what} gives {call!r}, not a Call", at=fault_place(lower))
        emit = _told(call.kernel.emit, what, origin)
        return replace(call, kernel=replace(call.kernel, emit=emit))

    return run
