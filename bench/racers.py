"""Those who race: each loads a model for a number of threads, then binds it to the inputs of one shape.

What every one of them is told: the number of threads, fp32 where it would choose bf16, no spinning between runs where
it has a switch for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from stock import Stock

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Call = Callable[[], Array]  # one run; gives the output that is compared
Racer = Callable[[Arrays], Call]  # inputs -> a call on them


@dataclass(frozen=True)
class Setting:
    """What a racer is loaded for: fp32 or int8, threads, and "all" or "avx2" as the instructions allowed."""

    precision: str
    threads: int
    isa: str


def pytorch(stock: Stock, setting: Setting) -> Racer:
    """Eager, in inference mode; inputs are shared, not copied."""
    import torch

    torch.set_num_threads(setting.threads)
    model, output = stock.subject.torch_model(), stock.subject.output

    def bind(arrays: Arrays) -> Call:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}

        def call() -> Array:
            with torch.inference_mode():
                result: Array = model(**tensors)[output].numpy()
            return result

        return call

    return bind


def pytorch_compiled(stock: Stock, setting: Setting) -> Racer:
    """torch.compile by inductor with weights frozen, sizes dynamic; needs a C++ compiler."""
    import torch
    import torch._dynamo
    from torch._inductor import config

    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64
    config.freezing = True
    if setting.isa == "avx2":
        config.cpp.march, config.cpp.simdlen = "haswell", 256
    torch.set_num_threads(setting.threads)  # inductor writes it into its code
    model, output = torch.compile(stock.subject.torch_model(), dynamic=True), stock.subject.output

    def bind(arrays: Arrays) -> Call:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}

        def call() -> Array:
            with torch.no_grad():
                result: Array = model(**tensors)[output].numpy()
            return result

        call()  # compiles
        return call

    return bind


def onnxruntime(path: Path, threads: int) -> Racer:
    """With all its graph optimisations; its threads stop spinning when a run ends."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda arrays: lambda: session.run(None, arrays)[0]


def openvino(path: Path, threads: int, static: bool) -> Racer:
    """For latency, in fp32 where it is not int8 (its own choice is bf16 on CPUs with AMX).

    Args:
        static: compile again for each shape.
    """
    import openvino

    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    dynamic = None if static else core.compile_model(str(path), "CPU", settings)

    def bind(arrays: Arrays) -> Call:
        compiled = dynamic
        if compiled is None:
            model = core.read_model(str(path))
            model.reshape({name: list(array.shape) for name, array in arrays.items()})
            compiled = core.compile_model(model, "CPU", settings)
        request = compiled.create_infer_request()
        return lambda: request.infer(arrays, share_inputs=True, share_outputs=True)[0]

    return bind


class Artifact:
    """llmc's artifact, with the variant that this CPU does best, or AVX2's."""

    def __init__(self, stock: Stock, quant: str, setting: Setting) -> None:
        from llmc.runtime import load

        wanted = "avx2" if setting.isa == "avx2" else None
        self.model, self.output = load(stock.artifact(quant), setting.threads, wanted), stock.subject.output
        self.variant = self.model.variant

    def __call__(self, arrays: Arrays) -> Call:
        return lambda: self.model(**arrays)[self.output]


def llmc(stock: Stock, quant: str, setting: Setting) -> Racer:
    """The artifact of this quantisation, or of fp32 by `--matmul int8x3`."""
    return Artifact(stock, quant, setting)


Loader = Callable[[Stock, Setting], Racer]
PARTS = "llmc-int8x3"

FP32: Mapping[str, Loader] = MappingProxyType(
    {
        "pytorch": pytorch,
        "torch.compile": pytorch_compiled,
        "onnxruntime": lambda stock, s: onnxruntime(stock.onnx(), s.threads),
        "onnxruntime+fusion": lambda stock, s: onnxruntime(stock.fused(), s.threads),
        "openvino": lambda stock, s: openvino(stock.onnx(), s.threads, static=False),
        "openvino-static": lambda stock, s: openvino(stock.onnx(), s.threads, static=True),
        PARTS: lambda stock, s: llmc(stock, "int8x3", s),
        "llmc": lambda stock, s: llmc(stock, "none", s),
    }
)
INT8: Mapping[str, Loader] = MappingProxyType(
    {
        "onnxruntime": lambda stock, s: onnxruntime(stock.onnx_int8(fused=False), s.threads),
        "onnxruntime+fusion": lambda stock, s: onnxruntime(stock.onnx_int8(fused=True), s.threads),
        "openvino": lambda stock, s: openvino(stock.openvino_int8(), s.threads, static=False),
        "openvino-static": lambda stock, s: openvino(stock.openvino_int8(), s.threads, static=True),
        "llmc": lambda stock, s: llmc(stock, "int8", s),
        "llmc-static": lambda stock, s: llmc(stock, "int8-static", s),
        "llmc-fp32": lambda stock, s: llmc(stock, "none", s),
    }
)
LOADERS: Mapping[str, Mapping[str, Loader]] = MappingProxyType({"fp32": FP32, "int8": INT8})
