"""ONNX files damaged in many ways: each is imported or refused with a sentence, in time and memory.

    python bench/onnx_mutations.py [--count 5000] [--seed 0] [--compile 100]

The files are small tests of the onnx package. A change is one of bytes (bits flipped, an end missing, a stretch
written over) or of what the file says: sizes, names, attributes, types, ops, versions, numbers, nodes twice or gone,
cycles. Files go to processes of their own, several to each; a group whose process dies is halved until the file is
found. Of those that are taken some are compiled together and compared with the interpreter, on the same numbers.
Ends with 1 if one ends in an error that is no sentence, dies, hangs or is compiled wrong.
"""

from __future__ import annotations

import argparse
import functools
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_cases
from apart import Row, apart

from llmc.compiler.frontends import onnx as frontend
from llmc.compiler.frontends.onnx_call import TABLE
from llmc.compiler.graph import DTYPES, Graph
from llmc.compiler.interpret import run
from llmc.errors import LlmcError

SECONDS, GIBIBYTES = 20.0, 2
LARGEST = 20_000  # bytes of a file that is damaged
GROUP = 25
_SIZES = (0, 1, 2, 3, 7, -1, -2, 127, 65536, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 62), -(1 << 63))
_FLOATS = (0.0, -0.0, 1e-30, 1e30, float("nan"), float("inf"), -1.5)
Model = Any


# --- changes of what a file says


def _nodes(model: Model) -> list[Any]:
    return list(model.graph.node)


def _some(rng: random.Random, found: Sequence[Any]) -> Any:
    return rng.choice(list(found)) if len(found) else None


def a_size(model: Model, rng: random.Random) -> None:
    """Of an input, an output or a weight."""
    infos = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    dims = [d for i in infos for d in i.type.tensor_type.shape.dim]
    if weight := _some(rng, [t for t in model.graph.initializer if t.dims]) if rng.random() < 0.3 else None:
        weight.dims[rng.randrange(len(weight.dims))] = rng.choice(_SIZES)
    elif (dim := _some(rng, dims)) is not None:
        dim.dim_value = rng.choice(_SIZES)
        if rng.random() < 0.4:
            dim.dim_param = rng.choice(("n", "batch", "seq", "", "2*n", "-1"))


def a_name(model: Model, rng: random.Random) -> None:
    """An input of a node is another value, perhaps one made later."""
    node = _some(rng, [n for n in _nodes(model) if n.input])
    names = [name for n in _nodes(model) for name in (*n.input, *n.output)] + ["", "nobody"]
    if node is not None:
        node.input[rng.randrange(len(node.input))] = rng.choice(names)


def an_attribute(model: Model, rng: random.Random) -> None:
    attribute = _some(rng, [a for n in _nodes(model) for a in n.attribute])
    if attribute is None:
        return
    attribute.i, attribute.f = rng.choice(_SIZES), rng.choice(_FLOATS)
    if attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(_SIZES)
        if rng.random() < 0.3:
            attribute.ints.append(1)
    attribute.s = rng.choice((attribute.s, b"", b"SAME_UPPER", b"\xff", b"nearest"))
    if rng.random() < 0.1:
        attribute.type = rng.randrange(16)


def an_op(model: Model, rng: random.Random) -> None:
    node = _some(rng, _nodes(model))
    if node is not None:
        node.op_type = rng.choice(sorted(name for name in TABLE if "." not in name))


def a_type(model: Model, rng: random.Random) -> None:
    if (tensor := _some(rng, model.graph.initializer)) is not None and rng.random() < 0.3:
        tensor.data_type = rng.randrange(26)
    elif (info := _some(rng, [*model.graph.input, *model.graph.output])) is not None:
        info.type.tensor_type.elem_type = rng.randrange(26)


def a_number(model: Model, rng: random.Random) -> None:
    """A weight of integers becomes an input that is not known, or another number; of floats, too."""
    tensors = [
        *model.graph.initializer,
        *(a.t for n in _nodes(model) for a in n.attribute if a.HasField("t")),
    ]
    tensor = _some(rng, [t for t in tensors if t.raw_data or t.int64_data or t.float_data])
    if tensor is None:
        return
    if tensor.int64_data:
        tensor.int64_data[rng.randrange(len(tensor.int64_data))] = rng.choice(_SIZES)
    elif tensor.float_data:
        tensor.float_data[rng.randrange(len(tensor.float_data))] = rng.choice(_FLOATS)
    else:
        data = bytearray(tensor.raw_data)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        tensor.raw_data = bytes(data)


def a_node_less(model: Model, rng: random.Random) -> None:
    if count := len(model.graph.node):
        del model.graph.node[rng.randrange(count)]


def a_node_more(model: Model, rng: random.Random) -> None:
    """One again, with results of its own or those of the first."""
    if (node := _some(rng, _nodes(model))) is not None:
        more = model.graph.node.add()
        more.CopyFrom(node)
        if rng.random() < 0.7:
            renamed = [f"{name}_again" for name in more.output]
            del more.output[:]
            more.output.extend(renamed)
            model.graph.output[rng.randrange(len(model.graph.output))].name = renamed[0] if renamed else ""


def an_input_less(model: Model, rng: random.Random) -> None:
    """Of a node, or of the graph."""
    node = _some(rng, [n for n in _nodes(model) if n.input])
    if rng.random() < 0.7 and node is not None:
        del node.input[rng.randrange(len(node.input))]
    elif len(model.graph.input):
        del model.graph.input[rng.randrange(len(model.graph.input))]


def a_version(model: Model, rng: random.Random) -> None:
    for opset in model.opset_import:
        opset.version = rng.choice((*range(1, 29), -1, 1 << 40))


def an_open_axis(model: Model, rng: random.Random) -> None:
    """No damage: what all files may say."""
    for info in model.graph.input:
        for dim in info.type.tensor_type.shape.dim:
            if rng.random() < 0.5:
                dim.dim_param = rng.choice(("batch", "n", "m"))


CHANGES: tuple[Callable[[Model, random.Random], None], ...] = (
    *(a_size, a_name, an_attribute, an_op, a_type, a_number, a_node_less, a_node_more, an_input_less),
    *(a_version, an_open_axis),
)


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bits flipped, an end missing or a stretch written over."""
    damaged = bytearray(data)
    match rng.randrange(3):
        case 0:
            for _ in range(rng.randrange(1, 9)):
                damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        case 1:
            del damaged[rng.randrange(len(damaged)) :]
        case _:
            start = rng.randrange(len(damaged))
            damaged[start : start + 8] = rng.randbytes(8)
    return bytes(damaged)


def mutated(data: bytes, seed: int) -> bytes:
    """A file with one change of its bytes, or some of what it says."""
    rng = random.Random(seed)
    if rng.random() < 0.25:
        return of_bytes(data, rng)
    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        try:
            rng.choice(CHANGES)(model, rng)
        except ValueError:
            continue  # protobuf does not take it
    return bytes(model.SerializeToString())


# --- files tried


def graph_of(data: bytes) -> Graph:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(data)
        return frontend.load(path).graph


def arrays(graph: Graph, seed: int = 0) -> dict[str, Any]:
    """Inputs within their bounds, dims of 3."""
    rng = np.random.default_rng(seed)
    sizes = {name: min(max(low, 3), high) for name, (low, high) in graph.dims.items()}
    made = {}
    for node in graph.inputs:
        shape = [d if isinstance(d, int) else sizes[str(d)] for d in node.shape]
        low, high = (node.attributes.get(k) for k in ("low", "high"))
        values = rng.standard_normal(shape) if node.dtype == "f32" else rng.integers(0, 2, shape)
        if high is not None:
            values = np.clip(values, 0 if low is None else low, high)
        made[node.attributes["name"]] = values.astype(DTYPES[node.dtype])
    return made


def tried(files: Sequence[tuple[str, bytes]]) -> Row:
    return {"rows": [_one(name, data) for name, data in files]}


def _one(name: str, data: bytes) -> Row:
    began = time.monotonic()
    row: Row = {"name": name, "state": "taken"}
    try:
        run(graph := graph_of(data), arrays(graph))
    except LlmcError as error:
        row = {"name": name, "state": "refused", "reason": error.problem}
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        row = {"name": name, "state": "crash", "reason": reason[:300]}
    if time.monotonic() - began > SECONDS:
        row = {"name": name, "state": "limit", "reason": f"took {time.monotonic() - began:.0f} s"}
    return row


def all_tried(files: Sequence[tuple[str, bytes]]) -> list[Row]:
    """What becomes of each; a group whose process does not end well is halved."""
    if not files:
        return []
    row = apart("group", functools.partial(tried, files), round(SECONDS * (1 + len(files) / 10)), GIBIBYTES)
    if "rows" in row:
        return list(row["rows"])
    if len(files) == 1:
        return [{**row, "name": files[0][0]}]
    half = len(files) // 2
    return [*all_tried(files[:half]), *all_tried(files[half:])]


# --- compiled


def compiled(files: Sequence[tuple[str, bytes]]) -> list[Row]:
    """Those of many files whose compiled answers are others than the interpreter's."""
    import llmc
    from llmc.compiler.module import Module

    try:
        graphs = {f"t{i}": graph_of(data) for i, (_, data) in enumerate(files)}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "all.llmc")
            llmc.compile_graph(Module(graphs), path, target="x86-avx2")
            with llmc.load(path, threads=2) as model, model.session(threads=2) as session:
                found = [
                    _faults(name, graphs[f"t{i}"], functools.partial(session.call, f"t{i}"))
                    for i, (name, _) in enumerate(files)
                ]
        return [row for row in found if row]
    except Exception as error:
        if len(files) == 1:
            state = "refused late" if isinstance(error, LlmcError) else "crash"
            return [{"name": files[0][0], "state": state, "reason": f"{type(error).__name__}: {error}"[:300]}]
    half = len(files) // 2
    return [*compiled(files[:half]), *compiled(files[half:])]


def _faults(name: str, graph: Graph, answer: Callable[..., Any]) -> Row:
    inputs = arrays(graph, 1)
    try:
        got, wanted = answer(**inputs), run(graph, inputs)
    except LlmcError as error:
        return {"name": name, "state": "no run", "reason": error.problem}
    for key, expected in wanted.items():
        scale = (
            float(np.max(np.abs(expected), initial=0, where=np.isfinite(expected))) if expected.size else 0
        )
        atol = 1e-5 * scale if expected.dtype.kind == "f" else 0
        if not np.allclose(got[key], expected, rtol=1e-4, atol=atol, equal_nan=True):
            return {"name": name, "state": "wrong", "reason": key}
    return {}


# --- the program


def seeds() -> dict[str, bytes]:
    """Small tests, by name."""
    found = ((case.name, case.model.SerializeToString()) for case in onnx_cases.cases())
    return {name: data for name, data in found if len(data) <= LARGEST}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", type=int, default=100, metavar="N", help="of those that are taken")
    options = parser.parse_args()
    known = seeds()
    rng = random.Random(options.seed)
    chosen = [(rng.choice(sorted(known)), options.seed * 10**6 + i) for i in range(options.count)]
    counts: Counter[str] = Counter()
    taken: list[tuple[str, bytes]] = []
    for start in range(0, len(chosen), GROUP):
        group = {f"{name}/{seed}": mutated(known[name], seed) for name, seed in chosen[start : start + GROUP]}
        for row in all_tried(list(group.items())):
            counts[row["state"]] += 1
            taken += [(row["name"], group[row["name"]])] if row["state"] == "taken" else []
            if row["state"] in ("crash", "limit"):
                print(row["name"], row["state"], row["reason"], flush=True)
    print(dict(counts), flush=True)
    late = [
        row
        for i in range(0, min(options.compile, len(taken)), GROUP)
        for row in compiled(taken[i : min(i + GROUP, options.compile)])
    ]
    print(*(f"{row['name']} {row['state']} {row['reason']}" for row in late), sep="\n")
    return int(
        any(counts[s] for s in ("crash", "limit")) or any(r["state"] in ("crash", "wrong") for r in late)
    )


if __name__ == "__main__":
    sys.exit(main())
