"""The places of a pipeline: where passes of a level, of a target, of `--quant` and of users run.

A place's own passes come first, then those added to it, then those of the target.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from llmc.compiler.pipeline import Pipeline, Step
from llmc.compiler.spec import Pass, near
from llmc.errors import LlmcError

PLACES: Mapping[str, str] = {
    "import": "the graph as the model's file has it",
    "simplify": "exact rewrites",
    "user": "passes of users that name no other place: nothing is fused yet",
    "fuse": "what one kernel can do together",
    "compress": "smaller weights, and rows that need not be computed",
    "quantise": "--quant, --matmul and --state-dtype",
    "layout": "in which order values lie",
    "target": "what only one kind of machine wants",
    "final": "after all others",
}
USER = "user"


@dataclass(frozen=True)
class Placed:
    """The passes of each place, in the order of `PLACES`."""

    parts: Mapping[str, tuple[Step, ...]] = field(default_factory=dict)

    def at(self, place: str) -> Pipeline:
        """The passes of one place."""
        return Pipeline(self.parts.get(place, ()))

    def joined(self, *others: Placed) -> Placed:
        """These, and at each place those of the others behind them."""
        return Placed({place: sum((p.at(place).steps for p in (self, *others)), ()) for place in PLACES})

    @property
    def pipeline(self) -> Pipeline:
        """All of them, in order."""
        return Pipeline(tuple(step for place in PLACES for step in self.at(place).steps))


def placed(texts: Mapping[str, str], registry: Mapping[str, type[Pass]]) -> Placed:
    """Pipeline texts by place.

    Raises:
        LlmcError: there is no such place, or a text is malformed or names a pass or option that does not exist.
    """
    for place in texts:
        _check(place, texts[place])
    return Placed({place: Pipeline.parse(text, registry).steps for place, text in texts.items()})


def additions(texts: Iterable[str], registry: Mapping[str, type[Pass]]) -> Placed:
    """What `--add-pass SPEC[@PLACE]` asks for; SPEC is a pipeline text.

    Raises:
        LlmcError: as `placed`.
    """
    return Placed().joined(*(_addition(text, registry) for text in texts))


def _addition(text: str, registry: Mapping[str, type[Pass]]) -> Placed:
    spec, at, place = text.rpartition("@")
    if not at or any(mark in place for mark in '}:/"'):  # an @ within a file's name or an option
        spec, place = text, USER
    if not spec.strip():
        raise LlmcError("no pass is named", at=f"--add-pass {text}", hint="write SPEC or SPEC@PLACE")
    _check(place, f"--add-pass {text}")
    return placed({place: spec}, registry)


def _check(place: str, at: str) -> None:
    if place not in PLACES:
        raise LlmcError(f"the pipeline has no place {place!r}", at=at, hint=near(place, PLACES))
