"""Write a TIR kernel statement by statement.

TVMScript re-parses its own source text, which is slow and cannot unroll a register tile from Python
values. `Emitter` builds the same TIR nodes directly: a kernel is a Python function that calls `let`,
`load`, `store` inside `with k.loop(...)` blocks, and an ordinary Python `for` unrolls.

Every float vector holds `LANES` = 16 elements whatever the CPU: LLVM splits one into two AVX2 registers or
four NEON registers, so all variants run the same arithmetic (docs/numerics.md).

A kernel is a plain C function `int32_t name(pointers..., int64_t scalars..., [void *scratch,] int64_t begin,
int64_t end)` that does the work items begin..end and returns 0. It must not care how items are cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llmc.targets.tir.later import ir, tirx

LANES = 16
_UNBOUNDED = 1 << 40  # buffers are raw pointers; their extent is the caller's business

Expr = Any  # TIR expressions get their operators at run time, so no static type fits
Buffer = Any

STORAGE = {
    "f32": "float32",
    "f16": "float16",
    "i8": "int8",
    "u8": "uint8",
    "i32": "int32",
    "i64": "int64",
    "bool": "uint8",  # one byte, 0 or 1
    "f64": "float64",
}


def i64(value: int) -> Expr:
    """An int64 constant."""
    return tirx.IntImm("int64", value)


def f32(value: float) -> Expr:
    """A float32 constant."""
    return tirx.FloatImm("float32", float(value))


def dtype_of(value: Expr) -> str:
    """ "float32", "float32x16", "int64" ..."""
    return str(value.ty.dtype)


def lanes_of(value: Expr) -> int:
    _, _, lanes = dtype_of(value).rpartition("x")
    return int(lanes) if lanes.isdigit() and "x" in dtype_of(value) else 1


def vector(dtype: str, lanes: int) -> str:
    """ "float32", 16 -> "float32x16"."""
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def splat(value: Expr, lanes: int = LANES) -> Expr:
    """The scalar `value` in every lane; a Python float becomes float32."""
    if isinstance(value, float):
        value = f32(value)
    return tirx.Broadcast(value, lanes) if lanes > 1 else value


def div(a: Expr, b: Expr) -> Expr:
    """a // b of int64 values that are not negative: one instruction, no sign handling."""
    return tirx.truncdiv(a, i64(b) if isinstance(b, int) else b)


def mod(a: Expr, b: Expr) -> Expr:
    """a % b of int64 values that are not negative."""
    return tirx.truncmod(a, i64(b) if isinstance(b, int) else b)


def fma(a: Expr, b: Expr, c: Expr) -> Expr:
    """a * b + c rounded once, written out so that no code generator decides it."""
    return tirx.call_llvm_pure_intrin(dtype_of(a), "llvm.fma", a, b, c)


def _block(statements: Sequence[Any]) -> Any:
    if not statements:
        return tirx.Evaluate(tirx.IntImm("int32", 0))
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))


class Emitter:
    """Builds one kernel; `function` returns it.

    Attributes:
        backend: whose scalar code an extension's ops are computed by.
    """

    backend = "cpu"

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self._pointers: list[Any] = []
        self._scalars: list[Any] = []
        self._blocks: list[list[Any]] = [[]]
        self._count = 0
        self.bound: dict[str, Any] = {}  # variable name -> the expression `let` gave it
        self._scratch: Any = None
        self.begin = tirx.Var("begin", "int64")
        self.end = tirx.Var("end", "int64")

    def _name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"

    def add(self, statement: Any) -> None:
        self._blocks[-1].append(statement)

    # Parameters, in the order they are declared: pointers, then scalars.

    def pointer(self, name: str, dtype: str) -> Buffer:
        """A pointer parameter to llmc dtype `dtype` ("f32"), indexed by element; only natural alignment is assumed."""
        storage = STORAGE[dtype]
        var = tirx.Var(name, ir.PointerType(ir.PrimType(storage)))
        self._pointers.append(var)
        return self.view(name + "_at", storage, var)

    def scalar(self, name: str) -> Expr:
        """An int64 parameter."""
        var = tirx.Var(name, "int64")
        self._scalars.append(var)
        return var

    def scratch(self, dtype: str = "float32") -> Buffer:
        """The calling thread's scratch memory, 64-byte aligned; `Kernel.scratch` says how much it is."""
        if self._scratch is None:
            self._scratch = tirx.Var("scratch", ir.PointerType(ir.PrimType("float32")))
        return self.view("scratch_at", dtype, self._scratch)

    def alias(self, buffer: Buffer, storage: str) -> Buffer:
        """The memory of `buffer` as elements of TIR dtype `storage`."""
        return self.view("alias", storage, buffer.data)

    def view(self, name: str, storage: str, data: Any) -> Buffer:
        size = max(1, int("".join(c for c in storage if c.isdigit()) or 8) // 8)
        buffer = tirx.decl_buffer(
            (i64(_UNBOUNDED),), storage, name=self._name(name), data=data, data_alignment=size
        )
        self.add(tirx.DeclBuffer(buffer, data=data))
        return buffer

    # Control flow.

    @contextmanager
    def loop(self, start: Expr, stop: Expr, name: str = "i", unroll: bool = False) -> Iterator[Expr]:
        """for name in start..stop"""
        start = i64(start) if isinstance(start, int) else start
        stop = i64(stop) if isinstance(stop, int) else stop
        var = tirx.Var(self._name(name), "int64")
        self._blocks.append([])
        yield var
        body = _block(self._blocks.pop())
        kind = tirx.ForKind.UNROLLED if unroll else tirx.ForKind.SERIAL
        self.add(tirx.For(var, start, stop - start, kind, body))

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        """if condition"""
        self._blocks.append([])
        yield
        self.add(tirx.IfThenElse(condition, _block(self._blocks.pop()), None))

    @contextmanager
    def repeat(self, condition: Expr) -> Iterator[None]:
        """while condition, which reads registers that the body sets"""
        self._blocks.append([])
        yield
        self.add(tirx.While(condition, _block(self._blocks.pop())))

    # Values.

    def let(self, value: Expr, name: str = "t") -> Expr:
        """`value` computed once, here.

        An index goes through a register: TVM's analyzer substitutes bound integers into every later
        expression, whose size would then grow exponentially with the number of steps.
        """
        if isinstance(value, tirx.Var | tirx.IntImm | tirx.FloatImm) or not hasattr(value, "ty"):
            return value
        if dtype_of(value) == "int64":
            held = self.registers(1, "int64")
            self.set(held, 0, value)
            return self.get(held, 0)
        if dtype_of(value).startswith("boolx"):
            # the analyzer fails on a variable bound to an integer vector comparison
            value = tirx.bitwise_or(value, value)
        var = tirx.Var(self._name(name), value.ty)
        self.add(tirx.Bind(var, value))
        self.bound[str(var.name)] = value
        return var

    def load(self, buffer: Buffer, index: Expr, lanes: int = 1, mask: Expr | None = None) -> Expr:
        """`lanes` consecutive elements from `index`; lanes outside `mask` read as 0 and touch no memory."""
        index = i64(index) if isinstance(index, int) else index
        if lanes == 1:
            return self.let(tirx.BufferLoad(buffer, [index]))
        if mask is None:
            return self.let(tirx.BufferLoad(buffer, [tirx.Ramp(index, i64(1), lanes)]))
        dtype = vector(str(buffer.ty.dtype), lanes)
        zero = splat(tirx.const(0, str(buffer.ty.dtype)), lanes)
        at = tirx.address_of(tirx.BufferLoad(buffer, [index]))
        return self.let(tirx.call_llvm_intrin(dtype, "llvm.masked.load", at, mask, zero))

    def store(self, buffer: Buffer, index: Expr, value: Expr, mask: Expr | None = None) -> None:
        """Write `value` (scalar or vector) to consecutive elements from `index`; only lanes in `mask`."""
        index = i64(index) if isinstance(index, int) else index
        lanes = lanes_of(value)
        if mask is not None:
            at = tirx.address_of(tirx.BufferLoad(buffer, [index]))
            self.add(tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.masked.store", value, at, mask)))
            return
        self.add(tirx.BufferStore(buffer, value, [index if lanes == 1 else tirx.Ramp(index, i64(1), lanes)]))

    def first(self, count: Expr, lanes: int = LANES) -> Expr:
        """A lane mask of the first min(count, lanes) lanes; `count` is an int64."""
        zero = tirx.const(0, "int32")
        mask = tirx.get_active_lane_mask(
            f"boolx{lanes}", zero, tirx.Cast("int32", tirx.min(count, i64(lanes)))
        )
        return self.let(mask, "mask")

    def registers(self, count: int, dtype: str = "float32x16") -> Buffer:
        """`count` mutable registers: a stack array whose indices are constants, which LLVM keeps in registers.

        A larger one, or one indexed by a variable, stays on the stack.
        """
        buffer = tirx.decl_buffer((i64(count),), dtype, name=self._name("reg"), scope="global")
        # Without the annotation TVM would allocate from a heap workspace.
        self.add(tirx.AllocBuffer(buffer, {"disable_lower_builtin": tirx.IntImm("bool", 1)}))
        return buffer

    def get(self, registers: Buffer, index: int | Expr = 0) -> Expr:
        return tirx.BufferLoad(registers, [i64(index) if isinstance(index, int) else index])

    def set(self, registers: Buffer, index: int | Expr, value: Expr) -> None:
        self.add(tirx.BufferStore(registers, value, [i64(index) if isinstance(index, int) else index]))

    def prefetch(self, buffer: Buffer, index: Expr, locality: int = 3) -> None:
        """Ask for the cache line of one element, to be read; locality 3 is every level, 2 skips L1."""
        at = tirx.address_of(tirx.BufferLoad(buffer, [index]))
        read, level, data = (tirx.const(v, "int32") for v in (0, locality, 1))
        self.add(tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", at, read, level, data)))

    def fold(self, value: Expr, combine: Any) -> Expr:
        """The 16 lanes of `value` combined in a fixed tree: lane i with i+8, then +4, +2, +1."""
        lanes, scalar = lanes_of(value), dtype_of(value).rpartition("x")[0]
        while lanes > 1:
            lanes //= 2
            if lanes == 1:  # vectorlow would give a vector of one, which is no scalar to LLVM
                low, high = (self.let(tirx.Shuffle([value], [tirx.IntImm("int32", i)])) for i in (0, 1))
                return self.let(combine(low, high))
            low = self.let(tirx.vectorlow(vector(scalar, lanes), value))
            high = self.let(tirx.vectorhigh(vector(scalar, lanes), value))
            value = self.let(combine(low, high))
        return value

    def function(self) -> Any:
        """The finished PrimFunc, with a plain C signature."""
        scratch = [] if self._scratch is None else [self._scratch]
        params = [*self._pointers, *self._scalars, *scratch, self.begin, self.end]
        assert len(self._blocks) == 1, "function() inside a loop"
        body = _block([*self._blocks[0], tirx.Return(tirx.IntImm("int32", 0))])
        attributes = {"global_symbol": self.symbol, "calling_conv": 2, "tirx.noalias": True}
        return tirx.PrimFunc(params, body, ir.PrimType("int32")).with_attr(attributes)
