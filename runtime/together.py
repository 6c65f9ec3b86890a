"""One run for several sessions of a model: their inputs side by side, their outputs apart again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ctypes import byref, c_int64
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from llmc.errors import LlmcError
from llmc.runtime import native
from llmc.runtime.arrays import Array, check_names, input_array, tensor_of
from llmc.runtime.session_options import timeout_of
from llmc.runtime.signature import Function, TensorInfo

if TYPE_CHECKING:
    from llmc.runtime.model import Model
    from llmc.runtime.session import Session


class SessionsCalls:
    """The part of `Model` that runs several sessions at once."""

    def run_sessions(
        self,
        calls: Sequence[tuple[Session, Mapping[str, Any]]],
        function: str | None = None,
        *,
        timeout: float | None = None,
    ) -> list[dict[str, Array]]:
        """Run a function for several sessions at once: weights are read once for all, no row is padded.

        Each session brings as many tokens as it has, prompts and next tokens mixed, and gets the bits that it would get
        alone. Threads are those of the first.

        Args:
            calls: (session, inputs) for each, inputs as for `Session.run`.
            function: its name; None: the first.
            timeout: seconds for all of it; None: none.

        Returns:
            the outputs of each session, in order.

        Raises:
            LlmcError: as `Session.run`; a session is there twice or is another model's; all rows together pass the
                bound of their dim; the function runs for one session at a time (`Function.single` says why). All
                sessions are as they were.
        """
        return _run_sessions(cast("Model", self), calls, function, timeout)


def _run_sessions(
    model: Model,
    calls: Sequence[tuple[Session, Mapping[str, Any]]],
    function: str | None = None,
    timeout: float | None = None,
) -> list[dict[str, Array]]:
    """See `run_sessions`."""
    calls = _listed(calls)
    if not calls:
        return []
    name = next(iter(model.functions)) if function is None else function
    check_names("function", [name], model.functions)
    chosen = model.functions[name]
    _want_batches(model, name, chosen)
    handles = [_handle(model, session) for session, _ in calls]
    for session, _ in calls:
        session.looked = None
    arrays = [_arrays(i, chosen, inputs) for i, (_, inputs) in enumerate(calls)]
    _want_same(arrays)
    sizes = [_sizes(chosen, given) for given in arrays]
    members = (native.Member * len(calls))()
    for member, handle, own in zip(members, handles, sizes, strict=True):
        member.session = handle.pointer
        member.sizes = (c_int64 * native.MAX_DIMS)(*(own.get(d, 0) for d in model.dims))
    together = {d: sum(own[d] for own in sizes) for d in sizes[0]}
    joined = {
        n: _joined(info, [given[n] for given in arrays])
        for n, info in chosen.inputs.items()
        if n in arrays[0]
    }
    results = {n: np.empty(_shape(info, together), info.numpy_dtype) for n, info in chosen.outputs.items()}
    _run(model, chosen, members, (joined, results), timeout)
    return _apart(chosen, results, sizes)


def _listed(calls: Any) -> list[tuple[Session, Mapping[str, Any]]]:
    """
    Raises:
        LlmcError: they are no pairs of a session and its inputs.
    """
    listed = list(calls) if isinstance(calls, Iterable) else [calls]
    for call in listed:
        if not isinstance(call, tuple | list) or len(call) != 2 or not isinstance(call[1], Mapping):
            raise LlmcError(f"not a session and its inputs: {call!r:.60}", hint="[(session, inputs), ...]")
    return [(session, inputs) for session, inputs in listed]


def _want_batches(model: Model, name: str, function: Function) -> None:
    if not function.batches:
        raise LlmcError(
            f"function {name} runs for one session at a time: {function.single}",
            at=str(model.path),
            hint="run each session by itself: session.run(inputs)",
        )


def _handle(model: Model, session: Session) -> native.SessionHandle:
    if getattr(session, "model", None) is not model:
        raise LlmcError(
            "a session is not one of this model", at=str(model.path), hint="open one: model.session()"
        )
    return session._open_handle()


def _arrays(number: int, function: Function, inputs: Mapping[str, Any]) -> dict[str, Array]:
    """The inputs of one session."""
    check_names("input", inputs, function.inputs)
    arrays = {n: input_array(n, function.inputs[n], v) for n, v in inputs.items()}
    for name, info in function.inputs.items():
        if name not in arrays and info.default is not None:
            continue
        if name not in arrays:
            raise LlmcError(f"session {number}: input {name} is missing")
        found, wanted = arrays[name].shape, info.shape
        fits = len(found) == len(wanted) and all(
            isinstance(w, str) or f == w for f, w in zip(found, wanted, strict=True)
        )
        if not fits:
            raise LlmcError(f"session {number}: input {name} has shape {list(found)}, must be {info}")
    return arrays


def _want_same(arrays: Sequence[Mapping[str, Array]]) -> None:
    """Refuse an input with a default that some have and others do not: their rows lie in one array."""
    for number, given in enumerate(arrays):
        if other := sorted(given.keys() ^ arrays[0].keys()):
            which = 0 if other[0] in given else number
            raise LlmcError(f"session {which}: input {other[0]} is missing, others have it")


def _row_axis(info: TensorInfo) -> int:
    """The axis along which the rows of sessions lie side by side."""
    return next(axis for axis, size in enumerate(info.shape) if size != 1)


def _sizes(function: Function, arrays: Mapping[str, Array]) -> dict[str, int]:
    """What a session brings along each dim.

    Raises:
        LlmcError: its inputs do not agree.
    """
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        axis = _row_axis(function.inputs[name])
        dim, size = str(function.inputs[name].shape[axis]), array.shape[axis]
        if sizes.setdefault(dim, size) != size:
            raise LlmcError(
                f"input {name} has {dim} = {size}, another has {sizes[dim]}", hint="inputs must agree"
            )
    return sizes


def _joined(info: TensorInfo, arrays: Sequence[Array]) -> Array:
    return np.ascontiguousarray(np.concatenate(arrays, _row_axis(info)))


def _shape(info: TensorInfo, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[d] if isinstance(d, str) else d for d in info.shape)


def _run(
    model: Model,
    function: Function,
    members: Any,
    arrays: tuple[Mapping[str, Array], Mapping[str, Array]],
    timeout: float | None,
) -> None:
    tensors = []
    for infos, named in zip((function.inputs, function.outputs), arrays, strict=True):
        made = (native.Tensor * (len(infos) + 1))()
        for i, (name, info) in enumerate(infos.items()):
            if name in named:
                made[i] = tensor_of(named[name], info.dtype)
        tensors.append(made)
    library, error = model._open_handle().library, native.Error()
    options = native.RunOptions(timeout=timeout_of(timeout))
    status = library.sessions_run(
        members, len(members), function.number, *tensors, byref(options), byref(error)
    )
    library.check(status, error, str(model.path))


def _apart(
    function: Function, results: Mapping[str, Array], sizes: Sequence[Mapping[str, int]]
) -> list[dict[str, Array]]:
    """Each session's rows of the outputs: views."""
    found: list[dict[str, Array]] = [{} for _ in sizes]
    for name, info in function.outputs.items():
        axis = _row_axis(info)
        cuts = np.cumsum([own[str(info.shape[axis])] for own in sizes])[:-1]
        for one, part in zip(found, np.split(results[name], cuts, axis), strict=True):
            one[name] = part
    return found
