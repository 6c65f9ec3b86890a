"""A session: one sequence of calls of a model, with states, memory and, if asked, threads of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from ctypes import byref, c_int64
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from llmc.errors import LlmcError
from llmc.runtime import native
from llmc.runtime.arrays import Array, check_names
from llmc.runtime.calls import Caller
from llmc.runtime.session_options import adapter_bytes, check_fits, opened, timeout_of
from llmc.runtime.threads import Threads

if TYPE_CHECKING:
    from llmc.runtime.model import Model


class Session:
    """Made by `Model.session`. Also a context manager.

    A call that fails, is cancelled or takes too long leaves the session as it was. One thread uses it at a time: a
    second one gets an error. It goes on working when its model is closed.
    """

    def __init__(
        self,
        model: Model,
        threads: int | Threads | None = None,
        max_memory: int | None = None,
        *,
        pin: bool = False,
        adapter: str | None = None,
    ) -> None:
        """See `Model.session`."""
        self.model = model
        self.looked: str | None = None  # the key of the images that it holds, None: not known
        self._handle: native.SessionHandle | None = opened(model, threads, max_memory, pin, adapter=adapter)

    def __call__(self, *, out: Mapping[str, Array] | None = None, **inputs: Any) -> dict[str, Array]:
        """Run the model's first function; see `run`."""
        return self.run(inputs, out)

    def call(
        self, function: str, /, *, out: Mapping[str, Array] | None = None, **inputs: Any
    ) -> dict[str, Array]:
        """Run the function of that name; see `run`."""
        return self.run(inputs, out, function=function)

    def run(
        self,
        inputs: Mapping[str, Any],
        out: Mapping[str, Array] | None = None,
        *,
        function: str | None = None,
        timeout: float | None = None,
    ) -> dict[str, Array]:
        """Run a function on the session's states, without the GIL.

        Args:
            inputs, out: as for `Model.run`.
            function: its name; None: the model's first.
            timeout: seconds after which the run is given up; None: never. Looked at between two steps.

        Returns:
            name -> array, for every output.

        Raises:
            LlmcError: as for `Model.run`; there is no such function, the call does not fit what the session holds,
                the session is in use or closed, memory would pass its bound, the run was cancelled or took too long.
        """
        handle = self._open_handle()
        name = next(iter(self.model.functions)) if function is None else function
        check_names("function", [name], self.model.functions)
        self.looked = None
        options = native.RunOptions(timeout=timeout_of(timeout))
        chosen, library = self.model.functions[name], handle.library
        who = handle.pointer, chosen.number
        caller = Caller(
            library, library.session_output_shapes, library.session_run, who, str(self.model.path)
        )
        return caller(chosen, inputs, out, (byref(options),))

    def reset(self) -> None:
        """Begin a new sequence: lengths are 0, other states zeros. The memory is kept.

        Raises:
            LlmcError: the session is in use or closed.
        """
        handle, error = self._open_handle(), native.Error()
        self.looked = None
        handle.library.check(
            handle.library.session_reset(handle.pointer, byref(error)), error, str(self.model.path)
        )

    def choose_adapter(self, name: str | None) -> None:
        """Go on with another adapter, None: none. The session begins anew; with the same nothing happens.

        Raises:
            LlmcError: the model has no such adapter; the session is in use or closed.
        """
        handle, error = self._open_handle(), native.Error()
        status = handle.library.session_choose_adapter(handle.pointer, adapter_bytes(name), byref(error))
        handle.library.check(status, error, str(self.model.path))
        if not any(self.lengths.values()):
            self.looked = None

    @property
    def adapter(self) -> str | None:
        """The name of the adapter that it has.

        Raises:
            LlmcError: the session is in use or closed.
        """
        number = int(self._report().adapter)
        return self.model.adapters[number - 1] if number else None

    def resize(self, **sizes: int) -> None:
        """Put it at other lengths, such as `past=5`: a shorter one forgets the newest positions, a longer adds zeros.

        Raises:
            LlmcError: no state has such a size, or it is out of bounds or not the one of this sequence; the session
                is in use or closed.
        """
        handle, error = self._open_handle(), native.Error()
        known = {name: now for name, now in zip(self.model.dims, self._report().sizes, strict=False)}
        check_names("size of states", sizes, {n: None for n in known if n in self._state_sizes()})
        for name, size in sizes.items():
            if type(size) is not int or size < 0:
                raise LlmcError(f"{name} is {size!r}, must be an int, at least 0")
            check_fits(name, size, self.model.dims[name])
        array = (c_int64 * native.MAX_DIMS)(*(sizes.get(name, now) for name, now in known.items()))
        status = handle.library.session_resize(handle.pointer, array, byref(error))
        handle.library.check(status, error, str(self.model.path))

    def rewind(self, length: int) -> None:
        """Go back to where it held `length` tokens, steps or whatever its states grow by.

        Raises:
            LlmcError: it holds fewer, or a state keeps its shape and so no trace of what it was (0 begins anew
                then); the session is in use or closed.
        """
        if type(length) is not int or not 0 <= length < 2**63:
            raise LlmcError(f"length is {length!r}, must be an int, at least 0")
        handle, error = self._open_handle(), native.Error()
        status = handle.library.session_rewind(handle.pointer, length, byref(error))
        handle.library.check(status, error, str(self.model.path))

    def fork(
        self, threads: int | Threads | None = None, max_memory: int | None = None, *, pin: bool = False
    ) -> Session:
        """Another session that holds what this one does, its adapter too; from there on each goes its own way.

        They share memory until one of them writes.

        Args:
            threads, max_memory, pin: the new one's, as for `Model.session`.

        Raises:
            LlmcError: as `Model.session`, or there is no memory; the session is in use or closed.
        """
        other = Session.__new__(Session)
        other.model, other.looked = self.model, self.looked
        other._handle = opened(self.model, threads, max_memory, pin, self._open_handle())
        return other

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what it holds to a file, which appears whole or not at all, readable by its owner alone.

        Raises:
            LlmcError: the file cannot be written; the session is in use or closed.
        """
        self._file("session_save", path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Hold what was saved, by the same build of the model. Where that fails, the session is as it was.

        Raises:
            LlmcError: the file cannot be read, is damaged or another model's; the session is in use or closed.
        """
        self.looked = None
        self._file("session_load", path)

    def _file(self, name: str, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, str | os.PathLike) or "\0" in os.fsdecode(path):
            raise LlmcError(f"not the path of a file: {path!r:.60}")
        handle, error = self._open_handle(), native.Error()
        status = getattr(handle.library, name)(handle.pointer, os.fsencode(path), byref(error))
        handle.library.check(status, error, str(self.model.path))

    @property
    def lengths(self) -> Mapping[str, int]:
        """Dim along which states grow -> positions held.

        Raises:
            LlmcError: the session is in use or closed.
        """
        sizes = dict(zip(self.model.dims, self._report().sizes, strict=False))
        return MappingProxyType({name: sizes[name] for name in self.model.lengths})

    @property
    def memory_bytes(self) -> int:
        """What it holds now: states and intermediate results.

        Raises:
            LlmcError: the session is in use or closed.
        """
        report = self._report()
        return int(report.arena_bytes + report.state_bytes)

    @property
    def shared_bytes(self) -> int:
        """Those of `memory_bytes` that other sessions, forks of it or what it is a fork of, hold too, now.

        Raises:
            LlmcError: the session is in use or closed.
        """
        return int(self._report().shared_bytes)

    @property
    def threads(self) -> int:
        """That work on its runs.

        Raises:
            LlmcError: the session is in use or closed.
        """
        return int(self._report().threads)

    def cancel(self) -> None:
        """Give up the run in progress on another thread, which then raises an error. Without one nothing happens.

        Raises:
            LlmcError: the session is closed.
        """
        handle = self._open_handle()
        handle.library.session_cancel(handle.pointer)

    def close(self) -> None:
        """Give its memory and threads back as soon as a run in progress has returned. Closing twice is fine."""
        self._handle = None

    @property
    def is_open(self) -> bool:
        """Whether it can be used: neither closed, nor garbage that has been collected."""
        return self._handle is not None and bool(self._handle.pointer)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise LlmcError(
            "a session cannot be pickled or copied: its states are in memory of this process",
            at=str(self.model.path),
            hint="open another where it is needed: llmc.load(path).session()",
        )

    def __repr__(self) -> str:
        if not self.is_open:
            return f"<llmc.Session of {self.model.name}, closed>"
        return f"<llmc.Session of {self.model.name}>"

    def _open_handle(self) -> native.SessionHandle:
        handle = self._handle
        if handle is None or not handle.pointer:
            raise LlmcError(
                "the session is closed", at=str(self.model.path), hint="open another: model.session()"
            )
        return handle

    def _report(self) -> native.SessionReport:
        handle, report, error = self._open_handle(), native.SessionReport(), native.Error()
        status = handle.library.session_info(handle.pointer, byref(report), byref(error))
        handle.library.check(status, error, str(self.model.path))
        return report

    def _state_sizes(self) -> set[str]:
        return {axis for state in self.model.states.values() for axis in state.shape if isinstance(axis, str)}
