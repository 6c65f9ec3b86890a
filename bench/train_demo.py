"""Train the sentiment classifier that `llmc demo` ships: all-MiniLM-L6-v2 fine-tuned, cut down, distilled.

    python bench/train_demo.py [--minilm FOLDER] [--reviews FILE] [--output FOLDER]

1. A teacher: the six layers of MiniLM with mean pooling and a two-class head, fine-tuned on movie reviews.
2. A student: MiniLM's most used word pieces, its first layer(s) with the strongest feed-forward units.
3. The student learns the teacher's logits on the reviews, on spans of them and on unlabelled snippets.
4. Weights are rounded to fp16, the folder is written, and the *written* model is scored on the test reviews.

Everything is seeded and runs on one thread. Choices (epochs, sizes) were made on 800 development reviews that
are held out of the training set; the 2,000 test reviews are scored once, at the end.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from models import fetch
from sentiment import (
    Review,
    Teacher,
    accuracy,
    encode,
    fine_tuned,
    full_tokenizer,
    predict,
    read_texts,
    spans,
    split,
    train,
)
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification
from transformers.utils import logging

LABELS = ("negative", "positive")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Size:
    """The student's shape; `pieces` word pieces, all else as in BertConfig."""

    pieces: int = 5501
    width: int = 192
    layers: int = 2
    intermediate: int = 512
    positions: int = 256


def cut_vocabulary(source: Tokenizer, counts: Counter[str], pieces: int) -> dict[str, int]:
    """Kept pieces -> ids: special tokens, every ASCII character (also as ##), then the most counted."""
    known = source.get_vocab()
    characters = [c for c in map(chr, range(33, 127)) if c in known]
    continued = [f"##{c}" for c in characters if f"##{c}" in known]
    ranked = sorted(counts, key=lambda piece: (-counts[piece], piece))
    kept = list(dict.fromkeys([*SPECIAL, *characters, *continued, *ranked]))[:pieces]
    return {piece: index for index, piece in enumerate(kept)}


def cut_tokenizer(source: Tokenizer, vocabulary: dict[str, int], positions: int) -> Tokenizer:
    """`source` with only the pieces of `vocabulary`, truncating at `positions` tokens."""
    table = json.loads(source.to_str())
    table["model"]["vocab"] = vocabulary
    for token in table["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    for name, token in table["post_processor"].get("special_tokens", {}).items():
        token["ids"] = [vocabulary[name]]
    for name in ("sep", "cls"):
        if name in table["post_processor"]:
            table["post_processor"][name][1] = vocabulary[table["post_processor"][name][0]]
    table["padding"] = None
    table["truncation"] = dict(max_length=positions, strategy="LongestFirst", stride=0, direction="Right")
    return Tokenizer.from_str(json.dumps(table))


def make_student(teacher: Teacher, source: Tokenizer, vocabulary: dict[str, int], size: Size) -> Any:
    """A BertForSequenceClassification that starts as the teacher's embeddings and first layers, projected.

    With B (hidden, width) the leading principal axes of the word embeddings: embedding rows become e B, a
    layer's matrix W becomes W B on the reading side and B^T W on the writing side.
    """
    big = teacher.bert
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // 32,
        intermediate_size=size.intermediate,
        max_position_embeddings=size.positions,
        layer_norm_eps=1e-12,
        pad_token_id=0,
        id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)},
    )
    student = BertForSequenceClassification(config)
    mine, theirs = student.bert.embeddings, big.embeddings
    rows = torch.tensor([source.token_to_id(piece) for piece in vocabulary])
    with torch.no_grad():
        words = theirs.word_embeddings.weight[rows]
        axes = torch.linalg.svd(words, full_matrices=False).Vh[: size.width].T
        mine.word_embeddings.weight.copy_(words @ axes)
        mine.position_embeddings.weight.copy_(theirs.position_embeddings.weight[: size.positions] @ axes)
        mine.token_type_embeddings.weight.copy_(theirs.token_type_embeddings.weight @ axes)
        for layer, original in zip(student.bert.encoder.layer, big.encoder.layer, strict=False):
            _project_layer(layer, original, axes)
    return student


def _project_layer(mine: Any, theirs: Any, axes: Tensor) -> None:
    """The first heads that fit the width, and the feed-forward units with the largest |in| * |out|."""
    width = axes.shape[1]
    for name in ("query", "key", "value"):
        small, large = getattr(mine.attention.self, name), getattr(theirs.attention.self, name)
        small.weight.copy_(large.weight[:width] @ axes)
        small.bias.copy_(large.bias[:width])
    mine.attention.output.dense.weight.copy_(axes.T @ theirs.attention.output.dense.weight[:, :width])
    mine.attention.output.dense.bias.copy_(theirs.attention.output.dense.bias @ axes)
    strength = theirs.intermediate.dense.weight.norm(dim=1) * theirs.output.dense.weight.norm(dim=0)
    kept = strength.topk(mine.intermediate.dense.out_features).indices.sort().values
    mine.intermediate.dense.weight.copy_(theirs.intermediate.dense.weight[kept] @ axes)
    mine.intermediate.dense.bias.copy_(theirs.intermediate.dense.bias[kept])
    mine.output.dense.weight.copy_(axes.T @ theirs.output.dense.weight[:, kept])
    mine.output.dense.bias.copy_(theirs.output.dense.bias @ axes)


def distillation(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy against the teacher's softened answer, temperature 2."""
    return (
        functional.kl_div(
            functional.log_softmax(logits / 2, 1), functional.softmax(targets / 2, 1), reduction="batchmean"
        )
        * 4
    )


def write(student: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """A Hugging Face folder: fp16 weights that are meant to be loaded as fp32, tokenizer, labels."""
    folder.mkdir(parents=True, exist_ok=True)
    student.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "model.safetensors").chmod(0o644)
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "model_max_length": student.config.max_position_embeddings,
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "mask_token": "[MASK]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def report(folder: Path, test: list[Review]) -> None:
    """Load what was written and score it on the test reviews."""
    model = BertForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [e.ids for e in tokenizer.encode_batch([text for text, _ in test])]
    share = accuracy(model, ids, [label for _, label in test])
    half = 1.96 * math.sqrt(share * (1 - share) / len(test))
    size = (folder / "model.safetensors").stat().st_size
    print(f"weights {size / 1e6:.2f} MB, {sum(p.numel() for p in model.parameters()):,} parameters")
    print(f"test accuracy {100 * share:.2f} % +- {100 * half:.2f} (95 %, n = {len(test)})")


def count_pieces(tokenizer: Tokenizer, ids: list[list[int]], reviews: int) -> Counter[str]:
    """How often each piece occurs; the first `reviews` texts count three times."""
    counts: Counter[int] = Counter()
    for number, row in enumerate(ids):
        for piece in row:
            counts[piece] += 3 if number < reviews else 1
    return Counter({str(tokenizer.id_to_token(piece)): count for piece, count in counts.items()})


def distil(teacher: Teacher, source: Tokenizer, reviews: list[str], others: list[str], size: Size) -> Any:
    """The trained student and its tokenizer."""
    texts = [*reviews, *spans(reviews, 1), *others]
    ids = encode(source, texts)
    print(f"teacher labels {len(ids)} texts", flush=True)
    targets = predict(teacher, ids)
    vocabulary = cut_vocabulary(source, count_pieces(source, ids, len(reviews)), size.pieces)
    tokenizer = cut_tokenizer(source, vocabulary, size.positions)
    torch.manual_seed(2)
    student = make_student(teacher, source, vocabulary, size)
    print("student", flush=True)
    ids = encode(tokenizer, texts)
    train(student, ids, targets, 3, 7e-4, 3, distillation, hidden=0.1, mask_token=vocabulary["[MASK]"])
    return student, tokenizer


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minilm", type=Path, help="the all-MiniLM-L6-v2 folder (default: fetched)")
    parser.add_argument("--reviews", type=Path, help="movieReviewSnippets_GroundTruth.txt")
    parser.add_argument("--output", type=Path, default=ROOT / "compiler" / "llmc" / "demo" / "model")
    parser.add_argument("--teacher", type=Path, help="file that keeps the teacher between runs")
    return parser.parse_args()


def main() -> None:
    """Fetch, train, write, score."""
    options = read_options()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = options.minilm or fetch("minilm")
    tables = read_texts((options.reviews or fetch("reviews")).parent)
    training, development, test = split(tables["movieReview"])
    print(f"{len(training)} training, {len(development)} development, {len(test)} test reviews")

    source = full_tokenizer(folder)
    texts, labels = [text for text, _ in training], [label for _, label in training]
    teacher = fine_tuned(folder, encode(source, texts), labels, options.teacher)
    held_ids, held = encode(source, [text for text, _ in development]), [label for _, label in development]
    print(f"teacher: development accuracy {100 * accuracy(teacher, held_ids, held):.2f} %", flush=True)

    others = [text for name in ("amazonReview", "nytEditorial", "tweets") for text, _ in tables[name]]
    student, tokenizer = distil(teacher, source, texts, others, Size())
    held_ids = encode(tokenizer, [text for text, _ in development])
    print(f"student: development accuracy {100 * accuracy(student, held_ids, held):.2f} %")
    write(student, tokenizer, options.output)
    report(options.output, test)


if __name__ == "__main__":
    main()
