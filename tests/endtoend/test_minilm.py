"""all-MiniLM-L6-v2 with its real weights: against PyTorch, and the same bits whatever the setting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

import llmc

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("minilm")]

SHAPES = list(
    zip(
        (1, 2, 3, 4, 5, 8, 1, 6, 2, 1, 2, 1), (1, 2, 7, 16, 31, 64, 127, 128, 255, 384, 511, 512), strict=True
    )
)
VOCABULARY = 30522


def sample(batch: int, seq: int) -> dict[str, np.ndarray[Any, Any]]:
    """Random ids; every row but the first is padded on the right by a random number of tokens."""
    rng = np.random.default_rng(1000 * batch + seq)
    lengths = rng.integers(1, seq + 1, batch)
    lengths[0] = seq
    mask = (np.arange(seq) < lengths[:, None]).astype(np.int64)
    ids = np.where(mask, rng.integers(1000, VOCABULARY, (batch, seq)), 0)
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module")
def torch_model(minilm: Any) -> Any:
    return transformers.AutoModel.from_pretrained(minilm).eval()


@pytest.mark.parametrize(("batch", "seq"), SHAPES)
def test_against_pytorch(batch: int, seq: int, minilm_artifact: Any, torch_model: Any) -> None:
    inputs = sample(batch, seq)
    with llmc.load(minilm_artifact) as model:
        outputs = model(**inputs)

    with torch.no_grad():
        hidden = torch_model(**{k: torch.from_numpy(v) for k, v in inputs.items()}).last_hidden_state
        weights = torch.from_numpy(inputs["attention_mask"])[..., None]
        mean = (hidden * weights).sum(1) / weights.sum(1)
        expected = torch.nn.functional.normalize(mean).numpy()
    expected_hidden = np.where(weights.numpy(), hidden.numpy(), 0)  # zeros at padding
    assert np.abs(outputs["last_hidden_state"] - expected_hidden).max() <= 2e-4
    assert np.abs(outputs["sentence_embedding"] - expected).max() <= 2e-5
    np.testing.assert_allclose(np.linalg.norm(outputs["sentence_embedding"], axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(("batch", "seq"), [(1, 128), (3, 37), (8, 64)])
def test_same_bits_at_every_thread_count_and_variant(
    batch: int, seq: int, minilm_artifact: Any, variants: Any, bits_agree: Any
) -> None:
    inputs, runs = sample(batch, seq), []
    for variant in variants(minilm_artifact):
        for threads in (1, 2, 3, 4):
            with llmc.load(minilm_artifact, threads=threads, variant=variant) as model:
                runs.append(model(**inputs))
    assert bits_agree(runs)


def test_a_row_is_the_same_alone_and_in_a_padded_batch(minilm_artifact: Any) -> None:
    inputs = sample(8, 100)
    with llmc.load(minilm_artifact) as model:
        together = model(**inputs)
        for row, length in enumerate(inputs["attention_mask"].sum(1)):
            alone = model(**{k: v[row : row + 1, :length] for k, v in inputs.items()})
            np.testing.assert_array_equal(
                alone["last_hidden_state"][0], together["last_hidden_state"][row, :length]
            )
            np.testing.assert_array_equal(alone["sentence_embedding"][0], together["sentence_embedding"][row])


def test_text(minilm_artifact: Any, minilm: Any) -> None:
    """Tokenised as transformers does, and close in meaning is close in space."""
    texts = ["A man is eating food.", "Someone has a meal.", "The bond market fell sharply on Tuesday."]
    with llmc.load(minilm_artifact) as model:
        found = model.run_text(texts)["sentence_embedding"]
        given = transformers.AutoTokenizer.from_pretrained(minilm)(texts, padding=True, return_tensors="np")
        expected = model(**given)["sentence_embedding"]
    np.testing.assert_array_equal(found, expected)
    assert found[0] @ found[1] > 0.5 > 0.2 > found[0] @ found[2]


MEMORY = """
import re, sys
from pathlib import Path
import numpy as np
import llmc.runtime
def of(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = of("VmRSS")
read = int(re.search(r"rchar: (\\d+)", Path("/proc/self/io").read_text())[1])
model = llmc.runtime.load(sys.argv[1], check_weights=sys.argv[2] == "checked")
print(int(re.search(r"rchar: (\\d+)", Path("/proc/self/io").read_text())[1]) - read, of("VmRSS") - before)
ids = np.full((1, 128), 2000)
for _ in range(3):
    model(input_ids=ids)
print(of("VmHWM") - before)
"""


def memory(artifact: Any, python: Any, how: str) -> tuple[int, int, int]:
    """Bytes read and resident after opening, and the most after runs, beyond those before."""
    read, resident, peak = map(int, python(MEMORY, artifact, how).stdout.split())
    return read, resident, peak


def test_memory(minilm_artifact: Any, python: Any) -> None:
    """Opening maps the weights; checking them touches each page, of the file's own. A run takes at most 40 MB more."""
    weights = (minilm_artifact / "weights.bin").stat().st_size
    others = sum(p.stat().st_size for p in minilm_artifact.iterdir()) - weights
    for how, most in (("unchecked", 10_000_000), ("checked", weights + 10_000_000)):
        read, resident, peak = memory(minilm_artifact, python, how)
        assert read < 3 * others + 2_000_000 < weights / 10
        assert resident < most
        assert peak <= weights + 40_000_000


def test_size(minilm_artifact: Any) -> None:
    assert sum((minilm_artifact / name).stat().st_size for name in ("module.so", "bench")) <= 800_000
