"""The straight-line program of an artifact, as C: `module.c` from a plan.

One function calls the kernels in order on arena offsets worked out from the actual dims: no interpreter, no
graph, no allocation while it runs. The text is kept by `llmc compile --keep DIR` and meant to be read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from llmc.compiler.calls import Call, Kernel
from llmc.compiler.counted import counted_dims, given_dims
from llmc.compiler.dims import Dim, dim, dim_c, dim_text, symbol
from llmc.compiler.graph import Graph, Node, TensorType
from llmc.compiler.plan import ALIGNMENT, Copy, Place, Plan, nbytes

LANES = 16  # multiply-adds in the unit of `Call.cost`


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


@dataclass(frozen=True)
class Tensor:
    """One input or output of the signature."""

    name: str
    type: TensorType
    default: float | None = None
    low: int | None = None
    high: int | None = None


def signature(graph: Graph) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs, in the order of the C interface."""
    inputs = []
    for node in graph.inputs:
        a = node.attributes
        inputs.append(Tensor(a["name"], node.type, a["default"], a["low"], a["high"]))
    return inputs, [Tensor(name, node.type) for name, node in graph.outputs.items()]


def write_program(
    graph: Graph,
    plan: Plan,
    variants: Sequence[Variant],
    name: str,
    build_id: str,
    weights_sha256: str,
    architectures: Sequence[str] = (),
    device: str = "",
) -> str:
    """The text of module.c.

    Args:
        device: the `llmc_device` that launches kernels, made for `architectures`; empty: the program calls them.
    """
    inputs, outputs = signature(graph)
    given, counted = given_dims(graph), counted_dims(graph)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("llmc.compiler", "."),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    kernels = list({s.kernel.symbol: s.kernel for s in plan.steps if isinstance(s, Call)}.values())
    return environment.get_template("module.c.jinja").render(
        name=c_string(name),
        build_id=build_id,
        weights_bytes=plan.weights_bytes,
        weights_sha256=weights_sha256,
        dims=[(n, *graph.dims[n]) for n in given],
        counts=[(n, graph.inputs.index(mask)) for n, mask in counted.items()],
        inputs=[_tensor(t, given) for t in inputs],
        outputs=[_tensor(t, given) for t in outputs],
        output_shapes=[[_size(d) for d in t.type.shape] for t in outputs],
        kernels=[_kernel(k) for k in kernels],
        variants=variants,
        codes=lambda family: dict.fromkeys(v.code(family) for v in variants),
        steps=[
            {**_step(i, s, plan), "index": kernels.index(s.kernel) if isinstance(s, Call) else None}
            for i, s in enumerate(plan.steps)
        ],
        slots=[_size(size) for size in plan.slots],
        alignment=ALIGNMENT,
        scratch=max([k.scratch for k in kernels], default=0),
        device=device,
        architectures=c_string(", ".join(architectures)),
    )


def c_string(text: str) -> str:
    """A C string literal; anything but plain ASCII as octal escapes."""
    plain = {ord(c) for c in " !#$%&'()*+,-./:;<=>@[]^_`{|}~"}
    return (
        '"'
        + "".join(
            chr(b) if chr(b).isascii() and (chr(b).isalnum() or b in plain) else f"\\{b:03o}"
            for b in text.encode()
        )
        + '"'
    )


def _size(value: Dim) -> str:
    """C for a size; the dim `batch` is the variable `size_batch`, so that no name of a dim is a word of C."""
    value = dim(value)
    return dim_c(
        value if isinstance(value, int) else value.xreplace({s: _variable(s) for s in value.free_symbols})
    )


def _variable(name: Any) -> Dim:
    return symbol(f"size_{name}")


def _tensor(tensor: Tensor, names: Sequence[str]) -> dict[str, Any]:
    def code(d: Dim) -> str:
        if isinstance(d, int):
            return str(d)
        return str(-1 - names.index(str(d))) if str(d) in names else "INT64_MIN"

    return {
        "name": c_string(tensor.name),
        "dtype": f"LLMC_{tensor.type.dtype.upper()}",
        "rank": tensor.type.rank,
        "dims": [code(d) for d in tensor.type.shape],
        "texts": [c_string(dim_text(d)) for d in tensor.type.shape],
        "default": tensor.default,
        "low": tensor.low,
        "high": tensor.high,
    }


def _kernel(kernel: Kernel) -> dict[str, Any]:
    return {
        "symbol": kernel.symbol,
        "family": kernel.family,
        "reads": range(len(kernel.pointers) - 1),
        "scalars": range(kernel.scalars),
        "scratch": kernel.scratch > 0,
        "threads": kernel.threads,
    }


def _step(number: int, step: Call | Copy, plan: Plan) -> dict[str, Any]:
    if isinstance(step, Copy):
        size = _size(nbytes(step.node))
        return {
            "number": number,
            "kernel": None,
            "family": "copy",
            "source": c_string(str(step.node.source)),
            "from": _pointer(plan.place(step.node), plan),
            "to": _pointer(Place("output", step.output), plan),
            "size": size,
            "flops": "0",
            "bytes": f"2 * {size}",
        }
    *reads, written = step.operands
    assert isinstance(written, Node)
    return {
        "number": number,
        "kernel": step.kernel.symbol,
        "family": step.kernel.family,
        "source": c_string(step.source.path or step.source.line),
        "reads": [_pointer(plan.place(o), plan) for o in reads],
        "writes": _pointer(plan.place(written), plan),
        "scalars": [_size(s) for s in step.scalars],
        "items": _size(step.items),
        "cost": _size(step.cost * LANES),
        "flops": _size(step.flops),
        "bytes": _size(step.bytes),
    }


def _pointer(place: Place, plan: Plan) -> str:
    match place.kind:
        case "weight":
            return f"f->weights + {plan.weights[place.index].offset}"
        case "slot":
            return f"f->arena + at[{place.index}]"
        case "input":
            return f"f->inputs[{place.index}]"
    return f"f->outputs[{place.index}]"
