"""A .pt2 file -> `torch.export.ExportedProgram`, without running anything the file says.

`torch.export.load` is not used. It unpickles sample inputs and any weight the file marks as pickled, loads compiled
libraries, and hands texts from the file to sympy, which evaluates them as Python. Here the zip's members are read as
plain bytes and JSON: pickles are refused or left alone, weights are raw memory, size expressions must consist of a few
known functions, calls must be ATen's or arithmetic. torch's deserialiser then sees only what has been checked.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.errors import LlmcError

_CALLS = re.compile(
    r"torch\.ops\.aten\.\w+(\.\w+)?|torch\.ops\.llmc\.recurrent(\.default)?"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.(ceil|floor|trunc)|torch\.sym_(max|min|not|int|float|ite)"
)
_FUNCTIONS = frozenset(
    (
        *("Symbol", "Integer", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "floor", "ceiling"),
        *(
            "FloorDiv",
            "CleanDiv",
            "CeilDiv",
            "PythonMod",
            "PowByNatural",
            "Identity",
            "IntTrueDiv",
            "ToFloat",
        ),
        *("TruncToInt", "CeilToInt", "FloorToInt", "Where", "Eq", "Equality", "Ne", "Unequality", "Lt", "Le"),
        *("StrictLessThan", "LessThan", "Gt", "Ge", "StrictGreaterThan", "GreaterThan", "And", "Or", "Not"),
    )
)
_NODES: tuple[type[ast.AST], ...] = (
    *(
        ast.Expression,
        ast.Call,
        ast.Name,
        ast.Load,
        ast.keyword,
        ast.Constant,
        ast.BinOp,
        ast.UnaryOp,
        ast.Add,
    ),
    *(ast.Sub, ast.Mult, ast.USub, ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE),
)
_METADATA = ("stack_trace", "nn_module_stack", "torch_fn")
_TUPLE = "builtins.tuple"


@dataclass(frozen=True)
class Pt2File:
    """A checked file.

    Args:
        program: the `torch.export.ExportedProgram`.
        inputs, outputs: names of its inputs and outputs, in order.
        torch_version: what wrote it.
    """

    program: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    torch_version: str


def read(path: Path) -> Pt2File:
    """Read and check a file that `torch.export.save` wrote.

    Raises:
        LlmcError: it is damaged, of another version of torch, or holds code or pickles.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path)
            model = json.loads(_member(archive, members, "models/model.json", path))
            inputs, outputs = _checked(model, path)
            weights = _tensors(archive, members, "weights", path)
            constants = _tensors(archive, members, "constants", path)
    except zipfile.BadZipFile as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:
        raise LlmcError(f"cannot read the model: {error.strerror or error}", at=str(path)) from None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    return Pt2File(
        _program(model, weights, constants, path), inputs, outputs, str(model.get("torch_version", ""))
    )


def _damaged(path: Path, found: str) -> LlmcError:
    return LlmcError(
        "the file is not a program of torch.export, or it is damaged",
        at=str(path),
        found=found[:200],
        hint="write it with torch.export.save(program, path), with the torch that llmc uses",
    )


def _refused(path: Path, found: str) -> LlmcError:
    return LlmcError(
        "the file holds code or pickles and was not opened",
        at=str(path),
        found=found[:200],
        hint="export the model itself with torch.export, or give its folder",
    )


def _lacking(path: Path, target: str) -> LlmcError:
    """Of control flow and of ops that are not PyTorch's own."""
    return LlmcError(
        "the program calls an op that llmc does not have",
        at=str(path),
        found=target[:200],
        hint="write it in PyTorch's own ops; of branches compute both, and choose by torch.where",
    )


# --- the archive


def _members(archive: zipfile.ZipFile, path: Path) -> Mapping[str, zipfile.ZipInfo]:
    """Members by name below the archive's one folder."""
    members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    size = path.stat().st_size
    for name, info in members.items():
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
            raise _damaged(path, f"{name} is compressed")
        if name.startswith("data/aotinductor") or name.endswith(".so"):
            raise _refused(path, f"{name}, a compiled library")
    if "models/model.json" not in members:
        raise _damaged(path, f"no models/model.json among {len(members)} members")
    return members


def _member(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], name: str, path: Path) -> bytes:
    if name not in members:
        raise _damaged(path, f"{name} is missing")
    return archive.read(members[name])


def _tensors(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], kind: str, path: Path
) -> dict[str, Any]:
    """Weights or constants by name, as views of raw memory that they may share."""
    listed = json.loads(_member(archive, members, f"data/{kind}/model_{kind}_config.json", path))["config"]
    memory: dict[str, bytearray] = {}
    made = {}
    for name, entry in listed.items():
        file = str(entry["path_name"])
        if entry["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", file):
            raise _refused(path, f"{name}, stored as {file}{' by pickle' * bool(entry['use_pickle'])}")
        if file not in memory:
            memory[file] = bytearray(_member(archive, members, f"data/{kind}/{file}", path))
        made[name] = _tensor(name, entry["tensor_meta"], memory[file], path)
        if entry["is_param"]:
            import torch

            made[name] = torch.nn.Parameter(made[name], requires_grad=False)
    return made


def _tensor(name: str, meta: Mapping[str, Any], memory: bytearray, path: Path) -> Any:
    import torch
    from torch._export.serde.serialize import deserialize_scalar_type

    dtype = deserialize_scalar_type(meta["dtype"])
    sizes, strides = ([int(d["as_int"]) for d in meta[k]] for k in ("sizes", "strides"))
    offset = int(meta["storage_offset"]["as_int"])
    if math.prod(sizes) == 0:
        return torch.zeros(sizes, dtype=dtype)
    flat = torch.frombuffer(memory, dtype=dtype)
    last = offset + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    if min(*sizes, *strides, offset, 0) < 0 or last >= flat.numel():
        raise _damaged(path, f"{name} reaches beyond its data")
    return torch.as_strided(flat, sizes, strides, offset)


# --- the program


def _checked(model: dict[str, Any], path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Refuse what could run; drop what is not needed; return the names of inputs and outputs."""
    module = model["graph_module"]
    for text in _expressions(model):
        if not _is_arithmetic(text):
            raise _refused(path, f"the size {text!r}")
    for node in module["graph"]["nodes"]:
        if not _CALLS.fullmatch(node["target"]):
            if re.fullmatch(r"torch\.ops(\.\w+)+", node["target"]):
                raise _lacking(path, node["target"])
            raise _refused(path, f"a call of {node['target']!r}")
        node["metadata"] = {k: v for k, v in node["metadata"].items() if k in _METADATA}
    specs = [s["user_input"] for s in module["signature"]["input_specs"] if "user_input" in s]
    inputs = tuple(str(s["arg"]["as_tensor"]["name"]) for s in specs)
    results = [s for s in module["signature"]["output_specs"] if "user_output" in s]
    entry = module["module_call_graph"][0]
    outputs = _output_names(json.loads(entry["signature"]["out_spec"]), len(results))
    entry["signature"]["in_spec"] = _spec(
        [_tuple(len(inputs)), {**_tuple(0), "type": "builtins.dict", "context": "[]"}]
    )
    entry["signature"]["out_spec"] = json.dumps([1, _tuple(len(results))])
    module["module_call_graph"], module["treespec_namedtuple_fields"] = [entry], {}
    model["guards_code"], model["verifiers"] = [], ["TRAINING"]
    return inputs, outputs


def _tuple(count: int) -> dict[str, Any]:
    leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
    return {"type": _TUPLE, "context": "null", "children_spec": [leaf] * count}


def _spec(children: list[Any]) -> str:
    return json.dumps([1, {"type": _TUPLE, "context": "null", "children_spec": children}])


def _output_names(spec: Any, count: int) -> tuple[str, ...]:
    """Keys of a dict or of a transformers output; else `output`, or `output_0`, `output_1`, ..."""
    numbered = ("output",) if count == 1 else tuple(f"output_{i}" for i in range(count))
    try:
        keys = json.loads(spec[1]["context"])
    except (ValueError, TypeError):
        return numbered
    valid = isinstance(keys, list) and len(keys) == count and all(isinstance(k, str) and k for k in keys)
    return tuple(keys) if valid else numbered


def _expressions(value: Any) -> Iterator[str]:
    """Every size expression below a JSON value."""
    pending = [value]
    while pending:
        current = pending.pop()
        if isinstance(current, dict):
            if isinstance(current.get("expr_str"), str):
                yield current["expr_str"]
            pending += current.values()
        elif isinstance(current, list):
            pending += current


def _is_arithmetic(text: str) -> bool:
    """Whether an expression consists of known functions, names of sizes and numbers only."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    functions = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            return False
        if isinstance(node, ast.Name):
            wanted = (
                node.id in _FUNCTIONS if id(node) in functions else re.fullmatch(r"[su]\d+|int_oo", node.id)
            )
            if not wanted:
                return False
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and not re.fullmatch(r"\w+", node.value)
        ):
            return False
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
            return False
    return True


def _program(model: Any, weights: Mapping[str, Any], constants: Mapping[str, Any], path: Path) -> Any:
    from torch._export.serde import schema, serialize

    from llmc.compiler.frontends import packed  # its op must be known to torch

    assert packed.recurrent is not None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read_schema: Any = serialize._dict_to_dataclass
            described = read_schema(schema.ExportedProgram, model)
            return serialize.ExportedProgramDeserializer().deserialize(
                described, dict(weights), dict(constants)
            )
    except Exception as error:  # torch's deserialiser raises many kinds for a program that makes no sense
        lines = str(error).strip().splitlines()
        raise _damaged(path, f"{type(error).__name__}: {lines[0] if lines else ''}") from error
