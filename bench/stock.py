"""Files that peers need, made once and kept: ONNX exports, their quantised forms, llmc's artifacts.

Each file's name holds a digest of what made it: the library's version, or for an artifact all of llmc's sources, and
the options. So a rerun compiles nothing again, and never takes what an older version made.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from subjects import Subject

CALIBRATION = 8  # samples that NNCF and int8-static find their ranges with
# Of inputs a model is exported and calibrated with.
SHAPE = (2, 7)


@dataclass(frozen=True)
class Stock:
    """The files of one model.

    Args:
        place: the folder of all files.
        subject: the model.
        say: told of what takes long.
    """

    place: Path
    subject: Subject
    say: Callable[[str], None]

    def onnx(self) -> Path:
        """As PyTorch exports it, with dynamic sizes; attention spelled out, the form whose fusions peers know."""
        return self._kept("onnx", ".onnx", versions("torch", "transformers"), self._export)

    def fused(self) -> Path:
        """After ONNX Runtime's transformer optimiser."""
        return self._kept("fused", ".onnx", self._made_by("onnxruntime"), self._fuse)

    def onnx_int8(self, fused: bool) -> Path:
        """By ONNX Runtime's dynamic quantisation, from `fused` or `onnx`."""
        source = self.fused if fused else self.onnx
        name = f"{'fused' if fused else 'onnx'}-int8"
        return self._kept(
            name, ".onnx", self._made_by("onnxruntime"), lambda to: _quantise_onnx(source(), to)
        )

    def openvino_int8(self) -> Path:
        """By NNCF's post-training quantisation, for OpenVINO."""
        return self._kept("nncf-int8", ".xml", self._made_by("openvino", "nncf"), self._quantise_openvino)

    def artifact(self, quant: str) -> Path:
        """Compiled by llmc, with code for every x86-64 it knows; `quant` may be "int8x3", a way to multiply fp32."""
        return self._kept(f"llmc-{quant}", ".llmc", sources_digest(), lambda to: self._compile(quant, to))

    def calibration(self) -> list[dict[str, np.ndarray[Any, Any]]]:
        """Inputs like those of the race, of one shape."""
        (shape,) = self.subject.shapes([(1, 64)])
        return [self.subject.sample(*shape, seed=100 + i) for i in range(CALIBRATION)]

    def _made_by(self, *packages: str) -> str:
        return versions("torch", "transformers", *packages)

    def _kept(self, name: str, end: str, made_by: str, make: Callable[[Path], None]) -> Path:
        """The file, made under another name if it is not there."""
        folder = str(self.subject.folder.resolve())
        key = hashlib.sha256(f"{folder} {self.subject.task} {made_by}".encode()).hexdigest()[:12]
        path = self.place / f"{self.subject.name}-{name}-{key}" / f"model{end}"
        if not path.exists():
            self.say(f"{self.subject.name}: making {name}")
            scratch = path.parent.with_name(f"{path.parent.name}.{os.getpid()}.new")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            try:
                make(scratch / path.name)
                if not path.exists():  # another process may have been faster
                    scratch.rename(path.parent)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return path

    def _export(self, target: Path) -> None:
        """By tracing: the axes of ids and mask are batch and seq, of images the first is the batch."""
        import torch

        subject, output = self.subject, self.subject.output
        model = subject.torch_model("eager")
        arrays = subject.sample(*(SHAPE if not subject.image else (2, subject.tokens)))
        names = list(arrays)

        class Positional(torch.nn.Module):
            """transformers' models take keywords, the exporter wants positions."""

            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, *tensors: Any) -> Any:
                return self.model(**dict(zip(names, tensors, strict=True)))[output]

        axes = {0: "batch"} if subject.image else {0: "batch", 1: "seq"}
        with quiet(), torch.no_grad():
            torch.onnx.export(
                Positional().eval(),
                tuple(torch.from_numpy(array) for array in arrays.values()),
                str(target),
                input_names=names,
                output_names=[output],
                dynamic_axes={
                    **dict.fromkeys(names, axes),
                    output: {0: "batch"} if output == "logits" else axes,
                },
                opset_version=17,
                dynamo=False,
            )

    def _fuse(self, target: Path) -> None:
        from onnxruntime.transformers import optimizer

        config = self.subject.config
        with quiet():
            optimised = optimizer.optimize_model(
                str(self.onnx()),
                model_type="vit" if self.subject.image else "bert",
                num_heads=config.num_attention_heads,
                hidden_size=config.hidden_size,
                opt_level=0,
            )
            optimised.save_model_to_file(str(target))
        counts = {name: n for name, n in optimised.get_fused_operator_statistics().items() if n}
        self.say(f"{self.subject.name}: ONNX Runtime's optimiser fused {counts}")

    def _quantise_openvino(self, target: Path) -> None:
        import nncf
        import openvino

        with quiet():
            nncf.set_log_level(logging.ERROR)
            quantised = nncf.quantize(
                openvino.Core().read_model(str(self.onnx())),
                nncf.Dataset(self.calibration()),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=CALIBRATION,
            )
        openvino.save_model(quantised, str(target), compress_to_fp16=False)

    def _compile(self, quant: str, target: Path) -> None:
        import llmc

        more: dict[str, Any] = {}
        if quant == "int8x3":
            quant, more["matmul"] = "none", quant
        if quant == "int8-static":
            more["calib"] = target.parent / "calibration.npz"
            samples = self.calibration()
            joined: dict[str, Any] = {n: np.concatenate([s[n] for s in samples]) for n in samples[0]}
            np.savez(more["calib"], **joined)
        llmc.compile(self.subject.folder, target, task=self.subject.task, target="x86", quant=quant, **more)


def _quantise_onnx(source: Path, target: Path) -> None:
    """Weights by channel: as fast as by tensor, and nearer to fp32."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet():
        quantize_dynamic(
            str(source),
            str(target),
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": 1},  # FLOAT: shapes are not inferred through fused nodes
        )


def versions(*packages: str) -> str:
    """`torch 2.13.0, openvino 2026.4.1`."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def sources_digest() -> str:
    """Of llmc's version and every source file that makes an artifact."""
    import llmc
    import llmc.compiler
    import llmc.passes
    import llmc.runtime
    import llmc.targets

    digest = hashlib.sha256(llmc.__version__.encode())
    for package in (llmc, llmc.compiler, llmc.passes, llmc.targets, llmc.runtime):
        for file in _sources(Path(next(iter(package.__path__)))):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _sources(folder: Path) -> Iterator[Path]:
    ends = {".py", ".c", ".h", ".jinja"}
    return (file for file in sorted(folder.rglob("*")) if file.suffix in ends and file.is_file())


@contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars, and the warnings that exporters give to their own developers."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def library_versions() -> Mapping[str, str]:
    """Package -> version of all that race here; those not installed are left out."""
    found = {}
    for name in ("onnxruntime", "openvino", "nncf", "torch", "transformers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
