"""Fine-tune MiniLM to tell good movie reviews from bad, as a Hugging Face folder: the model `accuracy.py` judges by.

    python bench/train_classifier.py      prints the folder; about three minutes on one thread the first time

Label = sign of the mean human rating, texts with |mean| >= 0.5, split by the sha1 of the text (8,070 to train,
2,000 to test). Embeddings and the first two layers are frozen; one epoch of batches of 32, AdamW 1e-4.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

import models
import sentiment
import torch
from torch.nn import functional

NAME = "minilm-sentiment"


def reviews() -> tuple[list[sentiment.Review], list[sentiment.Review]]:
    """The texts to train on and the 2,000 to test on, with their labels."""
    rated = sentiment.read_texts(models.fetch("reviews").parent)["movieReview"]
    train, development, test = sentiment.split(rated)
    return [*train, *development], test


def classifier(name: str = NAME, seed: int = 0, frozen: int = 2) -> Path:
    """The folder of a fine-tuned model, trained now if the cache has none.

    Args:
        name: its folder's.
        seed: of the head's first weights, of dropout and of the batches.
        frozen: how many layers, after the embeddings, stay as they are.
    """
    home = models.cache_folder() / name
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
            trained = Path(scratch) / name
            _train(models.fetch("minilm"), trained, seed, frozen)
            with contextlib.suppress(OSError):  # another run may have been faster
                trained.rename(home)
    return home


def _train(base: Path, folder: Path, seed: int, frozen: int) -> None:
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    labels = {0: "negative", 1: "positive"}
    model = BertForSequenceClassification.from_pretrained(base, num_labels=2, id2label=labels)
    for part in (model.bert.embeddings, *model.bert.encoder.layer[:frozen]):
        part.requires_grad_(False)
    train, _ = reviews()
    ids = sentiment.encode(sentiment.full_tokenizer(base), [text for text, _ in train])
    targets = torch.tensor([label for _, label in train])
    sentiment.train(model, ids, targets, 1, 1e-4, seed + 1, functional.cross_entropy)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)


def main() -> int:
    """Print the folder."""
    torch.set_num_threads(1)
    try:
        print(classifier())
    except (models.FetchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
