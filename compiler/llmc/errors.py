"""The exception and the warning that a user of llmc sees, and the extras; every package may import it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# Extra -> the modules that are missed without it.
EXTRAS = {
    "": ("numpy", "click", "rich"),
    "text": ("tokenizers", "jinja2"),
    "vision": ("PIL",),
    "audio": ("soundfile", "soxr"),
    "grammar": ("llguidance",),
    "metrics": ("sacrebleu", "rouge_score"),
    "adapters": ("peft",),
    "gguf": ("gguf",),
    "tokenizers": ("sentencepiece", "tiktoken"),
    "compile": (
        "torch",
        "transformers",
        "safetensors",
        "onnx",
        "google",  # protobuf, which onnx brings
        "tvm",
        "tvm_ffi",
        "ziglang",
        "sympy",
        "networkx",
        "scipy",
        "accelerate",
    ),
    "ray": ("ray",),
}


class LlmcError(Exception):
    """A mistake outside llmc: bad input, a missing file, an unsupported op.

    Args:
        problem: what is wrong, lower case, values included.
        at: where: a module path, node, file or option.
        found: what was found there.
        hint: what the user can do about it.
    """

    def __init__(
        self, problem: str, *, at: str | None = None, found: str | None = None, hint: str | None = None
    ) -> None:
        self.problem, self.at, self.found, self.hint = problem, at, found, hint
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [self.problem]
        for label, text in (("at", self.at), ("found", self.found), ("hint", self.hint)):
            if text:
                lines.append(f"  {label + ':':<7}{text}")
        return "\n".join(lines)


class LlmcWarning(UserWarning):
    """Something goes on otherwise than a user may think, and stops nothing."""


class TextsCut(LlmcWarning):
    """Texts were longer than the model takes and only a part of each was used.

    Args:
        count, of: how many texts, of how many.
        longest: tokens that the model takes.
        who: of which model, where there are two.
        hint: how not to.
    """

    def __init__(
        self, count: int, of: int, longest: int | None = None, who: str = "", hint: str = ""
    ) -> None:
        self.count = count
        texts = "the text was" if of == 1 else f"{count} of {of} texts {'was' if count == 1 else 'were'}"
        bound = "what" if longest is None else f"the {longest} tokens that"
        super().__init__(f"{who}{texts} cut to {bound} the model takes" + (f"; {hint}" if hint else ""))


def lacks(module: str) -> LlmcError | None:
    """What to say of a module that cannot be found; None if llmc does not need it.

    Args:
        module: its import name, dots included.
    """
    package = module.split(".")[0]
    for extra, modules in EXTRAS.items():
        if package in modules:
            wanted = f"'llmc[{extra}]'" if extra else "llmc"
            return LlmcError(f"this needs the package {package}", hint=f"pip install {wanted}")
    return None


@contextmanager
def extras_named() -> Iterator[None]:
    """Within it, and in functions that it decorates, a package that is not installed is an `LlmcError`.

    Raises:
        LlmcError: a module of `EXTRAS` was not found; the hint says which extra brings it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        told = lacks(error.name or "")
        if told is None:
            raise
        raise told from None


def many(count: int, things: str) -> str:
    """A count with its things, which are told in the plural: `1 layer`, `2 layers`, `1 product of levels`."""
    first, *rest = things.split(" ")
    return " ".join([str(count), first.removesuffix("s") if count == 1 else first, *rest])


def first_line(error: BaseException) -> str:
    """The first line of a library's message and what it announces, or its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1]}"
    return lines[0] if lines else type(error).__name__


LONGEST = 500  # characters of what an exception says


def in_a_line(error: BaseException) -> str:
    """Its type and what it says, however many lines or pages that is."""
    try:
        said = " ".join((error.problem if isinstance(error, LlmcError) else str(error)).split())
    except Exception:  # of a class of somebody else's
        said = ""
    short = said if len(said) <= LONGEST else f"{said[:LONGEST]}..."
    return f"{type(error).__name__}: {short}" if short else type(error).__name__
