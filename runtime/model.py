"""A compiled model: open it, look at it, run it.

A `Model` owns a `Handle`; every call in progress holds a reference to that, so `close()` and the garbage
collector may come at any time: the C model goes when the last call has returned.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from ctypes import byref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from llmc.errors import LlmcError
from llmc.runtime import native
from llmc.runtime.arrays import Array, check_names
from llmc.runtime.calls import Caller
from llmc.runtime.files import check_files, check_machine
from llmc.runtime.generation_calls import GenerationCalls
from llmc.runtime.manifest import MODULE, Manifest, read_manifest
from llmc.runtime.ready import ReadyCalls, Way
from llmc.runtime.session import Session
from llmc.runtime.session_options import memory_bound
from llmc.runtime.signature import TensorInfo, check_same, read_signature
from llmc.runtime.speech_calls import SpeechCalls
from llmc.runtime.text_calls import TextCalls
from llmc.runtime.threads import Threads, count
from llmc.runtime.together import SessionsCalls

if TYPE_CHECKING:
    from llmc.runtime.generation_benchmark import GenerationBenchmark
    from llmc.runtime.reports import BenchmarkReport
    from llmc.runtime.selftest import SelftestResult


def load(
    path: str | os.PathLike[str],
    threads: int | Threads | None = None,
    variant: str | None = None,
    *,
    pin: bool = False,
    max_memory: int | None = None,
    check_weights: bool = True,
) -> Model:
    """Open the artifact in folder `path`.

    Every file but the weights is hashed before any of it is used. The weights are compared with the checksums that the
    module holds, at the speed of memory; `llmc.runtime.verify` hashes them too.

    Args:
        threads: that work on one run, or a `Threads` that other models work with too; None: one for each usable core.
        variant: the code to run, such as "avx2"; None: the best that this CPU can.
        pin: bind each worker thread to a core of its own.
        max_memory: bytes that the model's sessions may hold together, the one inside included; None: no bound. Weights,
            which are mapped, are not counted.
        check_weights: False: only size and header of the weights are checked, and pages nobody needs are never read.

    Raises:
        LlmcError: a file is missing, damaged or of another build, or this CPU cannot run it.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    check_machine(manifest)
    check_files(folder, manifest)
    shared = threads if isinstance(threads, Threads) else None
    if variant is not None and not isinstance(variant, str):
        raise LlmcError(f"variant is {variant!r}, must be a name or None")
    options = native.Options(
        threads=count(None if isinstance(threads, Threads) else threads),
        pin=bool(pin),
        variant=variant.encode() if variant else None,
        skip_weights_check=not check_weights,
        max_memory=memory_bound(max_memory),
    )
    return Model(folder, manifest, options, shared)


@dataclass(frozen=True)
class MemoryNeeded:
    """Bytes: `weights` are mapped once for all; `arena` (intermediate results) and `states` each session has."""

    weights: int
    arena: int
    states: int


class Model(TextCalls, GenerationCalls, SessionsCalls, SpeechCalls):
    """A loaded model. Thread-safe: calls on it take turns, sessions of it may run at once. A context manager too.

    Attributes:
        functions: name -> Function, in order; most models have one, "forward".
        states: name -> StateInfo: what a session keeps from call to call; most models have none.
        inputs, outputs: name -> TensorInfo, in order, of the first function.
        dims: name -> inclusive bounds, of all functions.
        lengths: the dims along which states grow.
        adapters: names of those beside the model's own weights, of which a session may have one.
        labels: names of the classes, where the model has them.
        task: such as "text-classification".
        manifest: all that is known about the artifact.
        threads, variant: what it runs with.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, options: native.Options, shared: Threads | None = None
    ) -> None:
        library = native.Library(folder / MODULE)
        if shared is not None:
            options.shared = shared.opened(library)
        handle = native.Handle(library, folder, options, shared)
        signature = read_signature(handle.info)
        check_same(manifest, handle.info, signature)
        self._handle: native.Handle | None = handle
        self.path, self.manifest = folder, manifest
        self.functions, self.states, self.dims = signature.functions, signature.states, signature.dims
        self.lengths, self.adapters = signature.lengths, signature.adapters
        self._first = next(iter(self.functions.values()))
        self.inputs, self.outputs = self._first.inputs, self._first.outputs
        self.labels, self.task, self.name = manifest.labels, manifest.task, manifest.name
        self.threads: int = handle.info.threads
        self.variant: str = handle.info.variant.decode()
        self.load_seconds: float = handle.info.load_seconds
        self._idle: list[Session] = []
        self._ready = ReadyCalls(library, Way(library.run, (handle.pointer,), str(folder)))

    def __call__(self, *, out: Mapping[str, Array] | None = None, **inputs: Any) -> dict[str, Array]:
        """Run once; see `run`."""
        return self.run(inputs, out)

    def run(self, inputs: Mapping[str, Any], out: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Run the first function once, without the GIL. One that has states runs in a session only.

        Args:
            inputs: name -> array, or anything with DLPack on the CPU (torch tensors), or lists of ints.
                An array of the right dtype that is C-contiguous is used where it lies; nobody may write to
                it meanwhile. Inputs with a default may be left out.
            out: name -> array to write an output into; the others are allocated.

        Returns:
            name -> array, for every output.

        Raises:
            LlmcError: an input is missing, unknown, of wrong dtype or shape, or a value is out of its range.
        """
        handle = self._open_handle()
        results = self._ready.call(inputs) if out is None else None
        if results is not None:
            return results
        self._check_alone()
        caller = Caller(handle.library, handle.library.output_shapes, *self._ready.way)
        results = caller(self._first, inputs, out)
        self._ready.note(self._first, inputs, results)
        return results

    def session(
        self,
        threads: int | Threads | None = None,
        max_memory: int | None = None,
        *,
        pin: bool = False,
        adapter: str | None = None,
    ) -> Session:
        """Begin a sequence of calls; see `Session`.

        Args:
            threads: None: the model's, whose sessions take turns; 1: the calling thread alone; n: threads of its own;
                or a `Threads` to share.
            max_memory: bytes that it may hold; None: no bound but the model's.
            pin: bind each of its own worker threads to a core.
            adapter: a name in `adapters`; None: the model's own weights alone.

        Raises:
            LlmcError: an option makes no sense, there is no such adapter, the system has no more threads, or the model
                is closed.
        """
        return Session(self, threads, max_memory, pin=pin, adapter=adapter)

    def memory_needed(self, function: str | None = None, **sizes: int) -> MemoryNeeded:
        """What one call at these sizes takes; nothing is run.

        Args:
            function: its name; None: the first.
            sizes: of the dims; a length is that before the call. By default 0 for lengths and 1 for others.

        Raises:
            LlmcError: a name is unknown, or a size is out of bounds.
        """
        from llmc.runtime.benchmark import sizes_array

        name = next(iter(self.functions)) if function is None else function
        check_names("function", [name], self.functions)
        handle, memory, error = self._open_handle(), native.Memory(), native.Error()
        least = {d: 0 if d in self.lengths else max(1, low) for d, (low, _) in self.dims.items()}
        array = sizes_array(self, {**least, **sizes})
        number = self.functions[name].number
        status = handle.library.memory_needed(handle.pointer, number, array, byref(memory), byref(error))
        handle.library.check(status, error, str(self.path))
        return MemoryNeeded(memory.weights, memory.arena, memory.states)

    @property
    def generates(self) -> bool:
        """Whether it continues texts: `generate`, `stream`, `chat`, `search`."""
        return self.manifest.generation is not None

    @property
    def scores(self) -> str | None:
        """What turns logits into what is told: "softmax", "sigmoid" or "none"; None if the artifact does not say."""
        found = self.manifest.postprocess.get("scores")
        return None if found is None else str(found)

    def preprocess(
        self,
        *,
        images: Any = None,
        audio: Any = None,
        texts: Any = None,
        sampling_rate: int | None = None,
        resample: bool = False,
    ) -> dict[str, Array]:
        """The inputs of one batch, as transformers' processors on Pillow and NumPy make them: `model(**made)`.

        Args:
            images: paths, images of Pillow (`llmc[vision]`), or arrays u8 [height, width, 3]; one or a list.
            audio: paths of sound files, or samples as floats [samples] between -1 and 1; one or a list.
            texts: of a model that reads texts beside images; a text or a list.
            sampling_rate: of `audio` that is samples; of files it is known.
            resample: whether audio at another rate than the model's is converted (needs soxr) or an error.

        Raises:
            LlmcError: a file is none, damaged or does not fit, the model takes no such thing, or its manifest does not
                say how.
        """
        from llmc.runtime.media import prepare

        return prepare(self, images, audio, texts, sampling_rate, resample)

    def benchmark(self, *, duration: float = 3.0, profile: bool = False, **options: Any) -> BenchmarkReport:
        """Time the model on random valid inputs; see `llmc.runtime.benchmark.run_benchmark`."""
        from llmc.runtime.benchmark import run_benchmark

        return run_benchmark(self, duration=duration, profile=profile, **options)

    def benchmark_generation(self, **options: Any) -> GenerationBenchmark:
        """Time prompts and new tokens; see `llmc.runtime.generation_benchmark.benchmark_generation`."""
        from llmc.runtime.generation_benchmark import benchmark_generation

        return benchmark_generation(self, **options)

    def selftest(self) -> SelftestResult:
        """Run the samples that the artifact carries; see `llmc.runtime.selftest.run_selftest`."""
        from llmc.runtime.selftest import run_selftest

        return run_selftest(self)

    def close(self) -> None:
        """Give everything back as soon as the calls in progress have returned. Closing twice is fine."""
        self._handle = None
        self._idle.clear()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise LlmcError(
            "a model cannot be pickled or copied: it is memory and code of this process",
            at=str(self.path),
            hint="give its path away and load it there: llmc.load(path)",
        )

    def __repr__(self) -> str:
        if len(self.functions) == 1:
            return f"<llmc.Model {self.name} {self._first}>"
        return f"<llmc.Model {self.name} {', '.join(f'{n}{f}' for n, f in self.functions.items())}>"

    def _kept_session(self) -> Session:
        """One that a text has left here, or a new one."""
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread was first
                session = self._idle.pop()
                if session.is_open:  # collected garbage may have left one that is not
                    return session
        return self.session()

    def _check_alone(self) -> None:
        """C refuses it too, and says how a C program does it."""
        if self._first.states:
            raise LlmcError(
                f"function {next(iter(self.functions))} keeps state {next(iter(self._first.states))} from call to "
                "call, so it needs a session",
                at=str(self.path),
                hint="run it in one: with model.session() as session: session.run(inputs)",
            )

    def _open_handle(self) -> native.Handle:
        handle = self._handle
        if handle is None or not handle.pointer:
            raise LlmcError("the model is closed", at=str(self.path), hint="load it again")
        return handle


__all__ = ["Model", "TensorInfo", "load"]
