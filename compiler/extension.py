"""What an extension declares, and what must hold of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmc.compiler.ops.declare import Op
from llmc.compiler.ops.faults import fault_place
from llmc.compiler.spec import Pass
from llmc.errors import LlmcError

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
        formats: backend -> op with the trait `stored` of this extension -> how products read a weight of it: for
            "cpu" `read(node, width) -> Stored` (targets/cpu/storage/panels.py).
        passes: classes, found in pipelines by their `name`.
        targets: objects of `llmc.targets.Target`, found by their `name`; one may hold its backend.
        backends: objects of `llmc.targets.backend.Backend`, which targets name.
    """

    name: str
    ops: Sequence[Op] = ()
    scalars: Tables = field(default_factory=dict)
    kernels: Tables = field(default_factory=dict)
    formats: Tables = field(default_factory=dict)
    passes: Sequence[type[Pass]] = ()
    targets: Sequence[Any] = ()
    backends: Sequence[Any] = ()


def _wrong(
    problem: str, at: str | None = None, found: str | None = None, hint: str | None = None
) -> LlmcError:
    return LlmcError(problem, at=at, found=found, hint=hint)


def check(found: Extension, known: Mapping[str, Op], others: Sequence[Extension]) -> None:
    """Refuse a declaration that is wrong by itself, or beside the ops that are known and other extensions.

    Raises:
        LlmcError: what is wrong, in the declarer's terms.
    """
    if not isinstance(found.name, str) or not found.name:
        raise _wrong("its name is not a text", found=repr(found.name))
    _check_kinds(found)
    own = _own_ops(found, known)
    _check_tables(
        "scalars",
        found.scalars,
        {n for n, op in own.items() if op.elementwise},
        "an element-wise op of its own",
    )
    _check_tables("kernels", found.kernels, {*own, *known}, "an op")
    stored = {n for n, op in own.items() if op.stored}
    _check_tables("formats", found.formats, stored, "an op of its own with the trait stored")
    _check_names("pass", _pass_names(found), {n for item in others for n in _pass_names(item)})
    for what, kind in (("target", "llmc.targets.Target"), ("backend", "llmc.targets.backend.Backend")):
        taken = {n for item in others for n in _names(item, what, kind)}
        _check_names(what, _names(found, what, kind), taken)


_SEQUENCES = {"ops": "ops", "passes": "classes of passes", "targets": "targets", "backends": "backends"}
_TABLES = ("scalars", "kernels", "formats")


def _check_kinds(found: Extension) -> None:
    """Its fields are sequences and tables of what they should hold, as far as that can be seen from outside."""
    for name, held in _SEQUENCES.items():
        value = getattr(found, name)
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise _wrong(
                f"{name} is of type {type(value).__name__}, not a sequence of {held}",
                hint=f"write {name}=(one, ...)",
            )
    for name in _TABLES:
        tables = getattr(found, name)
        hint = f'write {name}={{"cpu": {{"op": function}}}}'
        if not isinstance(tables, Mapping):
            raise _wrong(f"{name} is of type {type(tables).__name__}, not a table by backend", hint=hint)
        for backend, table in tables.items():
            if not isinstance(backend, str):
                raise _wrong(f"{name} has {backend!r}, which is no backend's name", hint=hint)
            if not isinstance(table, Mapping):
                raise _wrong(
                    f"{name} of {backend} is of type {type(table).__name__}, not a table by op", hint=hint
                )


def _own_ops(found: Extension, known: Mapping[str, Op]) -> dict[str, Op]:
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
    return own


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


def _names(found: Extension, what: str, kind: str) -> list[str]:
    """Of its targets or backends."""
    held: Sequence[Any] = getattr(found, f"{what}s")
    for item in held:
        if not isinstance(getattr(item, "name", None), str):
            raise _wrong(f"{item!r} is not a {what}", hint=f"make it an object of {kind}")
    return [item.name for item in held]


def _check_names(what: str, names: Sequence[str], taken: set[str]) -> None:
    for name in names:
        if name in taken or names.count(name) > 1:
            raise _wrong(f"the {what} {name} is declared twice")
