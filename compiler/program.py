"""The program of an artifact, as C: `module.c` from a plan.

Each function of the module is one of C that calls the kernels in order, on arena offsets worked out from the actual
dims: no interpreter, no graph, no allocation while it runs. Loops and branches of the graph are those of C. The text
is kept by `llmc compile --keep DIR` and meant to be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jinja2

from llmc.compiler.c_text import Tensor, c_size, c_string, state_spec, tensor_spec
from llmc.compiler.calls import Call, Kernel
from llmc.compiler.constraints import Constraint, constraints
from llmc.compiler.counted import counted_dims
from llmc.compiler.graph import Graph
from llmc.compiler.module import Module
from llmc.compiler.plan import ALIGNMENT, Plan
from llmc.compiler.plan_states import state_use
from llmc.compiler.plan_windows import windows
from llmc.compiler.program_steps import Steps
from llmc.compiler.sample_axis import sample_dim
from llmc.compiler.slots import nbytes
from llmc.compiler.together import Together
from llmc.compiler.verify_dims import used_dims


@dataclass(frozen=True)
class Variant:
    """Code for one instruction set.

    Args:
        name: as in the manifest.
        features: LLMC_CPU_* bits it needs.
        peak_flops: FLOP of one round of its `fma_loop`; 0: it has none.
        code_for: family of kernels -> name of the instruction set whose code it uses; None: always its own.
        needs: what a machine must have to run it, in words.
    """

    name: str
    features: int
    peak_flops: int
    code_for: Callable[[str], str] | None = None
    needs: str = ""

    def code(self, family: str) -> str:
        """The instruction set that its kernels of `family` are made for."""
        return self.code_for(family) if self.code_for else self.name


def signature(graph: Graph) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs, in the order of the C interface."""
    inputs = []
    for node in graph.inputs:
        a = node.attributes
        inputs.append(Tensor(a["name"], node.type, a["default"], a["low"], a["high"]))
    return inputs, [Tensor(name, node.type) for name, node in graph.outputs.items()]


def write_program(
    module: Module,
    plans: Mapping[str, Plan],
    variants: Sequence[Variant],
    name: str,
    build_id: str,
    checksums: Sequence[int],
    architectures: Sequence[str] = (),
    device: str = "",
    adapters: Sequence[str] = (),
) -> str:
    """The text of module.c.

    Args:
        checksums: of the blocks of the weights.
        device: the `llmc_device` that launches kernels, made for `architectures`; empty: the program calls them.
        adapters: names, of those that a session may choose.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("llmc.compiler", "."),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    called = [step.kernel for plan in plans.values() for step in plan.leaves if isinstance(step, Call)]
    kernels = list({kernel.symbol: kernel for kernel in called}.values())
    names = list(module.dims)
    return environment.get_template("module.c.jinja").render(
        name=c_string(name),
        build_id=build_id,
        weights_bytes=next(iter(plans.values())).weights_bytes,
        checksums=checksums,
        dims=[(n, *bounds) for n, bounds in module.dims.items()],
        states=[state_spec(state, names) for state in module.states.values()],
        windows=windows(module),
        adapters=[c_string(name) for name in adapters],
        functions=[_function(n, module, plans[n], kernels) for n in module.functions],
        kernels=[_kernel(k) for k in kernels],
        variants=variants,
        codes=lambda family: dict.fromkeys(v.code(family) for v in variants),
        alignment=ALIGNMENT,
        scratch=max([k.scratch for k in kernels], default=0),
        call_bytes=max([8 * (1 + len(k.pointers) + k.scalars) for k in kernels], default=0),
        device=device,
        architectures=c_string(", ".join(architectures)),
    )


def _function(name: str, module: Module, plan: Plan, kernels: Sequence[Kernel]) -> dict[str, Any]:
    """What the template writes for one function."""
    graph, names = module.functions[name], list(module.dims)
    inputs, outputs = signature(graph)
    writer = Steps(plan, kernels, names)
    program = writer.write(plan, plan.steps, 1)
    uses = {state: state_use(graph, state) for state in module.states}
    used = replace(graph, states=tuple(n for n in graph.states if uses[n.attributes["name"]] != "unused"))
    needed, along = used_dims(used), sample_dim(graph)
    return {
        "name": name,
        "counts": [(n, graph.inputs.index(mask)) for n, mask in counted_dims(graph).items()],
        "inputs": [tensor_spec(t, names) for t in inputs],
        "outputs": [tensor_spec(t, names) for t in outputs],
        "input_shapes": [[c_size(d) for d in t.type.shape] for t in inputs],
        "output_shapes": [[c_size(d) for d in t.type.shape] for t in outputs],
        "program": program,
        "steps": writer.leaves,
        "slots": [c_size(size) for size in plan.slots],
        "own_slots": [c_size(size) for size in plan.own_slots],
        "samples": names.index(along) + 1 if along else 0,
        "single": c_string(Together(graph).refusal) if plan.together is None else "",
        "constraints": [_constraint(c) for c in constraints(used)],
        "dims_used": [int(n in needed) for n in names],
        "states": [
            {"number": i, "use": uses[state].upper(), **_state_sizes(graph, state)}
            for i, state in enumerate(module.states)
            if uses[state] != "unused"
        ],
        "state_use": [uses[state].upper() for state in module.states],
    }


def _state_sizes(graph: Graph, name: str) -> dict[str, Any]:
    """C for the bytes of a state before and after a call, and for its length after it."""
    state = next(node for node in graph.states if node.attributes["name"] == name)
    after, grows = graph.updates.get(name, state), state.attributes["grows"]
    return {
        "before": c_size(nbytes(state)),
        "after": c_size(nbytes(after)),
        "length": "0" if grows is None else c_size(after.shape[grows]),
    }


def _constraint(constraint: Constraint) -> dict[str, Any]:
    return {
        "low": c_size(constraint.low),
        "high": c_size(constraint.high),
        "times": "" if constraint.times == 1 else c_size(constraint.times),
        "head": c_string(constraint.head),
        "middle": c_string(constraint.middle),
        "values": [c_size(value) for value in constraint.values],
    }


def _kernel(kernel: Kernel) -> dict[str, Any]:
    return {
        "symbol": kernel.symbol,
        "family": kernel.family,
        "reads": range(len(kernel.pointers) - kernel.written),
        "writes": range(kernel.written),
        "scalars": range(kernel.scalars),
        "scratch": kernel.scratch > 0,
        "threads": kernel.threads,
    }
