"""The one exception a user of llmc sees; every package may import it."""

from __future__ import annotations


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
