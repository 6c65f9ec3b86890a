"""A tenth of the node tests of the onnx package, by their files' names; `bench/onnx_conformance.py` runs them all."""

from __future__ import annotations

import importlib.util
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

# what no graph of tensors with known sizes says: results as long as values make them, texts, sequences from outside
REFUSED = frozenset(
    {
        *(
            "Bernoulli",
            "BitCast",
            "BitShift",
            "Cast",
            "Compress",
            "DeformConv",
            "Dropout",
            "Equal",
            "Identity",
        ),
        *("If", "ImageDecoder", "Loop", "MelWeightMatrix", "NonMaxSuppression", "NonZero", "RegexFullMatch"),
        *(
            "OptionalGetElement",
            "OptionalHasElement",
            "Scan",
            "SequenceInsert",
            "SequenceMap",
            "StringConcat",
        ),
        *("SplitToSequence", "StringNormalizer", "StringSplit", "Sub", "TfIdfVectorizer", "Unique"),
        *("ai.onnx.ml.ArrayFeatureExtractor", "ai.onnx.ml.Binarizer", "ai.onnx.ml.LabelEncoder"),
        *("ai.onnx.ml.TreeEnsemble", "function bodies"),
    }
)


SLOW = ("averagepool", "lppool", "maxpool")  # their answers take half a minute to make
TENTH = 5


def cases_module() -> Any:
    """bench/onnx_cases.py, which is no module of the package."""
    path = Path(__file__).parents[2] / "bench" / "onnx_cases.py"
    spec = importlib.util.spec_from_file_location("onnx_cases", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:.*numbers at run time")
def test_a_tenth_of_the_node_tests() -> None:
    module = cases_module()
    chosen = list(
        module.node_cases(lambda name: name not in SLOW and zlib.crc32(name.encode()) % 10 == TENTH)
    )
    rows = [(case, module.tried(case)) for case in chosen]

    lacking = [(c.name, r) for c, r in rows if r["state"] != "right" and c.op not in REFUSED]
    counts = Counter(row["state"] for _, row in rows)

    assert not lacking
    assert set(counts) == {"right", "refused"}
    assert counts["right"] > 0.88 * len(chosen) > 130
