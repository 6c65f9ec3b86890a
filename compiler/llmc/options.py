"""What a compile can be asked for, checked before any work begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, cast

from llmc import embed
from llmc.compiler import extensions
from llmc.compiler.pipeline import Pipeline
from llmc.compiler.places import PLACES, Placed, additions, placed
from llmc.done import ADDED
from llmc.errors import LlmcError
from llmc.passes import LEVEL_PARTS, PASSES
from llmc.passes.compress import shortcuts
from llmc.passes.compress.equalise import CorrectBias
from llmc.passes.quantise.states import DTYPES
from llmc.quantisation import Quantisation, rounding_of
from llmc.report import Progress
from llmc.targets import host, toolchain
from llmc.targets.backends import backend_of

TUNE_SECONDS = 60.0
PADDING = ("zero", "computed")  # what outputs by token hold at padding
MATMUL: Mapping[str, Pipeline] = {  # how products of float32 with weights are computed, and the passes for it
    "fma": Pipeline(()),
    "int8x3": Pipeline.parse("split,cse", PASSES),
}


STATES: Mapping[str, Pipeline] = {  # how sessions keep keys and values, and the passes for it
    "fp32": Pipeline(()),
    **{dtype: Pipeline.parse(f"states{{dtype={dtype}}}", PASSES) for dtype in DTYPES},
}


class Options(TypedDict, total=False):
    """What the three ways to compile have in common, by keyword.

    Args:
        target: a name in `llmc.targets.TARGETS`, or "native" for this machine.
        level: 0 to 3, which passes of `llmc.passes.LEVEL_PARTS` run; `passes` is a pipeline text instead of them.
        add_passes: passes more, each SPEC or SPEC@PLACE (compiler/places.py).
        only_passes: a pipeline text that runs instead of everything else, what the target needs included.
        prune, share, factorize: compression as `--prune 0.3` writes it (docs/compression.md), before `quant`.
        allow_noop: compile all the same where one of these options, `quant` or `matmul` changes nothing in the model,
            which is an error otherwise.
        verify_each: hold each pass to its promise by the interpreter, which takes long.
        quant: "none", "int8", "int8-static", "fp16", "bf16", "bf16a16", "w8", "w4" or "w4a8": see docs/quantisation.md.
        attention: "int8" or "float": what int8 and int8-static do with attention on CPUs.
        group: of w8, w4 and w4a8, columns that share a scale, a multiple of 16, or 0 for a whole row.
        zero_points: of w8, w4 and w4a8, whether each group has a level of its own for 0.
        calib: samples for int8-static, for w8 and w4, which round by them, and for passes that want some, a .txt,
            .jsonl, .csv or .npz file, a folder of images, or "auto".
        calib_method: "minmax", "percentile" or "entropy".
        calib_stats: folder that keeps what is gathered of the samples: a compile that was stopped goes on.
        calib_merge: folders of what was gathered of other parts of the data, which are merged in.
        measure: time kernels on this machine where the cost model says what layers gain (docs/compression.md).
        state_dtype: how sessions keep keys and values: "fp32", "fp16" or "int8" (docs/generation.md).
        padding: what outputs that have a row for each token hold where attention_mask is 0: "zero", which lets
            encoders skip padding, or "computed", the values that the source model has there. The default of
            `compile` is "zero", of the other two "computed".
        matmul: "fma", or "int8x3": float32 products with weights in three parts of 8 bits each, for processors with
            AMX (docs/numerics.md).
        tune: search for the fastest schedule of each product on this machine (docs/tuning.md), for `tune_time`
            seconds at most; those that the cache has take no time.
        keep: folder that gets the graphs and the generated C.
        cc: C compiler command instead of the `ziglang` package's.
        emit: a form of the model beside module.so, one of `llmc.embed.FORMS`.
        prefix: goes before every symbol of a static library.
        progress: called with (stage, fraction done) as each stage begins.
        say: called with each line that `verify_each` finds, and where a C compiler takes long.
    """

    target: str
    level: int
    passes: str | None
    add_passes: str | Sequence[str]
    only_passes: str | None
    prune: str | Sequence[str]
    share: str | None
    factorize: str | None
    allow_noop: bool
    verify_each: bool
    quant: str
    attention: str
    group: int | None
    zero_points: bool
    calib: str | Path | None
    calib_method: str
    calib_stats: str | Path | None
    calib_merge: str | Path | Sequence[str | Path]
    measure: bool
    state_dtype: str
    padding: str
    matmul: str
    tune: bool
    tune_time: float
    keep: str | Path | None
    cc: str | None
    emit: str
    prefix: str
    progress: Progress | None
    say: Callable[[str], None]


# What makes a model smaller, or faster and less exact: the options it is compared without.
LESS = (
    *("prune", "share", "factorize", "quant", "calib", "calib_method", "attention", "group", "state_dtype"),
    *("measure", "keep", "zero_points", "calib_stats", "calib_merge"),
)


class Order:
    """What `Options` mean, checked before any work begins."""

    def __init__(self, output: str | Path, name: str | None, options: Options) -> None:
        unknown = options.keys() - Options.__annotations__.keys()
        if unknown:
            raise TypeError(f"compile got unknown options: {', '.join(sorted(unknown))}")
        options = self._options = _given(options)
        extensions.load_installed()
        self.output, self.name = Path(output), name
        self.verify_each, self.padding = options.get("verify_each", False), options.get("padding", "computed")
        self.keep, self.cc, self.progress = options.get("keep"), options.get("cc"), options.get("progress")
        self.say: Callable[[str], None] = options.get("say", lambda line: None)
        toolchain.want_compiler(self.cc)
        self.form = embed.form(options.get("emit", "shared"), options.get("prefix", ""))
        self.target = host.find_target(options.get("target", "native"))
        self.backend = backend_of(self.target)
        self.only, self.level = options.get("only_passes") is not None, options.get("level", 3)
        self.whole = self.level == _HIGHEST
        self.allow_noop = options.get("allow_noop", False)
        self.placed = placed_passes(options)
        self.options_by_step = _options_by_step(self.placed, options)
        self.quant = Quantisation(
            options.get("quant", "none"),
            options.get("calib"),
            options.get("calib_method", "percentile"),
            options.get("attention", "int8"),
            wanted=_want_samples(self.placed),
            group=options.get("group"),
            zero_points=options.get("zero_points", False),
            stats=None if (stats := options.get("calib_stats")) is None else Path(stats),
            merged=_merged(options),
        )
        self.measure = options.get("measure", False)
        self.tune, self.tune_time = options.get("tune", False), options.get("tune_time", TUNE_SECONDS)
        self.matmul = options.get("matmul", "fma")
        self.state_dtype = options.get("state_dtype", "fp32")
        self._check()

    def plain(self) -> Order | None:
        """The same without what makes a model smaller or less exact; None where nothing does.

        None too where passes that stay want samples, and there are only statistics, which are of this model.
        """
        asked = (self.quant.mode, self.state_dtype, bool(self._compressed)) != ("none", "fp32", False)
        if not asked:
            return None
        kept = {name: value for name, value in self._options.items() if name not in LESS}
        if _want_samples(placed_passes(cast(Options, kept))):
            if self.quant.calib is None:
                return None
            kept |= {name: self._options[name] for name in ("calib", "calib_method") if name in self._options}
        return Order(self.output, self.name, cast(Options, {**kept, "allow_noop": True}))

    @property
    def _named(self) -> set[str]:
        return {step.change.name for step in self.placed.pipeline.steps}

    @property
    def _compressed(self) -> str:
        return _compression(self._options)

    def _check(self) -> None:
        if self.padding not in PADDING:
            raise LlmcError(
                f"no padding {self.padding!r}", at="--padding", hint=f"use {' or '.join(PADDING)}"
            )
        if self.state_dtype not in STATES:
            hint = f"use {', '.join(STATES)}"
            raise LlmcError(f"no states of {self.state_dtype!r}", at="--state-dtype", hint=hint)
        self._check_matmul()
        self._check_backend()
        if self.measure and not self.backend.runs_here(self.target):
            hint = "leave it out: the cost model's figures are the same everywhere"
            raise LlmcError(f"kernels for {self.target.name} do not run here", at="--measure", hint=hint)
        if self.measure and self.plain() is None:
            hint = "give --quant, --prune, --share, --factorize or --state-dtype, or a bound"
            raise LlmcError("there is nothing to measure the gain of", at="--measure", hint=hint)
        self._check_corrections()
        if self.tune:
            self.backend.check_tuning(self.target)
        if self.only and (self.quant.mode, self.matmul, self.state_dtype) != ("none", "fma", "fp32"):
            raise LlmcError(
                "--only-passes runs nothing else",
                at=f"--quant {self.quant.mode}, --matmul {self.matmul}, --state-dtype {self.state_dtype}",
                hint="use --passes, or write what they append into the pipeline: `llmc inspect` shows it",
            )

    def _check_corrections(self) -> None:
        """Refuse `correct-bias` for another rounding than the one that comes after it."""
        steps = [step.change for step in self.placed.pipeline.steps]
        steps += [step.change for step in self.quant.pipeline(False, ()).steps]
        for at, change in enumerate(steps):
            if not isinstance(change, CorrectBias):
                continue
            after = next((found for later in steps[at:] if (found := rounding_of(later))), None)
            mine = f"with bits={change.bits},block={change.block},rounding={change.rounding}"
            if after not in (None, mine):
                raise LlmcError(
                    f"what comes after correct-bias rounds {after}, and leaves other errors than those that "
                    "it makes up for",
                    found=f"correct-bias {mine}",
                    hint="give it the same options, or leave it out; GPTQ and halves have none that it knows",
                )

    def _check_matmul(self) -> None:
        if self.matmul not in MATMUL:
            raise LlmcError(f"no matmul {self.matmul!r}", at="--matmul", hint=f"use {' or '.join(MATMUL)}")
        if self.matmul == "fma":
            return
        if self.matmul not in self.backend.matmuls(self.target):
            raise LlmcError(
                f"--matmul {self.matmul} is for processors with AMX: without, fma is faster",
                at=f"--target {self.target.name}",
                found=", ".join(variant.name for variant in self.backend.variants(self.target)),
                hint="leave it out, or compile with --target x86-avx512 for a processor that has AMX",
            )
        if self.quant.mode != "none":
            raise LlmcError(
                f"--matmul {self.matmul} is for float32",
                at=f"--quant {self.quant.mode}",
                hint="use one of the two",
            )
        if self.tune:
            raise LlmcError(
                "--tune searches for kernels of fma", at=f"--matmul {self.matmul}", hint="use one of the two"
            )

    def _check_backend(self) -> None:
        backend, target = self.backend, self.target.name
        if self.form.name not in backend.forms:
            raise LlmcError(
                f"artifacts for {target} have no other form than {' or '.join(map(_file, backend.forms))}",
                at=f"--emit {self.form.name}",
            )
        if self.quant.zero_points and not backend.group_zeros:
            raise LlmcError(
                f"the backend {backend.name} has no kernels for groups with zero points",
                at=f"--target {target}",
                found="--zero-points",
                hint="leave it out",
            )
        if self.quant.mode != "none" and self.quant.mode not in backend.quantisations:
            raise LlmcError(
                f"the backend {backend.name} has no kernels for {self.quant.mode}",
                at=f"--target {target}",
                hint=f"it has: {', '.join(sorted(backend.quantisations)) or 'float32 only'}",
            )


def _given(options: Options) -> Options:
    """Without those that are None, as a program passes on what its own user has not said."""
    return cast(Options, {name: value for name, value in options.items() if value is not None})


_HIGHEST = len(LEVEL_PARTS) - 1


def _file(form: str) -> str:
    return {"shared": "module.so", "static": embed.LIBRARY, "executable": embed.PROGRAM}.get(form, form)


def placed_passes(options: Options) -> Placed:
    """The passes of the level or of `passes`, the compression that is asked for, and what is added.

    Raises:
        LlmcError: an option names what there is not, or `only_passes` is not the only one.
    """
    if options.get("only_passes") is not None:
        return _only(options)
    level, passes = options.get("level", 3), options.get("passes")
    if passes is None and level not in range(len(LEVEL_PARTS)):
        raise LlmcError(f"there is no optimisation level {level!r}", hint=f"use 0 to {_HIGHEST}")
    parts = LEVEL_PARTS[level] if passes is None else {"simplify": passes}
    return placed({**parts, "compress": _compression(options)}, PASSES).joined(_added(options))


def _want_samples(passes: Placed) -> bool:
    return any(step.change.wants_samples for step in passes.pipeline.steps)


def _merged(options: Options) -> tuple[Path, ...]:
    given = options.get("calib_merge") or ()
    return tuple(map(Path, [given] if isinstance(given, str | Path) else given))


def _compression(options: Options) -> str:
    prune = options.get("prune", ())
    given = (prune,) if isinstance(prune, str) else prune
    samples = options.get("calib") is not None or bool(_merged(options))
    int8 = options.get("quant") in ("int8", "int8-static")
    return shortcuts.compression(
        given, options.get("share"), options.get("factorize"), samples=samples, int8=int8
    )


def _options_by_step(placed: Placed, options: Options) -> dict[int, str]:
    """id of a step -> the option that asked for it, if one did."""
    if options.get("only_passes") is not None:
        return {}
    found: dict[int, str] = {}
    for place in PLACES:
        steps, added = placed.at(place).steps, len(_added(options).at(place).steps)
        own, more = steps[: len(steps) - added], steps[len(steps) - added :]
        if place == "compress":
            found |= {id(step): shortcuts.option(step.change.name) for step in own}
        found |= dict.fromkeys(map(id, more), ADDED)
    return found


def _added(options: Options) -> Placed:
    added = options.get("add_passes", ())
    return additions((added,) if isinstance(added, str) else added, PASSES)


def _others(options: Options) -> dict[str, object]:
    """What asks for passes besides `only_passes`."""
    return {
        "--passes": options.get("passes"),
        "--add-pass": options.get("add_passes"),
        "--prune": options.get("prune"),
        "--share": options.get("share"),
        "--factorize": options.get("factorize"),
    }


def _only(options: Options) -> Placed:
    """The passes of `only_passes`.

    Raises:
        LlmcError: something else is asked for as well.
    """
    others = [flag for flag, value in _others(options).items() if value]
    if others:
        raise LlmcError(
            "--only-passes runs nothing else",
            at=", ".join(others),
            hint="write all passes into its text, or use --passes",
        )
    return placed({"user": options["only_passes"] or ""}, PASSES)
