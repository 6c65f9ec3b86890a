"""Which backends there are: llmc's own, and those of other packages."""

from __future__ import annotations

import importlib

from llmc.compiler import extensions
from llmc.compiler.spec import near
from llmc.errors import LlmcError
from llmc.targets.backend import Backend
from llmc.targets.target import Target

# Modules that hold a BACKEND; they are imported when a target asks for them, for some need TVM.
_MODULES = {"cpu": "llmc.targets.cpu.backend", "cuda": "llmc.targets.cuda.backend"}
_REGISTERED: dict[str, Backend] = {}


def register(backend: Backend) -> None:
    """Let targets name `backend`.

    Raises:
        LlmcError: it is no backend, or another one has its name.
    """
    if not isinstance(backend, Backend):
        raise LlmcError(
            "this is not a backend", found=repr(backend), hint="derive it from llmc.targets.backend.Backend"
        )
    if backend.name in _MODULES or _REGISTERED.get(backend.name, backend) is not backend:
        raise LlmcError(f"there is a backend {backend.name!r} already", found=repr(backend))
    _REGISTERED[backend.name] = backend


def find_backend(name: str) -> Backend:
    """The backend called `name`.

    Raises:
        LlmcError: there is none.
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    added = extensions.backends()
    if name in added and name not in _MODULES:
        outside = added[name]
        if not isinstance(outside, Backend):
            raise LlmcError(f"the backend {name!r} of an extension is not a Backend", found=repr(outside))
        return outside
    if name not in _MODULES:
        raise LlmcError(f"there is no backend {name!r}", hint=near(name, {*_MODULES, *_REGISTERED, *added}))
    found: Backend = importlib.import_module(_MODULES[name]).BACKEND
    return found


def backend_of(target: Target) -> Backend:
    """Who makes the kernels of `target`.

    Raises:
        LlmcError: it names a backend that is not there.
    """
    if isinstance(target.backend, Backend):
        return target.backend
    try:
        return find_backend(target.backend)
    except LlmcError as error:
        raise LlmcError(error.problem, at=f"target {target.name}", hint=error.hint) from None
