"""What each option of a compile did, for manifest and report; one that did nothing at all is an error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmc.compiler.effects import Effect, Verdict, joined
from llmc.compiler.pipeline import PassRun, Step
from llmc.errors import LlmcError
from llmc.passes.compress.prune import SKIPPING

ADDED = "--add-pass"
OWN = "the file's own"  # passes that nobody asked for: a model came quantised


@dataclass(frozen=True)
class Asked:
    """The run of one pass that an option asked for.

    Args:
        option: as it is typed, such as `--prune`.
        step: the pass.
        run: how it went in one function.
    """

    option: str
    step: Step
    run: PassRun

    @property
    def unit(self) -> tuple[str, ...]:
        """What must do something: the passes of `--quant` together, those of compression one by one."""
        together = self.option.startswith(("--quant", "--matmul", "--state-dtype"))
        return (self.option,) if together else (self.option, self.text)

    @property
    def effects(self) -> tuple[Effect, ...]:
        """What the pass tells; of one that tells nothing, whether it changed the function."""
        if self.run.effects or self.option != ADDED:
            return self.run.effects
        reason = "" if self.run.changed else "where it had nothing to do"
        return (Effect("functions", (Verdict(self.run, 1, reason),)),)

    @property
    def text(self) -> str:
        """The pass, without what calibration found."""
        text = str(self.step)
        return self.step.label if any(f"{found}=[" in text for found in ("scales", "factors")) else text


def with_zeros_multiplied(asked: Asked, reason: str) -> Asked:
    """As a pass tells it whose zeros no product skips, for a reason."""
    effects = (
        Effect(e.what, tuple(replace(v, reason=v.reason or reason) for v in e.verdicts))
        if e.what == SKIPPING
        else e
        for e in asked.run.effects
    )
    return replace(asked, run=replace(asked.run, effects=tuple(effects)))


def told(asked: Iterable[Asked]) -> list[dict[str, Any]]:
    """The field `effects` of the manifest: for each pass what it changed, what it left, and why."""
    return [
        {
            "option": option,
            "pass": text,
            "of": effect.what,
            "changed": effect.changed,
            "share": round(effect.share, 4),
            "left": dict(effect.left),
        }
        for (option, text), effects in _by_pass(asked)
        for effect in effects
    ]


def _by_pass(asked: Iterable[Asked]) -> list[tuple[tuple[str, str], tuple[Effect, ...]]]:
    """The effects of each pass, over all functions; a pass that tells nothing is left out."""
    found: dict[tuple[str, str], list[Effect]] = {}
    for one in asked:
        found.setdefault((one.option, one.text), []).extend(one.effects)
    return [(key, joined(effects)) for key, effects in found.items() if effects]


def want_all(asked: Sequence[Asked]) -> None:
    """Refuse options that change nothing.

    Raises:
        LlmcError: it names them, and what they left for which reason.
    """
    unused = [
        one
        for unit in _units(asked)
        if not any(e.changed for one in unit for e in one.effects)
        for one in unit
    ]
    if not unused:
        return
    names = list(dict.fromkeys(one.option for one in unused))
    passes = _by_pass(unused)
    came = _came_quantised(asked) if any(name.startswith("--quant") for name in names) else ()
    already = "the model is quantised already, and " if came else ""
    effects = [e for _, found in passes for e in found if e.verdicts or not came]
    said = (*came, *dict.fromkeys(map(_said, effects)))
    raise LlmcError(
        f"{already}{' and '.join(names)} change{'s' if len(names) == 1 else ''} nothing in this model",
        at=", ".join(text for (_, text), _ in passes),
        found="; ".join(said),
        hint=f"leave it out{', give the float model' if came else ''}, or compile all the same with --allow-noop",
    )


def _came_quantised(asked: Iterable[Asked]) -> tuple[str, ...]:
    """What is told of the levels that a model came with, if it has any."""
    effects = joined(effect for one in asked if one.option == OWN for effect in one.effects)
    return tuple(f"{effect} that the file has" for effect in effects if effect.verdicts)


def changed(asked: Iterable[Asked], option: str) -> bool:
    """Whether a pass of an option did anything."""
    return any(effect.changed for one in asked if one.option == option for effect in one.effects)


def idle(asked: Iterable[Asked]) -> list[Step]:
    """The passes that an option asked for, none of which changed the function they ran on."""
    return [one.step for unit in _units(asked) if not any(o.run.changed for o in unit) for one in unit]


def _units(asked: Iterable[Asked]) -> list[list[Asked]]:
    """The runs for each option that must do something."""
    found: dict[tuple[str, ...], list[Asked]] = {}
    for one in asked:
        if one.option not in (ADDED, OWN):
            found.setdefault(one.unit, []).append(one)
    return list(found.values())


def _said(effect: Effect) -> str:
    return str(effect) if effect.verdicts else f"no {effect.what} that the pass knows"
