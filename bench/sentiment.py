"""Sentiment of rated texts: the data's fixed split, batches, a training loop, and MiniLM fine-tuned on it."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertModel

TEST, DEVELOPMENT = 2000, 800
Review = tuple[str, int]


# --- data


def read_texts(folder: Path) -> dict[str, list[tuple[str, float]]]:
    """(text, mean rating) of every rated file of vaderSentiment: movieReview, amazonReview, tweets, ...

    Args:
        folder: the one with movieReviewSnippets_GroundTruth.txt.
    """
    tables = {}
    for file in sorted(folder.glob("*_GroundTruth.txt")):
        name = file.name.removesuffix("_GroundTruth.txt").removesuffix("Snippets")
        rows = file.read_text(encoding="utf-8", errors="replace").splitlines()
        fields = [row.split("\t") for row in rows if row.count("\t") >= 2]
        tables[name] = [(row[2].strip(), float(row[1])) for row in fields]
    return tables


def split(rated: list[tuple[str, float]]) -> tuple[list[Review], list[Review], list[Review]]:
    """Training, development and test reviews: clear ratings only, in the order of the texts' sha1."""
    clear = {text: int(mean > 0) for text, mean in rated if abs(mean) >= 0.5}
    ordered = sorted(clear.items(), key=lambda item: hashlib.sha1(item[0].encode()).hexdigest())
    test, rest = ordered[:TEST], ordered[TEST:]
    return rest[DEVELOPMENT:], rest[:DEVELOPMENT], test


def spans(texts: list[str], seed: int) -> list[str]:
    """One random span of at least three words of each longer text: from phrases, words are learnt."""
    rng, cut = random.Random(seed), []
    for text in texts:
        words = text.split()
        if len(words) >= 6:
            length = rng.randint(3, len(words) - 1)
            start = rng.randint(0, len(words) - length)
            cut.append(" ".join(words[start : start + length]))
    return cut


def batches(ids: list[list[int]], size: int, seed: int | None) -> Iterator[list[int]]:
    """Index batches of texts of like length, so that little is padded; shuffled when a seed is given."""
    rng = random.Random(seed)
    order = sorted(
        range(len(ids)), key=lambda i: len(ids[i]) // 4 + (rng.random() if seed is not None else 0)
    )
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    if seed is not None:
        rng.shuffle(groups)
    yield from groups


def pad(ids: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Token ids i64[n, longest] padded with 0 and their mask."""
    longest = max(len(row) for row in ids)
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    return padded, mask


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, unpadded."""
    return [e.ids for e in tokenizer.encode_batch(texts)]


def full_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer without padding, truncating at 256 tokens."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    return tokenizer


# --- training


class Teacher(nn.Module):
    """MiniLM, mean pooling over real tokens, one linear layer to two logits."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.bert = BertModel.from_pretrained(folder, add_pooling_layer=False)
        self.head = nn.Linear(self.bert.config.hidden_size, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids, attention_mask).last_hidden_state
        weight = attention_mask[..., None] / attention_mask.sum(1)[:, None, None]
        logits: Tensor = self.head((hidden * weight).sum(1))
        return logits


def logits_of(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """f32[n, 2] from a Teacher or a transformers classifier."""
    result = model(input_ids, attention_mask)
    return result if isinstance(result, Tensor) else result.logits


@torch.no_grad()
def predict(model: nn.Module, ids: list[list[int]]) -> Tensor:
    """Logits f32[n, 2], in the order of `ids`."""
    model.eval()
    logits = torch.empty(len(ids), 2)
    for group in batches(ids, 64, None):
        logits[group] = logits_of(model, *pad([ids[i] for i in group]))
    return logits


def accuracy(model: nn.Module, ids: list[list[int]], labels: list[int]) -> float:
    """Share of right answers."""
    return (predict(model, ids).argmax(1) == torch.tensor(labels)).float().mean().item()


def hide(ids: Tensor, mask: Tensor, token: int, share: float) -> Tensor:
    """`ids` with a random `share` of the tokens after the first replaced by `token`."""
    chosen = (torch.rand(ids.shape) < share) & (mask == 1)
    chosen[:, 0] = False
    return torch.where(chosen, token, ids)


def schedule(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    """Linear warm-up over a tenth of the steps, then linear decay to zero."""
    warm = max(1, steps // 10)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(0.0, (steps - step) / (steps - warm)))
    )


def train(
    model: nn.Module,
    ids: list[list[int]],
    targets: Tensor,
    epochs: int,
    rate: float,
    seed: int,
    loss: Any,
    hidden: float = 0.0,
    mask_token: int = 0,
) -> None:
    """AdamW on batches of 32, `loss(logits, targets)`; a random share `hidden` of the tokens is masked."""
    torch.manual_seed(seed)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.01)
    steps = schedule(optimizer, epochs * math.ceil(len(ids) / 32))
    for epoch in range(epochs):
        model.train()
        total, start = 0.0, time.perf_counter()
        for group in batches(ids, 32, seed + epoch):
            tokens, mask = pad([ids[i] for i in group])
            tokens = hide(tokens, mask, mask_token, hidden) if hidden else tokens
            value = loss(logits_of(model, tokens, mask), targets[group])
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            steps.step()
            total += value.item() * len(group)
        print(
            f"  epoch {epoch + 1}: loss {total / len(ids):.4f}, {time.perf_counter() - start:.0f} s",
            flush=True,
        )


def train_teacher(folder: Path, ids: list[list[int]], labels: list[int], epochs: int = 2) -> Teacher:
    """Fine-tune MiniLM; embeddings and the first two layers stay as they are."""
    torch.manual_seed(0)
    teacher = Teacher(folder)
    for part in (teacher.bert.embeddings, *teacher.bert.encoder.layer[:2]):
        part.requires_grad_(False)
    train(teacher, ids, torch.tensor(labels), epochs, 1e-4, 1, functional.cross_entropy)
    return teacher


def fine_tuned(folder: Path, ids: list[list[int]], labels: list[int], cache: Path | None) -> Teacher:
    """The teacher, from `cache` if it is there."""
    if cache is not None and cache.exists():
        teacher = Teacher(folder)
        teacher.load_state_dict(torch.load(cache, weights_only=True))
        return teacher
    teacher = train_teacher(folder, ids, labels)
    if cache is not None:
        torch.save(teacher.state_dict(), cache)
    return teacher
