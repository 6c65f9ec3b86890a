"""Latency of a model, and of two side by side. C takes the samples; this file asks."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import byref, c_int64
from typing import TYPE_CHECKING, Any

from llmc.errors import LlmcError
from llmc.runtime import native
from llmc.runtime.arrays import check_names
from llmc.runtime.reports import BenchmarkReport, CompareReport, Latency, Step
from llmc.runtime.session_options import check_fits

if TYPE_CHECKING:
    from llmc.runtime.model import Model


def run_benchmark(
    model: Model,
    *,
    duration: float = 3.0,
    profile: bool = False,
    warmup: int | None = None,
    max_runs: int = 10_000,
    seed: int = 0,
    shortest: int | None = None,
    threads: int | None = None,
    function: str | None = None,
    **sizes: int,
) -> BenchmarkReport:
    """Time a function of `model` on random valid inputs. Each run begins at the same length of the states.

    Args:
        function: its name; None: the first.
        duration: seconds of samples.
        profile: also time each kernel and measure the machine's peaks.
        warmup: runs to discard; None: until the running median is steady.
        max_runs: samples at most.
        seed: of the inputs.
        shortest: rows hold that many tokens to all, drawn evenly, and the rest is padding; None: no padding.
        threads: another number than the model was loaded with.
        sizes: of the dims, such as batch=1, seq=128; by default 1 for batch and for the tokens whose logits are wanted,
            0 for the length of states, and for others 128 or the nearest bound.

    Raises:
        LlmcError: a function or size is unknown or out of bounds, or an option makes no sense.
    """
    options = _options(duration, warmup, max_runs, seed, shortest)
    if threads is None or threads == model.threads:
        return _timed(model, options, profile, function, sizes)
    from llmc.runtime.model import load

    with load(model.path, threads, model.variant) as other:
        return _timed(other, options, profile, function, sizes)


def _timed(
    model: Model,
    options: native.BenchmarkOptions,
    profile: bool,
    function: str | None,
    sizes: Mapping[str, int],
) -> BenchmarkReport:
    """One benchmark by C, on the threads that the model has."""
    chosen = _function(model, function)
    options.function = number = model.functions[chosen].number
    sizes = {**_usual(model, chosen), **sizes}
    handle, report, error = model._open_handle(), native.Report(), native.Error()
    n_steps = handle.info.functions[number].n_steps
    steps = (native.StepReport * (n_steps + 1))() if profile else None
    array = sizes_array(model, sizes)
    status = handle.library.benchmark(
        handle.pointer, array, byref(options), byref(report), steps, byref(error)
    )
    handle.library.check(status, error, str(model.path))
    return _report(model, chosen, report, None if steps is None else tuple(map(_step, steps[:n_steps])))


def compare(
    model_a: Model,
    model_b: Model,
    *,
    duration: float = 3.0,
    warmup: int | None = None,
    max_runs: int = 10_000,
    seed: int = 0,
    shortest: int | None = None,
    function: str | None = None,
    **sizes: int,
) -> CompareReport:
    """Time two models in turns, A B, B A, ..., so that what disturbs the machine disturbs both.

    Arguments as for `run_benchmark`; a size holds for each model that has a dim of that name. Of the second model the
    function of the same name runs, or its first beside the first's first.

    Raises:
        LlmcError: neither model has a dim of a size's name, or a size is out of bounds.
    """
    check_names("dim", sizes, {**model_a.dims, **model_b.dims})
    handles = model_a._open_handle(), model_b._open_handle()
    summaries, ratio, error = (native.Summary(), native.Summary()), native.Ratio(), native.Error()
    options = _options(duration, warmup, max_runs, seed, shortest)
    options.function = model_a.functions[_function(model_a, function)].number
    sides: list[Any] = []
    for model, handle in zip((model_a, model_b), handles, strict=True):
        own = {name: size for name, size in sizes.items() if name in model.dims}
        sides += [handle.library.api, handle.pointer, sizes_array(model, own)]
    status = handles[0].library.compare(
        *sides, byref(options), byref(summaries[0]), byref(summaries[1]), byref(ratio), byref(error)
    )
    handles[0].library.check(status, error, str(model_a.path))
    a, b = map(_latency, summaries)
    return CompareReport((model_a.name, model_b.name), a, b, ratio.ratio, ratio.low, ratio.high)


def _options(
    duration: float, warmup: int | None, max_runs: int, seed: int, shortest: int | None
) -> native.BenchmarkOptions:
    if not 0 < duration < 1e6:
        raise LlmcError(f"duration is {duration}, must be seconds above 0")
    if warmup is not None and not 0 <= warmup < 2**31:
        raise LlmcError(f"warmup is {warmup}, must be a number of runs, or None")
    if not 1 <= max_runs <= 10_000_000:
        raise LlmcError(f"max_runs is {max_runs}, must be within 1..10000000")
    if shortest is not None and not 1 <= shortest < 2**31:
        raise LlmcError(f"shortest is {shortest}, must be a number of tokens, or None")
    runs = 0 if warmup is None else warmup or -1
    return native.BenchmarkOptions(
        seconds=duration, max_runs=max_runs, warmup=runs, seed=seed % 2**64, shortest=shortest or 0
    )


def _function(model: Model, name: str | None) -> str:
    check_names("function", [] if name is None else [name], model.functions)
    return next(iter(model.functions)) if name is None else name


def _usual(model: Model, function: str) -> dict[str, int]:
    """Where text is generated, the logits of one token are wanted."""
    entry = model.manifest.generation
    if entry is None or entry.keep is None or entry.function != function:
        return {}
    return {axis: 1 for axis in model.functions[function].inputs[entry.keep].shape if isinstance(axis, str)}


def sizes_array(model: Model, sizes: Mapping[str, int]) -> Any:
    """The sizes in C's order, 0 where none is given.

    Raises:
        LlmcError: a name is unknown, or a size is no number above 0; the length of states may be 0.
    """
    check_names("dim", sizes, model.dims)
    array = (c_int64 * native.MAX_DIMS)()
    for i, name in enumerate(model.dims):
        size, least = sizes.get(name, 0), 0 if name in model.lengths else 1
        if name in sizes and (type(size) is not int or size < least):
            raise LlmcError(f"{name} is {size!r}, must be an int" + (" above 0" if least else ", at least 0"))
        check_fits(name, size, model.dims[name])
        array[i] = size
    return array


def _report(
    model: Model, function: str, report: native.Report, steps: tuple[Step, ...] | None
) -> BenchmarkReport:
    return BenchmarkReport(
        artifact=str(model.path),
        name=model.name,
        build_id=model.manifest.build_id,
        function=function,
        variant=model.variant,
        threads=model.threads,
        sizes=dict(zip(model.dims, report.sizes, strict=False)),
        warmup_runs=report.warmup_runs,
        latency=_latency(report.latency),
        runs_per_second=report.runs_per_second,
        load_seconds=report.load_seconds,
        peak_memory_bytes=report.peak_memory_bytes,
        flops=report.flops,
        bytes=report.bytes,
        peak_flops_per_second=report.peak_flops_per_second,
        peak_bytes_per_second=report.peak_bytes_per_second,
        steps=steps,
    )


def _latency(summary: native.Summary) -> Latency:
    return Latency(**{name: getattr(summary, name) for name in Latency.__dataclass_fields__})


def _step(step: native.StepReport) -> Step:
    return Step(step.kernel.decode(), step.source.decode(), step.seconds, step.flops, step.bytes)
