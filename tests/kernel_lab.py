"""Compile the kernels of a graph and run them one by one on NumPy buffers, without runtime or artifact."""

from __future__ import annotations

import ctypes
import random
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import instruction_sets
import kept
import numpy as np
import tvm_ffi
import ziglang
from tvm import tirx
from tvm.ir.expr import TensorLoad

from llmc.compiler.calls import Call, Kernel, Packed, every_call
from llmc.compiler.counted import counted_dims
from llmc.compiler.dims import evaluate
from llmc.compiler.graph import DTYPES, Graph, Node, Results, results_of
from llmc.compiler.ops import OPS
from llmc.compiler.ops.ragged import kept as kept_tokens
from llmc.compiler.stored_once import store_once
from llmc.targets import Cpu
from llmc.targets.cpu.build import compile_object, content_version

Array = np.ndarray[Any, Any]
Lowerings = Mapping[str, Callable[[Node], Call]]
TRIPLE = "x86_64-linux-gnu"
GUARD = 64  # bytes after each buffer that no kernel may touch
FREE = {"input", "constant", "result"} | {name for name, op in OPS.items() if op.view}
CUTS = ((1,), (3, 1), (2, 5, 1))  # sizes of consecutive begin..end ranges, repeated


def cpus() -> list[Cpu]:
    """The variants this machine can run, best first."""
    return instruction_sets.here()


def differing(families: Iterable[str]) -> list[Cpu]:
    """Of the variants this machine can run, those whose code for kernels of these families differs.

    The running test is noted with those whose code it has to leave out.
    """
    used = sorted(set(families))
    codes = {cpu: tuple(map(cpu.code_for, used)) for cpu in instruction_sets.X86.values()}
    for code in {code for several in codes.values() for code in several} - set(cpus()):
        instruction_sets.note("left out by", code.name)
    return list({codes[cpu]: cpu for cpu in cpus()[::-1]}.values())[::-1]


def libc() -> str:
    """Path of libc: kernels may call memcpy and memset. Without libm, a call into it fails to link."""
    maps = Path("/proc/self/maps").read_text().split()
    return next(word for word in maps if word.endswith("/libc.so.6"))


@cache
def linker() -> str:
    """The program of the ziglang package: `python -m ziglang` starts a Python first, for four times as long."""
    (place,) = ziglang.__path__
    return str(Path(place) / "zig")


def check_no_contraction(function: Any) -> None:
    """Assert that no float Add or Sub of a PrimFunc has a product as an operand.

    Variables are followed, and buffers that a product is stored to: registers are buffers.
    """
    bound: dict[str, Any] = {}
    sums: list[Any] = []
    stores: list[Any] = []

    def definition(value: Any) -> Any:
        while isinstance(value, tirx.Var) and str(value.name) in bound:
            value = bound[str(value.name)]
        return value

    def is_float(value: Any) -> bool:
        return str(value.ty.dtype).startswith("float")

    walk = tvm_ffi.structural_walk
    walk(function.body, (tirx.Bind, lambda b: bound.__setitem__(str(b.var.name), b.value)))
    walk(function.body, (tirx.BufferStore, stores.append))
    walk(function.body, (tirx.Add, sums.append))
    walk(function.body, (tirx.Sub, sums.append))
    products = {str(s.buffer.name) for s in stores if isinstance(definition(s.value), tirx.Mul)}
    for node in filter(is_float, sums):
        for operand in map(definition, (node.a, node.b)):
            stored = isinstance(operand, TensorLoad) and str(operand.source.name) in products
            assert not stored, f"a product feeds {node} by way of {operand}"
            assert not isinstance(operand, tirx.Mul), f"a product feeds {node}"


def machine_code(symbol: str, function: Any, cpu: Cpu) -> bytes:
    """A kernel's machine code, kept between runs under what its PrimFunc says and what compiles it."""
    made_by = (content_version(function), TRIPLE, repr(cpu), kept.sources("targets/cpu/build.py"))
    return kept.made("kernels", (symbol, *made_by), lambda: compile_object({symbol: function}, TRIPLE, cpu))


class Lab:
    """Compiles each kernel once for each CPU and keeps it."""

    def __init__(self, folder: Path, lowerings: Lowerings) -> None:
        self.folder = folder
        self.lowerings = lowerings
        self.libraries = [libc()]
        self._loaded: dict[tuple[str, Kernel], Any] = {}
        self._libraries = 0

    def functions(self, kernels: Sequence[Kernel], cpu: Cpu) -> list[Any]:
        """C functions of `kernels`, from the code that an artifact would have for `cpu`."""
        for code in {cpu.code_for(k.family) for k in kernels}:
            self.note(code)
            self._compile([k for k in dict.fromkeys(kernels) if cpu.code_for(k.family) == code], code)
        return [self._loaded[cpu.code_for(k.family).name, k] for k in kernels]

    def _compile(self, kernels: Sequence[Kernel], cpu: Cpu) -> None:
        missing = [k for k in kernels if (cpu.name, k) not in self._loaded]
        if not missing:
            return
        made = {k.symbol: k.emit(k.symbol, cpu) for k in missing}
        for function in made.values():
            check_no_contraction(function)
        library = self._link([self.code(symbol, function, cpu) for symbol, function in made.items()])
        self._loaded.update({(cpu.name, k): getattr(library, k.symbol) for k in missing})

    def _link(self, objects: Sequence[bytes]) -> ctypes.CDLL:
        self._libraries += 1
        path = self.folder / f"kernels{self._libraries}.so"
        files = [path.with_suffix(f".{i}.o") for i in range(len(objects))]
        for file, code in zip(files, objects, strict=True):
            file.write_bytes(code)
        command = [linker(), "ld.lld", "-shared", "--no-undefined", "-o", str(path)]
        subprocess.run([*command, *map(str, files), *self.libraries], check=True)
        return ctypes.CDLL(str(path))

    def note(self, code: Cpu) -> None:
        """The running test runs code for this instruction set."""
        instruction_sets.note("run by", code.name)

    def code(self, symbol: str, function: Any, cpu: Cpu) -> bytes:
        """The object file of a kernel."""
        return machine_code(symbol, function, cpu)

    def call(self, function: Any, arguments: Sequence[Array | int]) -> None:
        """Call a kernel with pointers to arrays and with numbers."""
        assert function(*map(argument, arguments)) == 0

    def call_of(self, node: Node) -> Call:
        assert node.op in self.lowerings, f"no kernel for {node.op}"
        return self.lowerings[node.op](node)

    def calls_of(self, graph: Graph) -> dict[Any, Call]:
        """As a compile has them."""
        calls = [self.call_of(n) for n in graph.nodes if n.op not in FREE]
        return {call.operands[-1]: call for call in every_call(store_once({"": calls})[""])}

    def run(
        self,
        graph: Graph,
        inputs: Mapping[str, Array],
        sizes: Mapping[str, int] | None = None,
        cpu: Cpu | None = None,
        cuts: Sequence[int] = (1 << 40,),
    ) -> dict[str, Array]:
        """Outputs of `graph`; work items are cut into ranges of the sizes `cuts`, run in random order."""
        sizes = sizes or infer_sizes(graph, inputs)
        calls = self.calls_of(graph)
        self.functions([c.kernel for c in calls.values()], cpu or cpus()[0])

        def compute(node: Node, values: dict[Node, Any]) -> Any:
            return self._run_call(calls[node], values, sizes, cpu or cpus()[0], cuts)

        return by_nodes(graph, inputs, sizes, compute)

    def _run_call(
        self, call: Call, values: dict[Node, Any], sizes: Mapping[str, int], cpu: Cpu, cuts: Sequence[int]
    ) -> Any:
        (function,) = self.functions([call.kernel], cpu)
        *read, written = call.operands
        assert isinstance(written, Node)
        kinds = results_of(written.type)
        assert (len(read) + len(kinds), len(kinds)) == (len(call.kernel.pointers), call.kernel.written)
        assert len(call.scalars) == call.kernel.scalars
        shapes = [[evaluate(d, sizes) for d in kind.shape] for kind in kinds]
        outputs = [
            guarded(np.full(shape, 0, DTYPES[kind.dtype]), fill=0xA5)
            for shape, kind in zip(shapes, kinds, strict=True)
        ]
        operands = [guarded(r.pack(r.weight.array)) if isinstance(r, Packed) else values[r] for r in read]
        before = [bytes_of(o) for o in operands]
        arguments = [*operands, *outputs, *(evaluate(s, sizes) for s in call.scalars)]
        if call.kernel.scratch:
            scratch = guarded(np.zeros(call.kernel.scratch, np.uint8))
            arguments.append(scratch)
        for begin, end in ranges(evaluate(call.items, sizes), cuts):
            if call.kernel.scratch:
                scratch[:] = 0xA5  # what a range leaves there is none of the next one's business
            self.call(function, [*arguments, begin, end])
        if call.kernel.scratch:
            assert_guard(scratch)
        assert [bytes_of(o) for o in operands] == before, "a kernel wrote to its input"
        for output in outputs:
            assert_guard(output)
        assert evaluate(call.cost, sizes) > 0
        assert evaluate(call.flops, sizes) >= 0
        assert evaluate(call.bytes, sizes) > 0
        return tuple(outputs) if isinstance(written.type, Results) else outputs[0]


def argument(value: Array | int) -> ctypes.c_void_p | ctypes.c_int64:
    """As C functions take it: a pointer to an array, or a number."""
    return ctypes.c_void_p(value.ctypes.data) if isinstance(value, np.ndarray) else ctypes.c_int64(value)


def by_nodes(
    graph: Graph,
    inputs: Mapping[str, Array],
    sizes: Mapping[str, int],
    compute: Callable[[Node, dict[Node, Any]], Any],
) -> dict[str, Array]:
    """Outputs of `graph` in guarded memory; `compute(node, values so far)` does what is no view."""
    values: dict[Node, Any] = {}
    for node in graph.nodes:
        if node.op == "result":
            values[node] = values[node.inputs[0]][node.attributes["index"]]
        elif node.op == "input":
            values[node] = guarded(inputs[node.attributes["name"]])
        elif node.op == "constant":
            values[node] = guarded(node.attributes["value"].array)
        elif OPS[node.op].view:
            values[node] = values[node.inputs[0]].reshape([evaluate(d, sizes) for d in node.shape])
        else:
            values[node] = compute(node, values)
    return {name: values[node].copy() for name, node in graph.outputs.items()}


def infer_sizes(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, int]:
    """Sizes of the named dims, from the shapes of the inputs."""
    sizes: dict[str, int] = {}
    for node in graph.inputs:
        for d, size in zip(node.shape, inputs[node.attributes["name"]].shape, strict=True):
            if not isinstance(d, int) and d.is_Symbol:
                sizes[str(d)] = size
    for name, mask in counted_dims(graph).items():
        sizes[name] = int(kept_tokens(inputs[mask.attributes["name"]]).sum())
    return sizes


def guarded(array: Array, fill: int | None = None) -> Array:
    """A 64-byte aligned copy of `array` guard bytes after its end; `fill` replaces its bytes."""
    size = array.nbytes
    memory = np.full(size + 2 * GUARD, 0x5A, np.uint8)
    start = -memory.ctypes.data % GUARD
    body = memory[start : start + size]
    if fill is None:
        body[:] = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    else:
        body[:] = fill
    return body.view(array.dtype).reshape(array.shape)


def assert_guard(array: Array) -> None:
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    end = array.ctypes.data - base.ctypes.data + array.nbytes
    assert np.all(base[end:] == 0x5A), "a kernel wrote past the end of its output"


def bytes_of(array: Array) -> bytes:
    return bytes(array.tobytes())


def ranges(items: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """0..items cut into consecutive ranges of the sizes `cuts`, repeated, in a fixed random order."""
    result, begin, turn = [(0, 0)], 0, 0
    while begin < items:
        end = min(items, begin + cuts[turn % len(cuts)])
        result.append((begin, end))
        begin, turn = end, turn + 1
    random.Random(items).shuffle(result)
    return result


def same_bits(a: Array, b: Array) -> bool:
    """Equal shape, dtype and bits; any NaN equals any other."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    ints = np.dtype(f"i{a.dtype.itemsize}")
    return bool(np.all((a.view(ints) == b.view(ints)) | (np.isnan(a) & np.isnan(b))))


def run_all(
    lab: Lab, graph: Graph, inputs: Mapping[str, Array], sizes: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """Run on every CPU variant and with every cut, assert the same bits, return the outputs."""
    variants = differing(lab.call_of(n).kernel.family for n in graph.nodes if n.op not in FREE)
    results = [lab.run(graph, inputs, sizes, cpu) for cpu in variants]
    results += [lab.run(graph, inputs, sizes, variants[-1], cuts) for cuts in CUTS]
    for other in results[1:]:
        for name, value in results[0].items():
            assert same_bits(value, other[name]), f"{name}: the bits differ between CPU variants or cuts"
    return results[0]


def check(lab: Lab, nodes: Mapping[str, Node], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run nodes, whose inputs are `input` nodes, on all variants and compare each with its op's reference."""
    leaves = dict.fromkeys(i for node in nodes.values() for i in node.inputs if i.op == "input")
    graph = Graph(tuple(leaves), nodes)
    sizes = infer_sizes(graph, inputs)
    results = run_all(lab, graph, inputs, sizes)
    for name, node in nodes.items():
        assert_as_reference(node, results[name], inputs, sizes)
    return results


def assert_as_reference(
    node: Node, value: Array, inputs: Mapping[str, Array], sizes: Mapping[str, int]
) -> None:
    """Exact ops have the reference's bits but for the sign of zero.

    Close ones are within 2e-6 of their value or of 1, reductions within 2e-6 of their largest value. Ops that say
    their kernels' steps have the bits of these.
    """
    arrays = [
        i.attributes["value"].array if i.op == "constant" else inputs[i.attributes["name"]]
        for i in node.inputs
    ]
    op = OPS[node.op]
    extra = {"sizes": sizes} if op.symbolic else {}
    with np.errstate(all="ignore"):
        expected = np.asarray(op.reference(*arrays, **node.attributes, **extra))
    assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
    if op.accuracy == "exact" or value.dtype.kind != "f":
        equal = (value == expected) | ((value != value) & (expected != expected))
    else:
        relative = 2e-6 if value.dtype == np.float32 else 2e-3
        finite = np.abs(expected[np.isfinite(expected)].astype(np.float64))
        scale = min(1.0 if op.elementwise else np.inf, finite.max(initial=0.0))
        equal = np.isclose(
            value.astype(np.float64), expected.astype(np.float64), relative, relative * scale, equal_nan=True
        )
    wrong = np.argwhere(~equal)[:3].tolist()
    assert np.all(equal), (
        f"{node!r} {dict(node.attributes)} at {wrong}: {value[~equal][:3]}, not {expected[~equal][:3]}"
    )
    if op.steps is not None:
        steps = op.steps(*arrays, **node.attributes)
        assert same_bits(value, steps), f"{node!r} {dict(node.attributes)}: not the bits of its steps"
