"""The last stages of a compile: the native part of an artifact, and the manifest that describes it."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import llmc
from llmc import tokens
from llmc.compiler import artifact
from llmc.compiler.c_text import Tensor
from llmc.compiler.calls import Call
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.graph import Graph
from llmc.compiler.module import Module, State
from llmc.compiler.plan import Plan
from llmc.compiler.program import signature, write_program
from llmc.compiler.together import Together
from llmc.runtime import sources as c
from llmc.runtime.manifest import FORMAT, MODULE, WEIGHTS
from llmc.runtime.weights import HEADER_BYTES, weights_header
from llmc.targets import Target, toolchain
from llmc.targets.backend import Code
from llmc.targets.backends import backend_of

_BUILD_ID = "@build_id@"  # stands for it in the program, of whose text it is a hash


class Build:
    """The native part of an artifact: weights.bin, module.so, llmc.h and bench."""

    def __init__(
        self,
        folder: Path,
        module: Module,
        plans: Mapping[str, Plan],
        target: Target,
        name: str,
        cc: str | None,
        adapters: Sequence[str] = (),
    ) -> None:
        self.folder, self.module, self.plans, self.target, self.name, self.cc = (
            folder,
            module,
            plans,
            target,
            name,
            cc,
        )
        self.adapters = adapters
        self.weights = next(iter(plans.values()))  # those of all
        self.backend = backend_of(target)
        self.build_id = ""
        self.program = ""

    def write(self, code: Code) -> None:
        """All of it; the id of the build depends on every byte."""
        weights = self.folder / WEIGHTS
        written = artifact.write_weights(weights, self.weights, HEADER_BYTES)
        variants = self.backend.variants(self.target)
        device, built = self.backend.device, self.target.architectures

        program = write_program(
            self.module,
            self.plans,
            variants,
            self.name,
            _BUILD_ID,
            written.checksums,
            built,
            device,
            self.adapters,
        )
        made = (*code.objects.values(), *code.data.values())
        text = program.replace(_BUILD_ID, "")
        parts = [llmc.__version__.encode(), written.sha256.encode(), text.encode(), *made]
        self.build_id = hashlib.sha256(b"\0".join(parts)).hexdigest()
        artifact.stamp_weights(weights, weights_header(self.build_id, self.weights.weights_bytes))
        self.program = program.replace(_BUILD_ID, self.build_id)
        self._link(code)
        shutil.copyfile(c.HEADER, self.folder / "llmc.h")

    def _link(self, code: Code) -> None:
        module = self.folder / MODULE
        with tempfile.TemporaryDirectory(prefix="llmc-") as place:
            own = (c.FOLDER / source for source in self.backend.runtime_sources)  # a path stays what it is
            sources = [Path(place) / "module.c", *c.MODULE_SOURCES, *own]
            sources[0].write_text(self.program)
            for name, data in code.objects.items():
                sources.append(Path(place) / f"{name}.o")
                sources[-1].write_bytes(data)
            sources += [toolchain.embed(Path(place), symbol, data) for symbol, data in code.data.items()]
            libraries = (*c.MODULE_LIBRARIES, *self.backend.libraries)
            self._compile(module, sources, c.MODULE_FLAGS, libraries)
            own_hash = c.write_bench_hash(Path(place), hashlib.sha256(module.read_bytes()).hexdigest())
            self._compile(
                self.folder / "bench", (*c.BENCH_SOURCES, own_hash), c.BENCH_FLAGS, c.BENCH_LIBRARIES
            )

    def _compile(
        self, output: Path, sources: Sequence[Path], flags: Sequence[str], libraries: Sequence[str]
    ) -> None:
        toolchain.build(output, sources, c.FOLDER, flags, libraries, self.target.zig, self.cc)


def manifest(imported: Imported, build: Build, pipeline: str, folder: Path) -> dict[str, Any]:
    steps = [step for plan in build.plans.values() for step in plan.leaves]
    fields: dict[str, Any] = {
        "format": FORMAT,
        "llmc": llmc.__version__,
        "name": build.name,
        "build_id": build.build_id,
        "task": imported.task,
        "functions": [
            _function_entry(name, graph, build.plans[name]) for name, graph in build.module.functions.items()
        ],
        "states": [_state_entry(state) for state in build.module.states.values()],
        "dims": {name: list(bounds) for name, bounds in build.module.dims.items()},
        "target": build.target.name,
        "machine": build.target.machine,
        "variants": [{"name": v.name, "features": [v.needs]} for v in build.backend.variants(build.target)],
        "pipeline": pipeline,
        "files": artifact.file_entries(folder),
        "postprocess": _postprocess(imported),
        "sizes": {
            "parameters": _parameters(imported.module),
            "code_bytes": sum((folder / f).stat().st_size for f in (MODULE, "bench")),
            "weights_bytes": build.weights.weights_bytes,
            "kernels": len({s.kernel.symbol for s in steps if isinstance(s, Call)}),
            "steps": len(steps),
        },
    }
    if imported.preprocess:
        fields["preprocess"] = dict(imported.preprocess)
    if imported.generation:
        fields["generation"] = dict(imported.generation)
    if imported.adapters:
        fields["adapters"] = list(imported.adapters)
    if imported.ensemble:
        fields["ensemble"] = dict(imported.ensemble)
    if imported.labels:
        fields["labels"] = list(imported.labels)
    if imported.tokenizer is not None:
        fields["tokenizer"] = tokens.manifest_entry(imported.tokenizer, build.module.dims)
    return fields


def _postprocess(imported: Imported) -> dict[str, Any]:
    """What was done to make the outputs what they are, or is to be done."""
    if imported.decoder:
        return dict(imported.decoder)
    if imported.scores is not None:
        return {"scores": imported.scores}
    if imported.sentence is None:
        return {}
    said = {
        "pooling": "+".join(imported.sentence.pooling),
        "normalize": "normalize" in imported.sentence.steps,
        "similarity": imported.sentence.similarity,
        "pools_prompt": None if imported.sentence.pools_prompt else False,
    }
    return {key: value for key, value in said.items() if value is not None}


def _parameters(module: Module) -> int:
    """Elements of all constants; what functions share counts once."""
    constants = dict.fromkeys(
        n for graph in module.functions.values() for n in graph.everywhere() if n.op == "constant"
    )
    return sum(node.attributes["value"].array.size for node in constants)


def _function_entry(name: str, graph: Graph, plan: Plan) -> dict[str, Any]:
    inputs, outputs = signature(graph)
    tensors = {"inputs": [_tensor_entry(t) for t in inputs], "outputs": [_tensor_entry(t) for t in outputs]}
    single = {"single": Together(graph).refusal} if graph.states and plan.together is None else {}
    return {"name": name, **tensors, **single}


def _state_entry(state: State) -> dict[str, Any]:
    return {**_tensor_entry(Tensor(state.name, state.type)), "grows": state.grows}


def _tensor_entry(tensor: Tensor) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": tensor.name,
        "dtype": tensor.type.dtype,
        "shape": [d if isinstance(d, int) else str(d) for d in tensor.type.shape],
    }
    if tensor.default is not None:
        entry["default"] = tensor.default
    if tensor.low is not None:
        entry["range"] = [tensor.low, tensor.high]
    return entry
