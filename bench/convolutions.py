"""Networks of convolutions beside their peers: latency in fp32 and int8.

    python bench/convolutions.py [--models fashion efficientnet] [--batch 1 8 32] [--threads 1 2] [--quant none int8]
        [--processor]

EfficientNet-Lite0 with its own weights, the shapes of ResNet-50 and MobileNetV2 and a small network for images of
28 x 28 with random ones. ONNX Runtime, OpenVINO with dynamic and with static shapes, and llmc, in turns in one process,
equal threads, all pools asleep before each turn, fp32 outputs checked against PyTorch's first. Lines of a Markdown
table: medians, and llmc's over the best peer's with a 95 % interval of paired rounds. With `--quant int8` or
`int8-static` peers race in int8, too: ONNX Runtime by its static quantiser (QDQ, weights by channel), OpenVINO by NNCF;
their ranges and those of `int8-static` are from the same eight random images. llmc's int8 is over the best of these.
`--processor` counts the time of processors, not the time that passes, which other work on the machine stretches.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import racers
import torch
from contest import TOLERANCE, compare, pause_after, settle
from imagenet import build
from models import fetch

import llmc
from llmc.demo.race import race, ratio

Array = np.ndarray[Any, Any]
SIZE = 224
STATIC = "int8-static"


class _Logits(torch.nn.Module):
    """A classifier of transformers, as a function of pixels."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(pixel_values=pixel_values).logits
        return logits


def _fashion() -> tuple[Any, tuple[int, ...]]:
    nn = torch.nn
    layers: list[Any] = []
    for channels, more in ((1, 32), (32, 64)):
        layers += [nn.Conv2d(channels, more, 3, padding=1), nn.BatchNorm2d(more), nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*layers, *head), (1, 28, 28)


def _efficientnet() -> tuple[Any, tuple[int, ...]]:
    return build(fetch("efficientnet-code"), fetch("efficientnet")), (3, SIZE, SIZE)


def _resnet() -> tuple[Any, tuple[int, ...]]:
    from transformers import ResNetConfig, ResNetForImageClassification

    return _Logits(ResNetForImageClassification(ResNetConfig(num_labels=1000))), (3, SIZE, SIZE)


def _mobilenet() -> tuple[Any, tuple[int, ...]]:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return _Logits(MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=1000))), (3, SIZE, SIZE)


MODELS: dict[str, Callable[[], tuple[Any, tuple[int, ...]]]] = {
    "fashion": _fashion,
    "efficientnet": _efficientnet,
    "resnet50": _resnet,
    "mobilenetv2": _mobilenet,
}


def _files(name: str, quants: list[str], folder: Path) -> tuple[Any, tuple[int, ...]]:
    """Write an ONNX file and an artifact for each of `quants`; the model, and the shape of an image."""
    torch.manual_seed(0)
    model, shape = MODELS[name]()
    model = model.eval().requires_grad_(False)
    sample = torch.zeros(1, *shape)
    names: dict[str, Any] = {"input_names": ["pixel_values"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (sample,),
            folder / "model.onnx",
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
            dynamo=True,
            external_data=False,
            verbose=False,
            **names,
        )
    images = [_images(1, shape, 100 + seed) for seed in range(8)]
    np.savez(folder / "images.npz", pixel_values=np.concatenate([image["pixel_values"] for image in images]))
    for quant in quants:
        given = {"calib": folder / "images.npz"} if quant == STATIC else {}
        path = folder / f"{quant}.llmc"
        llmc.compile_module(model, {"pixel_values": sample}, path, outputs=("logits",), quant=quant, **given)
    if any(map(_on_int8, quants)):
        _quantised_peers(folder, images)
    return model, shape


def _on_int8(name: str) -> bool:
    return "int8" in name


def _quantised_peers(folder: Path, images: list[dict[str, Array]]) -> None:
    """The ONNX file on int8, by ONNX Runtime's quantiser and by NNCF."""
    import nncf
    import openvino
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, Array] | None:
            return next(self.left, None)

    logging.disable(logging.WARNING)
    quant_pre_process(str(folder / "model.onnx"), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
    quantize_static(
        str(folder / "prepared.onnx"),
        str(folder / "int8.onnx"),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
    )
    nncf.set_log_level(logging.ERROR)
    model = openvino.Core().read_model(str(folder / "model.onnx"))
    quantised = nncf.quantize(model, nncf.Dataset(images), subset_size=len(images))
    openvino.save_model(quantised, str(folder / "int8.xml"), compress_to_fp16=False)


def _images(batch: int, shape: tuple[int, ...], seed: int) -> dict[str, Array]:
    return {"pixel_values": np.random.default_rng(seed).standard_normal((batch, *shape), np.float32)}


def _calls(folder: Path, quants: list[str], threads: int, arrays: dict[str, Array]) -> dict[str, racers.Call]:
    """Each racer, bound to the inputs; artifacts first, then the peers' fp32."""

    def own(quant: str) -> racers.Call:
        model = llmc.load(folder / f"{quant}.llmc", threads)
        return lambda: model.run(arrays)["logits"]

    calls = {f"llmc {quant}": own(quant) for quant in quants}
    calls["onnxruntime"] = racers.onnxruntime(folder / "model.onnx", threads)(arrays)
    for kind in ("dynamic", "static"):
        calls[f"openvino {kind}"] = racers.openvino(folder / "model.onnx", threads, kind == "static")(arrays)
    if any(map(_on_int8, quants)):
        calls["onnxruntime int8"] = racers.onnxruntime(folder / "int8.onnx", threads)(arrays)
        for kind in ("dynamic", "static"):
            path = folder / "int8.xml"
            calls[f"openvino {kind} int8"] = racers.openvino(path, threads, kind == "static")(arrays)
    return calls


def _lines(name: str, options: argparse.Namespace, folder: Path) -> Iterator[str]:
    model, shape = _files(name, options.quant, folder)
    for batch in options.batch:
        arrays = _images(batch, shape, 0)
        with torch.inference_mode():
            expected = model(torch.from_numpy(arrays["pixel_values"])).numpy()
        for threads in options.threads:
            calls = _calls(folder, options.quant, threads, arrays)
            _want_same(calls, expected)
            pause = pause_after(settle(calls).values())
            clock = time.process_time if options.processor else time.perf_counter
            times = race(calls, options.seconds, pause=pause, fewest=7, warm=2, clock=clock)
            yield _line(f"{name} | {batch} | {threads}", times)


def _want_same(calls: dict[str, racers.Call], expected: Array) -> None:
    scale = float(np.abs(expected).max())
    for name, call in calls.items():
        apart = compare(np.array(call()), expected)["difference"] / scale
        if apart > TOLERANCE and not _on_int8(name):
            raise SystemExit(f"{name} is {apart:.2g} of the outputs' scale from PyTorch: no race")


def _line(what: str, times: dict[str, Any]) -> str:
    cells = [f"{1e3 * float(np.median(times[name])):.3g}" for name in times]
    for name in times:
        if name.startswith("llmc"):
            peers = [p for p in times if not p.startswith("llmc") and _on_int8(p) == _on_int8(name)]
            best = min(peers, key=lambda peer: float(np.median(times[peer])))
            middle, low, high = ratio(times[name], times[best])
            cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
    return f"| {what} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--quant", nargs="+", default=["none"], choices=["none", "int8", STATIC, "fp16"])
    parser.add_argument("--seconds", type=float, default=3.0, help="of one race, at least seven rounds")
    parser.add_argument("--processor", action="store_true")
    options = parser.parse_args()
    own = [f"llmc {quant}, ms" for quant in options.quant]
    over = [f"llmc {quant} / best" for quant in options.quant]
    peers = ["ONNX Runtime", "OpenVINO dynamic", "OpenVINO static"]
    peers += [f"{peer} int8" for peer in peers] if any(map(_on_int8, options.quant)) else []
    heads = ["model", "batch", "threads", *own, *peers, *over]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name in options.models:
        with TemporaryDirectory(prefix="llmc-") as folder:
            for line in _lines(name, options, Path(folder)):
                print(line, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
