"""`simplify`: identities that hold bit for bit, applied until none is left."""

from __future__ import annotations

from dataclasses import dataclass

from llmc.compiler.rewrite import RewritePass
from llmc.passes.simplify import arithmetic, indices, shapes

RULES = (*shapes.RULES, *arithmetic.RULES, *indices.RULES)


@dataclass(frozen=True)
class Simplify(RewritePass):
    """Drop what changes nothing, decide what index arithmetic knows, broadcast as late as possible."""

    name = "simplify"
    rules = RULES
