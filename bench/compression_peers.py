"""Peers' int8 of the fine-tuned sentiment model, judged as `compression.py` judges recipes.

ONNX Runtime: weights by channel after its transformer optimiser, activations found as they come or by calibration
(QDQ, smallest and largest values, by channel). OpenVINO: NNCF's post-training quantisation for transformers.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import racers
import sentiment
import subjects
import train_classifier
from stock import Stock, quiet

import llmc

Array = np.ndarray[Any, Any]
Answer = Callable[[dict[str, Array]], Array]  # inputs -> logits
SEQ, ROUNDS, RUNS = 128, 9, 20


def peers(model: Path, dense: Path, samples: Path, count: int | None) -> Iterator[dict[str, Any]]:
    """A line of the table for each peer; latency is beside the dense artifact, one thread, in turns."""
    cache = model.parent / "peers"
    cache.mkdir(exist_ok=True)
    stock = Stock(cache, subjects.find(str(model), cache), lambda text: None)
    tokenizer = sentiment.full_tokenizer(model)
    texts = train_classifier.reviews()[1][:count]
    rows = [inputs(ids) for ids in sentiment.encode(tokenizer, [text for text, _ in texts])]
    labels = np.array([label for _, label in texts])
    calibration = [inputs(ids) for ids in sentiment.encode(tokenizer, samples.read_text().splitlines())]
    with llmc.load(dense, threads=1) as own:
        plain: Answer = lambda arrays: own(**arrays)["logits"]  # noqa: E731
        expected = np.array([int(plain(row).argmax()) for row in rows])
        size = sum(file.stat().st_size for file in dense.iterdir())
        for name, files, answer in made(stock, calibration):
            answers = np.array([int(np.asarray(answer(row)).argmax()) for row in rows])
            bytes_ = sum(file.stat().st_size for file in files)
            low, ratio, high = race(answer, plain)
            loss = (expected == labels).astype(float) - (answers == labels)
            half = 1.96 * loss.std(ddof=1) / math.sqrt(len(loss))
            yield {
                "variant": name,
                "accuracy": float((answers == labels).mean()),
                "agreement": float((answers == expected).mean()),
                "difference": -float(loss.mean()),
                "interval": (-float(loss.mean()) - half, -float(loss.mean()) + half),
                "megabytes": bytes_ / 1e6,
                "of_dense": bytes_ / size,
                "ratio": ratio,
                "ratio_low": low,
                "ratio_high": high,
            }


def inputs(ids: list[int]) -> dict[str, Array]:
    """One text, unpadded."""
    tokens = np.array([ids], np.int64)
    return {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}


def made(stock: Stock, calibration: list[dict[str, Array]]) -> Iterator[tuple[str, list[Path], Answer]]:
    """Name, files and answers of each peer."""
    dynamic = stock.onnx_int8(fused=True)
    yield "ONNX Runtime int8, dynamic", [dynamic], bound(racers.onnxruntime(dynamic, 1))
    static = dynamic.parent / "static.onnx"
    quantise_static(stock.onnx(), static, calibration)
    yield "ONNX Runtime int8, static", [static], bound(racers.onnxruntime(static, 1))
    by_nncf = dynamic.parent / "nncf.xml"
    quantise_by_nncf(stock.onnx(), by_nncf, calibration)
    files = [by_nncf, by_nncf.with_suffix(".bin")]
    yield "OpenVINO int8, NNCF", files, bound(racers.openvino(by_nncf, 1, static=False))


def bound(racer: racers.Racer) -> Answer:
    """Runs of inputs of any size."""
    return lambda arrays: np.asarray(racer(arrays)())


def quantise_static(source: Path, target: Path, calibration: list[dict[str, Array]]) -> None:
    """By ONNX Runtime."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = iter(calibration)

        def get_next(self) -> dict[str, Array] | None:
            return next(self.rows, None)

    with quiet():
        quantize_static(
            str(source),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def quantise_by_nncf(source: Path, target: Path, calibration: list[dict[str, Array]]) -> None:
    """As NNCF does it by default for transformers."""
    import nncf
    import openvino

    with quiet():
        nncf.set_log_level(logging.ERROR)
        quantised = nncf.quantize(
            openvino.Core().read_model(str(source)),
            nncf.Dataset(calibration),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration),
        )
    openvino.save_model(quantised, str(target), compress_to_fp16=False)


def race(answer: Answer, plain: Answer) -> tuple[float, float, float]:
    """Least, median and largest ratio of times of rounds of runs in turns."""
    tokens = np.random.default_rng(0).integers(1000, 20000, (1, SEQ))
    arrays = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    ratios = [seconds(answer, arrays) / seconds(plain, arrays) for _ in range(ROUNDS + 1)][1:]
    return min(ratios), median(ratios), max(ratios)


def seconds(answer: Answer, arrays: dict[str, Array]) -> float:
    """The median of some runs."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        answer(arrays)
        times.append(time.perf_counter() - start)
    return median(times)
