"""Write a GPU kernel statement by statement: `Emitter` for a grid of thread blocks.

A kernel is `void name(pointers..., int64_t scalars...)` for one block of `threads` threads; every argument
takes eight bytes. It runs on `blocks` blocks in a row (gridDim.x), which the program computes from the dims. Registers
are local arrays with constant indices, which nvcc keeps in registers.

Scalar code of the CPU kernels (`scalar_ops`, `math`) runs here with one lane: `build.legalise` translates the
few LLVM intrinsics in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llmc.targets.tir.emit import Buffer, Emitter, Expr, div, dtype_of, f32, i64, mod
from llmc.targets.tir.later import ir, tirx

WARP = 32
FRAGMENT = 16
_SHAPE = (FRAGMENT, FRAGMENT, FRAGMENT)
_ALL = 0xFFFFFFFF  # every thread of the warp takes part
_SHUFFLED = {"uint8": "int32", "int8": "int32", "float16": "float32"}  # dtypes that go by way of another


class GridEmitter(Emitter):
    """Builds the code of one block; `block` and `thread` are its number and the thread's within it, int64."""

    backend = "cuda"

    def __init__(self, symbol: str, threads: int) -> None:
        super().__init__(symbol)
        self.threads = threads
        self._fragments: list[tuple[Buffer, str]] = []
        self._block, self._thread = tirx.Var("block", "int32"), tirx.Var("thread", "int32")
        self.block = self.let(tirx.Cast("int64", self._block))
        self.thread = self.let(tirx.Cast("int64", self._thread))

    def let(self, value: Expr, name: str = "t") -> Expr:
        """`value` computed once, here; a choice goes through a register: TVM would substitute it into later ones."""
        if isinstance(value, tirx.Select | tirx.Max | tirx.Min):
            held = self.registers(1, dtype_of(value))
            self.set(held, 0, value)
            value = self.get(held)
        return super().let(value, name)

    def registers(self, count: int, dtype: str = "float32") -> Buffer:
        """`count` mutable registers of this thread; zero is not implied."""
        return self._memory(count, dtype, "local")

    def shared(self, count: int, dtype: str = "float32") -> Buffer:
        """`count` elements that all threads of the block see; `sync` orders the accesses."""
        return self._memory(count, dtype, "shared")

    def _memory(self, count: int, dtype: str, scope: str) -> Buffer:
        buffer = tirx.decl_buffer((i64(count),), dtype, name=self._name(scope), scope=scope)
        self.add(tirx.AllocBuffer(buffer))
        return buffer

    def sync(self) -> None:
        """Wait for all threads of the block; every one of them must come here."""
        self.add(tirx.Evaluate(tirx.call_intrin("int32", "tirx.tvm_storage_sync", "shared")))

    def extern(self, dtype: str, name: str, *arguments: Expr) -> Expr:
        """A call of a CUDA function."""
        return self.let(tirx.call_pure_extern(dtype, name, *arguments))

    def across(self, value: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
        """`value` of the 32 threads of the warp combined in a fixed tree, in every one of them.

        All threads of the block must come here.
        """
        dtype = dtype_of(value)
        carried = _SHUFFLED.get(dtype, dtype)
        for distance in (16, 8, 4, 2, 1):
            other = self.extern(
                carried,
                "__shfl_xor_sync",
                tirx.IntImm("uint32", _ALL),
                tirx.Cast(carried, value),
                tirx.IntImm("int32", distance),
            )
            value = self.let(combine(value, tirx.Cast(dtype, other)))
        return value

    # Tensor cores: 16 x 16 fragments that the 32 threads of a warp hold together, rows first.

    def fragments(self, kind: str, count: int, dtype: str) -> Buffer:
        """`count` fragments: "matrix_a", "matrix_b" or "accumulator"."""
        fragments = self._memory(count * FRAGMENT * FRAGMENT, dtype, f"wmma.{kind}")
        self._fragments.append((fragments, kind))
        return fragments

    def fragment_fill(self, fragments: Buffer, index: int) -> None:
        """Set one to zero."""
        self._wmma("tvm_fill_fragment", fragments.data, *_SHAPE, index, f32(0.0))

    def fragment_load(self, fragments: Buffer, index: int, source: Buffer, at: Expr, stride: int) -> None:
        """Read one from rows of `stride` elements."""
        address = tirx.address_of(tirx.BufferLoad(source, [at]))
        self._wmma("tvm_load_matrix_sync", fragments.data, *_SHAPE, index, address, stride, "row_major")

    def fragment_store(self, fragments: Buffer, index: int, target: Buffer, at: Expr, stride: int) -> None:
        """Write one to rows of `stride` elements."""
        address = tirx.address_of(tirx.BufferLoad(target, [at]))
        self._wmma("tvm_store_matrix_sync", fragments.data, *_SHAPE, index, address, stride, "row_major")

    def fragment_multiply(
        self, sums: Buffer, index: int, left: Buffer, left_index: int, right: Buffer, right_index: int
    ) -> None:
        """sums[index] += left[left_index] . right[right_index]"""
        operands = ((sums, index), (left, left_index), (right, right_index), (sums, index))
        self._wmma("tvm_mma_sync", *(x for buffer, i in operands for x in (buffer.data, i)))

    def _wmma(self, name: str, *arguments: Any) -> None:
        self.add(tirx.Evaluate(tirx.call_intrin("handle", f"tirx.{name}", *arguments)))

    @contextmanager
    def each(self, total: Expr) -> Iterator[Expr]:
        """One item a thread: the body runs for `block * threads + thread` if that is below `total`."""
        item = self.let(self.block * self.threads + self.thread)
        with self.when(item < total):
            yield item

    def decode(self, item: Expr, extents: Sequence[Expr]) -> list[Expr]:
        """The index along each extent of number `item` of a row-major grid."""
        index: list[Expr] = []
        for extent in reversed(extents[1:]):
            index.append(self.let(mod(item, extent)))
            item = self.let(div(item, extent))
        return [item, *reversed(index)][: len(extents)]

    def total(self, extents: Sequence[Expr]) -> Expr:
        """The product of some extents."""
        product: Expr = i64(1)
        for extent in extents:
            product = self.let(product * extent)
        return product

    def function(self) -> Any:
        """The finished PrimFunc: a kernel of a GPU module."""
        assert len(self._blocks) == 1, "function() inside a loop"
        body = tirx.SeqStmt(self._blocks[0])
        for var, tag, extent in ((self._thread, "threadIdx.x", self.threads), (self._block, "blockIdx.x", 1)):
            # The extent of the grid is the launch's business; TVM wants a number here and ignores it.
            axis = tirx.IterVar(None, var, tirx.IterVar.ThreadIndex, tag)
            body = tirx.AttrStmt(axis, "thread_extent", tirx.IntImm("int32", extent), body)
        for fragments, kind in self._fragments:
            notes = {"fragment_shape": "16, 16, 16"} | (
                {} if kind == "accumulator" else {"fragment_layout": "row_major"}
            )
            for key, text in notes.items():
                body = tirx.AttrStmt(fragments, key, ir.StringImm(text), body)
        attributes = {"global_symbol": self.symbol, "calling_conv": 2, "tirx.noalias": True}
        params = [*self._pointers, *self._scalars]
        return tirx.PrimFunc(params, body, ret_type=None).with_attr(attributes)
