"""`torch.export.ExportedProgram` -> Graph.

Programs are taken as torch.export makes them, before any decomposition, so `linear`, `layer_norm`,
`scaled_dot_product_attention`, `gelu`, `softmax`, `embedding` and `rms_norm` arrive whole; only programs with
in-place ops are functionalised first. Sizes need no nodes: torch knows each as an expression.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

from llmc.compiler.dims import Dim, symbol
from llmc.compiler.frontends import aten_complex, converters, foreign, inplace
from llmc.compiler.frontends.aten import TABLE, Call, Symbols, dtype_of
from llmc.compiler.frontends.aten_complex import Complex, weight_of
from llmc.compiler.frontends.inputs import Input
from llmc.compiler.frontends.report import Problem, UnsupportedError, report
from llmc.compiler.frontends.tracing import NOT_THEIRS
from llmc.compiler.graph import Graph, Node, Source
from llmc.compiler.ops import input_
from llmc.errors import LlmcError

__all__ = ["to_graph"]

converters.load("aten_")  # fills TABLE


def array_of(tensor: Any) -> Any:
    """A tensor's values, in its own memory."""
    return tensor.numpy()


def to_graph(
    program: ExportedProgram,
    inputs: Sequence[Input],
    outputs: Sequence[str],
    dims: Mapping[str, tuple[int, int]],
    root: str = "",
    weight: Callable[[Any], Any] = array_of,
    corners: Sequence[Mapping[str, int]] = (),
    computed: Mapping[str, Dim] = MappingProxyType({}),
) -> Graph:
    """Import an exported program.

    Args:
        program: from `torch.export.export` or `torch.export.load`.
        inputs: one for each user input, in order.
        outputs: names of the user outputs, in order.
        dims: bounds of the named dims.
        root: module path prefix to leave out of sources and weight names.
        weight: the array of a weight's tensor.
        corners: sizes between which all that occur lie, where not all within `dims` do.
        computed: axes by name whose sizes follow from dims.

    Raises:
        LlmcError: ops, dtypes or patterns that are not supported, all of them in one error.
    """
    program = functional(program)
    reader = _Reader(program, inputs, root, weight, corners or _corners(dims), computed)
    for node in program.graph.nodes:
        reader.read(node)
    if reader.problems:
        raise report(reader.problems)
    specs = [s for s in program.graph_signature.output_specs if s.kind == OutputKind.USER_OUTPUT]
    if any(not isinstance(s.arg, TensorArgument) for s in specs):
        hint = "return tensors only: sizes follow from the inputs', and numbers are known"
        raise LlmcError("an output of the model is a number, not a tensor", hint=hint)
    nodes = [reader.values[reader.by_name[s.arg.name]] for s in specs]
    if not all(isinstance(n, Node) for n in nodes):
        hint = "return its real and imaginary parts, or cast it to float32"
        raise LlmcError("an output of the model is complex, or of a dtype that llmc has not", hint=hint)
    return Graph(tuple(reader.inputs), dict(zip(outputs, nodes, strict=True)), dims)  # type: ignore[arg-type]  # Bounds


def _corners(dims: Mapping[str, tuple[int, int]]) -> list[dict[str, int]]:
    return [dict(zip(dims, sizes, strict=True)) for sizes in itertools.product(*dims.values())]


def functional(program: ExportedProgram) -> ExportedProgram:
    """The program with no in-place op that matters; nothing is decomposed."""
    if inplace.plain(program.graph):
        return program
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: ExportedProgram = program.run_decompositions({})
        return made


def _is_given(spec: Any) -> bool:
    """Whether a caller gives it: a tensor, not a number that was fixed at export."""
    return spec.kind == InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument)


class _Reader:
    """Walks the program's nodes once; `values` maps each to what it became (None: could not be imported)."""

    def __init__(
        self,
        program: ExportedProgram,
        inputs: Sequence[Input],
        root: str,
        array: Callable[[Any], Any],
        corners: Sequence[Mapping[str, int]],
        computed: Mapping[str, Dim],
    ) -> None:
        self.program, self.root, self.array, self.computed = program, root, array, computed
        self.values: dict[Any, Any] = {}
        self.by_name: dict[str, Any] = {n.name: n for n in program.graph.nodes}
        self.specs = {s.arg.name: s for s in program.graph_signature.input_specs}
        self.inputs: list[Node] = []
        self.problems: list[Problem] = []
        self._weights: dict[Any, Any] = {}
        user = [s.arg.name for s in program.graph_signature.input_specs if _is_given(s)]
        self.declared = dict(zip(user, inputs, strict=True))
        self.symbols = Symbols(self._names(), corners)

    def _names(self) -> dict[Any, Any]:
        """torch's symbol of each dynamic axis -> our name for it."""
        names = {}
        for placeholder, declared in self.declared.items():
            shape = self.by_name[placeholder].meta["val"].shape
            for size, name in zip(shape, declared.axes, strict=True):
                if isinstance(name, str) and isinstance(size, torch.SymInt):
                    names[size.node.expr] = self.computed.get(name, symbol(name))
        for expr, made in names.items():
            lost = [s for s in expr.free_symbols if s not in names]
            if lost and made not in self.computed.values():
                raise LlmcError(
                    f"the size of an axis of the inputs is {expr}, and no axis has the size {lost[0]}",
                    hint="export it with a Dim of its own, or with a fixed size",
                )
        return names

    def read(self, node: Any) -> None:
        """Import one node of the program."""
        try:
            self.values[node] = self._value(node)
        except UnsupportedError as problem:
            self._note(node, problem.reason, problem.advice)
        except LlmcError as error:
            self._note(node, error.problem.split(": ", 1)[-1], error.hint or "")
        except (TypeError, ValueError) as error:  # of Python and NumPy, which take no size that is open
            self._note(node, f"sizes or arguments do not fit the op ({error})", "fix the sizes of its axes")

    def _note(self, node: Any, reason: str, advice: str) -> None:
        self.values[node] = self._stand_in(node)
        self.problems.append(Problem(str(node.target), reason, advice, self._source(node)))

    def _stand_in(self, node: Any) -> Any:
        """Nodes of the foreseen type, so that what reads a failed call is still checked."""
        metas = node.meta.get("val")
        try:
            made = [
                input_("missing", dtype_of(m.dtype), tuple(self.symbols.dim(d) for d in m.shape))
                for m in (metas if isinstance(metas, (tuple, list)) else [metas])
            ]
        except (UnsupportedError, AttributeError):
            return None
        return tuple(made) if isinstance(metas, (tuple, list)) else made[0]

    def _value(self, node: Any) -> Any:
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op != "call_function":
            return None  # output; submodules of control flow, whose call is reported
        meta = node.meta.get("val")
        if _is_checked_only(node):
            return None
        if isinstance(meta, (int, torch.SymInt)) and not isinstance(meta, bool):
            return self.symbols.dim(meta)
        if getattr(node.target, "__name__", "") == "getitem":
            parts = self.values[node.args[0]]
            return None if parts is None else parts[node.args[1]]
        if isinstance(meta, (bool, torch.SymBool)):
            return None  # read by the checks below
        if meta is None and _is_check(node):
            return None  # checks that torch has made at export
        return self._call(node, meta)

    def _placeholder(self, node: Any) -> Any:
        spec = self.specs[node.name]
        if spec.kind == InputKind.USER_INPUT and not _is_given(spec):
            return getattr(spec.arg, "value", None)  # a number that the program was exported for
        if _is_given(spec):
            self.inputs.append(self._input(node))
            return self.inputs[-1]
        table = self.program.constants if spec.target in self.program.constants else self.program.state_dict
        return self._weight(table[spec.target], spec.target) if node.users else None

    def _input(self, node: Any) -> Node:
        declared, meta = self.declared[node.name], node.meta["val"]
        if meta.dtype.is_complex:
            raise UnsupportedError("a complex input", "take its real and imaginary parts")
        high = declared.high if declared.high is not None else _rows_indexed(node) or _steps(node)
        low = 0 if declared.low is None and high is not None else declared.low
        shape = tuple(self.symbols.dim(d) for d in meta.shape)
        return input_(
            declared.name, dtype_of(meta.dtype), shape, default=declared.default, low=low, high=high
        )

    def _weight(self, tensor: Any, name: str) -> Any:
        """One node for all names of the same memory; the array is a view of the tensor."""
        tensor = tensor.detach()
        storage = tensor.untyped_storage()
        memory = (storage._cdata, tensor.storage_offset(), tensor.shape, tensor.stride())
        key = (*memory, tensor.dtype)
        if key not in self._weights:
            path = name.removeprefix(self.root)
            source = Source(path.rpartition(".")[0])
            self._weights[key] = weight_of(tensor, path, source, self.array)
        return self._weights[key]

    def _call(self, node: Any, meta: Any) -> Any:
        name = str(node.target)
        name = inplace.plain_name(name) if inplace.mutates(node) else name
        convert = TABLE.get(name.removeprefix("aten."))
        if not hasattr(node.target, "_schema"):
            raise UnsupportedError("a function of Python is no op", "compute it from tensors")
        if convert is None or foreign.is_foreign(meta) or any(map(self._is_foreign, node.all_input_nodes)):
            made = foreign.computed(node.target, self._arguments(node), self._source(node))
            if made is not None:
                return made
        if convert is None:
            raise UnsupportedError("no such op in llmc", "replace it by supported ops")
        if any(self.values.get(read) is None for read in node.all_input_nodes):
            if not self.problems:
                raise UnsupportedError(
                    "it reads a truth value or float computed from sizes, or indices of a pool",
                    "compute it from tensors",
                )
            return None  # what it reads has been reported
        call = Call(node.target, self._arguments(node), meta, self._source(node), self.symbols)
        foreign.want_native(call.arguments)
        result = aten_complex.by_parts(call, convert)
        self._check(call, result)
        return result

    def _is_foreign(self, node: Any) -> bool:
        return isinstance(self.values.get(node), foreign.Foreign)

    def _arguments(self, node: Any) -> dict[str, Any]:
        """Arguments by schema name, defaults filled in."""
        arguments = {}
        for position, declared in enumerate(node.target._schema.arguments):
            if position < len(node.args):
                value = node.args[position]
            else:
                value = node.kwargs.get(declared.name, getattr(declared, "default_value", None))
            arguments[declared.name] = self._argument(value)
        return arguments

    def _argument(self, value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return self.values[value]
        if isinstance(value, (list, tuple)):
            return [self._argument(v) for v in value]
        return self.symbols.dim(value) if isinstance(value, torch.SymInt) else value

    def _check(self, call: Call, result: Any) -> None:
        """A converter must produce the type torch foresaw; None stands for a result it does not compute."""
        metas = call.meta if isinstance(call.meta, (tuple, list)) else [call.meta]
        results = result if isinstance(result, tuple) else [result]
        for meta, made in zip(metas, results, strict=True):
            if made is None:
                continue
            made = made.real if isinstance(made, Complex) else made
            foreseen = (dtype_of(meta.dtype), call.shape_of(meta))
            assert (made.dtype, made.shape) == foreseen, (
                f"{call.target}: made {made.type}, torch says {foreseen}"
            )

    def _source(self, node: Any) -> Source:
        stack = node.meta.get("nn_module_stack") or {}
        path = list(stack.values())[-1][0] if stack else ""
        path = re.sub(r"\['?([^\]']*)'?\]", r".\1", path).removeprefix("L.self").strip(".")
        return Source(
            f"{path}.".removeprefix(self.root).rstrip("."), _line(node.meta.get("stack_trace") or "")
        )


def _is_checked_only(node: Any) -> bool:
    """Whether a number is read by nothing but torch's own checks, such as that lengths are within a row's."""
    if not isinstance(node.meta.get("val"), (int, float, bool, torch.SymInt, torch.SymBool, torch.SymFloat)):
        return False
    return all(_is_check(user) or _is_checked_only(user) for user in node.users)


def _is_check(node: Any) -> bool:
    return any(word in str(node.target) for word in ("assert", "sym_constrain"))


def _rows_indexed(node: Any) -> int | None:
    """The highest legal index if this input looks up embedding tables directly."""
    names, rows = [node], []
    for name in names:
        for user in name.users:
            if str(user.target) == "aten.embedding.default" and user.args[1] is name:
                rows.append(user.args[0].meta["val"].shape[0])
            elif str(user.target) in ("aten.view.default", "aten.reshape.default"):
                names.append(user)
    return int(min(rows)) - 1 if rows else None


def _steps(node: Any) -> int | None:
    """The most that this input may be if it is, or is copied to, the lengths of a recurrent network's rows."""
    for user in node.users:
        if str(user.target) == "llmc.recurrent.default" and user.args[2] is node:
            steps = user.args[1].meta["val"].shape[1 if user.args[-1] else 0]
            return steps if isinstance(steps, int) else None
        if str(user.target).startswith(("aten.to.", "aten._to_copy.", "aten.detach.")):
            return _steps(user)
    return None


_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def _line(trace: str) -> str:
    """`file:line` of the innermost frame that is neither torch nor llmc."""
    frames = [f for f in _FRAME.findall(trace) if not f[0].startswith(NOT_THEIRS)]
    return f"{PurePath(frames[-1][0]).name}:{frames[-1][1]}" if frames else ""
