"""The steps of a plan as the template of a program writes them: addresses, sizes, arguments, in C."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llmc.compiler.c_text import c_size, c_string
from llmc.compiler.calls import Call, Kernel, Operand
from llmc.compiler.dims import Dim, dim
from llmc.compiler.graph import Node
from llmc.compiler.plan import Copy, Plan
from llmc.compiler.plan_bodies import Body, Choice, Move, Repeat
from llmc.compiler.slots import Place, nbytes, root
from llmc.compiler.together import row_bytes

_APART = {"own", "state", "next"}  # kinds of places that each session of a run has for itself
LANES = 16  # multiply-adds in the unit of `Call.cost`


class Steps:
    """What the template writes for the steps of a plan; `leaves` gets those that compute or move something.

    A step that serves all sessions of a run is written once, one that does not in a loop over them: there sizes and
    addresses are those of one session.
    """

    def __init__(self, plan: Plan, kernels: Sequence[Kernel], dims: Sequence[str]) -> None:
        self.plan, self.kernels, self.dims = plan, {k.symbol: i for i, k in enumerate(kernels)}, dims
        self.leaves: list[dict[str, Any]] = []

    def write(self, plan: Plan, steps: Sequence[Any], times: Dim) -> list[dict[str, Any]]:
        """The steps of a program or body that runs `times`."""
        return [self._step(plan, step, times) for step in steps]

    def _step(self, plan: Plan, step: Any, times: Dim) -> dict[str, Any]:
        match step:
            case Repeat():
                return self._loop(plan, step, times)
            case Choice(condition=condition, bodies=bodies):
                both = [self._body(plan, body, times) for body in bodies]
                return {"kind": "branch", "condition": pointer(condition, plan), "bodies": both}
            case Call():
                leaf = self._call(plan, step, times)
            case Copy(node=node, output=output):
                leaf = self._copy(plan, node, Place("output", output), times)
            case Move(node=node, to=to):
                leaf = self._copy(plan, node, to, times)
        leaf["number"] = len(self.leaves)
        self.leaves.append(leaf)
        return leaf

    def _body(self, plan: Plan, body: Body, times: Dim) -> list[dict[str, Any]]:
        return self.write(plan.within(body), body.steps, times)

    def _loop(self, plan: Plan, loop: Repeat, times: Dim) -> dict[str, Any]:
        count = loop.node.attributes["count"]
        steps = self._body(plan, loop.body, dim(times * count))
        return {
            "kind": "loop",
            "number": max(len(self.leaves) - 1, 0),  # whose time it is to hand out what was carried last
            "source": str(loop.node.source).replace("*/", ""),
            "count": c_size(count),
            "reverse": loop.node.attributes["reverse"],
            "moving": [(m.pointer, pointer(m.base, plan), c_size(m.step)) for m in loop.moving],
            "carried": [
                {
                    "now": c.now,
                    "after": c.after,
                    "first": pointer(c.first, plan),
                    "last": pointer(c.last, plan),
                    "spare": c.spare and pointer(c.spare, plan),
                    "bytes": c_size(c.bytes),
                }
                for c in loop.carried
            ],
            "steps": steps,
        }

    def _copy(self, plan: Plan, node: Node, to: Place, times: Dim) -> dict[str, Any]:
        place = plan.place(node)
        return {
            "kind": "copy",
            "apart": plan.together is not None,
            "own": plan.together is not None and "own" in (place.kind, to.kind),
            "company": place.alone == to,  # alone, the value is there
            "family": "copy",
            "source": c_string(str(node.source)),
            "from": self._at(plan, node),
            "to": self._part(plan, to, node),
            "size": c_size(nbytes(node)),
            "flops": "0",
            "bytes": c_size(dim(2 * times * nbytes(node))) if times != 1 else f"2 * {c_size(nbytes(node))}",
        }

    def _call(self, plan: Plan, call: Call, times: Dim) -> dict[str, Any]:
        *reads, written = call.operands
        assert isinstance(written, Node)
        apart = plan.together is not None and not plan.together.serves_all(call)
        places = [*map(plan.place, reads), *plan.written(written)]
        assert plan.together is None or apart or not _APART & {p.kind for p in places}, (
            f"{call.source} of all"
        )
        results = plan.results.get(written, (written,))
        return {
            "kind": "call",
            "apart": apart,
            "own": any(place.kind == "own" for place in places),
            "kernel": call.kernel.symbol,
            "index": self.kernels[call.kernel.symbol],
            "family": call.kernel.family,
            "source": c_string(call.source.path or call.source.line),
            "reads": [self._at(plan, o) if apart else pointer(plan.place(o), plan) for o in reads],
            "writes": [self._at(plan, r) if apart else pointer(plan.place(r), plan) for r in results],
            "scalars": [c_size(s) for s in call.scalars],
            "items": c_size(call.items),
            "cost": c_size(call.cost * LANES),
            "flops": c_size(call.flops if times == 1 else dim(call.flops * times)),
            "bytes": c_size(call.bytes if times == 1 else dim(call.bytes * times)),
        }

    def _at(self, plan: Plan, operand: Operand) -> str:
        """C for the address of what a session has of an operand; of all of it where there is one session only."""
        place = plan.place(operand)
        return self._part(plan, place, root(operand)) if isinstance(operand, Node) else pointer(place, plan)

    def _part(self, plan: Plan, place: Place, node: Node) -> str:
        whole, together = pointer(place, plan), plan.together
        if together is None or place.kind == "weight":
            return whole
        if place.kind in ("state", "next", "own"):
            return pointer(place, plan, "p")
        rows = together.rows(node)
        if not rows:
            return whole
        row = c_size(row_bytes(nbytes(node), rows))
        return f"(unsigned char *)({whole}) + {row} * p->before[{self.dims.index(rows)}]"


def pointer(place: Place, plan: Plan, frame: str = "f") -> str:
    """C for an address; states and what sessions have for themselves are those of `frame`."""
    if place.alone is not None:
        there = pointer(place.alone, plan)
        return f"(f->n_parts == 1 ? {there} : {pointer(replace(place, alone=None), plan)})"
    match place.kind:
        case "weight":
            return f"f->weights + {plan.weights[place.index].offset}"
        case "slot":
            return f"f->arena + at[{place.index}]"
        case "own":
            return f"p->arena + own[{place.index}]"
        case "input":
            return f"f->inputs[{place.index}]"
        case "pointer":
            return f"p{place.index}"
        case "state" if place.offset != 0:
            return f"(unsigned char *){frame}->states[{place.index}] + {c_size(place.offset)}"
        case "state":
            return f"{frame}->states[{place.index}]"
        case "next":
            return f"{frame}->next[{place.index}]"
    return f"f->outputs[{place.index}]"
