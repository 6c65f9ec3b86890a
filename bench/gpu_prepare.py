"""Fills a folder with all that bench/gpu.py needs on a machine that has a GPU, and neither nvcc nor llmc.

    kernels/NAME/   an artifact of a small graph whose outputs are single kernels, with `cases.npz`
    models/NAME/    an artifact of a model, with `cases.npz`: inputs, and the interpreter's answers
    cpu/NAME/       the same models for x86
    site/           llmc's runtime, for NumPy only
    demo/           the demo model, for PyTorch
    packed/         all of it in few and small files: this folder can travel instead

`cases.npz` holds arrays "NUMBER/in/NAME" and "NUMBER/out/NAME". What is there is kept: a second run goes on.
"""

from __future__ import annotations

import importlib
import lzma
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from gpu_models import PRECISIONS, SUBJECTS, Arrays, Subject, tokens, torch_model

import llmc
from llmc.compiler import interpret
from llmc.compiler.frontends import huggingface
from llmc.compiler.frontends.module import graph as from_module
from llmc.compiler.graph import Graph
from llmc.compiler.module import Module
from llmc.compiler.pipeline import Pipeline
from llmc.driver import compile_graph
from llmc.passes import LEVELS, PASSES
from llmc.passes.quantise import QUANTISATIONS
from llmc.passes.quantise.int16 import with_kernels
from llmc.targets.cuda.backend import BACKEND

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests"
DEMO = Path(llmc.__file__).parent / "demo" / "model"
EVERYWHERE = "integers-all"  # compiled for every architecture
SEEDS = 3  # random graphs of each kind
# One file of each line, what has weights in common side by side.
PACKED = {
    "kernels": ("kernels",),
    "demo": ("models/demo-*", "cpu/demo-*", "demo"),
    "minilm-size": ("models/minilm-size-*", "cpu/minilm-size-*"),
    "base-size": ("models/base-size-*",),
}
_FILTERS = ({"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 32 << 20},)
SCRIPTS = ("gpu.py", "gpu_cpu.py", "gpu_models.py", "gpu_race.py", "gpu_table.py", "gpu_worker.py")
Cases = Sequence[tuple[Graph, Arrays]]


def make_folders(folder: Path) -> None:
    """Those that artifacts go into."""
    for name in ("kernels", "models", "cpu", "sources"):
        (folder / name).mkdir(parents=True, exist_ok=True)


def write_cases(path: Path, cases: Cases) -> None:
    """Inputs and the interpreter's answers."""
    arrays: Arrays = {}
    for number, (graph, inputs) in enumerate(cases):
        answers = interpret.run(graph, inputs)
        arrays |= {f"{number}/in/{name}": value for name, value in inputs.items()}
        arrays |= {f"{number}/out/{name}": value for name, value in answers.items()}
    np.savez_compressed(path, **arrays)


def from_tests(name: str) -> ModuleType:
    """A module of tests/ or tests/cuda/: they make the graphs."""
    for folder in (str(TESTS), str(TESTS / "cuda")):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    return importlib.import_module(name)


def recurrent_cases() -> Iterator[tuple[Graph, Arrays]]:
    """An LSTM both ways over rows of different lengths, then a GRU: loops."""
    tests, rng = from_tests("test_loops"), np.random.default_rng(0)
    sample = {"x": torch.zeros(2, tests.STEPS, tests.WIDTH), "lengths": torch.tensor([tests.STEPS] * 2)}
    graph = from_module(tests.Network().eval(), sample, ("y",), 8)
    for lengths in ((3,), (5, 1, 4, 2)):
        x = rng.standard_normal((len(lengths), tests.STEPS, tests.WIDTH)).astype(np.float32)
        yield graph, {"x": x, "lengths": np.array(lengths)}


def stored_cases(tests: ModuleType) -> Iterator[tuple[Graph, Arrays]]:
    """Products of stored weights, of few rows and of many."""
    graph = tests.together()
    for rows in (1, 5, 8, 9, 65):
        yield graph, {x.attributes["name"]: tests.given(int(x.shape[1]), rows) for x in graph.inputs}


def kernel_graphs() -> dict[str, list[tuple[Graph, Arrays]]]:
    """Name -> cases of one graph."""
    tests = from_tests("test_kernels")
    found: dict[str, list[tuple[Graph, Arrays]]] = {}
    for name, (graph, inputs) in tests.GRAPHS.items():
        parts = name.split("-")
        if parts[1].isdigit() and int(parts[1]) >= SEEDS:
            continue
        found.setdefault(parts[0] if "x" in parts[-1] else name, []).append((graph, inputs))
    found["loops"] = list(recurrent_cases())
    integers = tests.integer_graph()
    found["integers"] = [(integers, {"x": value}) for value in map(tests.integer_rows, (1, 7, 64, 65))]
    for name, module in (("stored", "test_stored"), ("blocks", "test_int8_blocks")):
        found[name] = list(stored_cases(from_tests(module)))
    return found


def prepare_kernels(folder: Path, target: str, say: Callable[[str], None]) -> None:
    """kernels/"""
    graphs = kernel_graphs()
    targets = dict.fromkeys(graphs, target) | {EVERYWHERE: "cuda"}
    for name, where in targets.items():
        place, cases = folder / "kernels" / name, graphs[name.removesuffix("-all")]
        if (place / "cases.npz").exists():
            continue
        say(f"kernels/{name}")
        compile_graph(cases[0][0], place, target=where, level=0)
        write_cases(place / "cases.npz", cases)


def prepare_sessions(folder: Path, target: str, say: Callable[[str], None]) -> None:
    """Functions with states: no cases, the self-test is sessions. kernels/"""
    for name, make in from_tests("stateful_graphs").EVERY.items():
        place = folder / "kernels" / f"states-{name.replace(', ', '-').replace(' ', '-')}"
        if not place.exists():
            say(f"kernels/{place.name}")
            compile_graph(Module.of(make()), place, target=target)


def model_folder(name: str, folder: Path) -> Path:
    """A Hugging Face folder of the model."""
    if not SUBJECTS[name].layers:
        return DEMO
    place = folder / name
    if not place.exists():
        torch_model(name, DEMO).save_pretrained(place)
    return place


def model_cases(graph: Graph, subject: Subject, precision: str) -> Cases:
    """The graph that the artifact computes at the subject's shapes."""
    passes = (LEVELS[3], QUANTISATIONS[PRECISIONS[precision]])
    steps = Pipeline.parse(",".join(p for p in passes if p), PASSES)
    answering = with_kernels(steps, BACKEND.integer_rows).run(graph)[0]
    return [(answering, tokens(subject, *shape, padded=True)) for shape in subject.checks]


def artifacts(target: str) -> Iterator[tuple[str, str, str, str]]:
    """Folder, model, precision, target of each."""
    for name, subject in SUBJECTS.items():
        for precision in subject.precisions:
            yield f"models/{name}-{precision}", name, precision, target
    for name in ("demo", "minilm-size"):
        for precision in ("fp32", "int8"):
            yield f"cpu/{name}-{precision}", name, precision, "x86"


def prepare_models(folder: Path, target: str, say: Callable[[str], None]) -> None:
    """models/ and cpu/"""
    for place, name, precision, where in artifacts(target):
        done = folder / place
        if (done / "cases.npz").exists() or (where == "x86" and done.exists()):
            continue
        say(place)
        source = model_folder(name, folder / "sources")
        llmc.compile(source, done, target=where, quant=PRECISIONS[precision])
        if where != "x86":
            graph = huggingface.load(source).graph
            write_cases(done / "cases.npz", model_cases(graph, SUBJECTS[name], precision))


def prepare_rest(folder: Path) -> None:
    """The scripts, the runtime and the demo model."""
    for name in SCRIPTS:
        shutil.copyfile(HERE / name, folder / name)
    site = folder / "site" / "llmc"
    (site / "runtime").mkdir(parents=True, exist_ok=True)
    package = Path(llmc.__file__).parent
    for name in ("__init__.py", "errors.py"):
        shutil.copyfile(package / name, site / name)
    for path in (HERE.parent / "runtime").glob("*.py"):
        shutil.copyfile(path, site / "runtime" / path.name)
    shutil.copytree(DEMO, folder / "demo", dirs_exist_ok=True)


def pack(folder: Path, name: str) -> None:
    """The artifacts of a line of PACKED in one file, where a folder must be small to travel; gpu.py unpacks it."""
    paths = [path for pattern in PACKED[name] for path in sorted(folder.glob(pattern))]
    target = folder / "packed" / f"{name}.tar.xz"
    with lzma.open(target, "wb", filters=_FILTERS) as file, tarfile.open(fileobj=file, mode="w|") as tar:
        for path in paths:
            tar.add(path, str(path.relative_to(folder)))


def pack_all(folder: Path) -> None:
    """packed/: all that travels."""
    (folder / "packed").mkdir(exist_ok=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: pack(folder, name), PACKED))
    for script in SCRIPTS:
        shutil.copyfile(HERE / script, folder / "packed" / script)
    shutil.copytree(folder / "site", folder / "packed" / "site", dirs_exist_ok=True)


def prepare(folder: Path, target: str, say: Callable[[str], Any]) -> None:
    """Everything."""
    make_folders(folder)
    prepare_kernels(folder, target, say)
    prepare_sessions(folder, target, say)
    prepare_models(folder, target, say)
    prepare_rest(folder)
    pack_all(folder)
