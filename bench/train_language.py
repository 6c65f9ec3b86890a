"""A float language model to quantise: SmolLM2-135M, whose own weights come in 4 bits, trained on for a while.

    python bench/train_language.py --output FOLDER [--steps 200] [--rate 5e-4]

Writes a Hugging Face folder in fp32, and beside it calibration.txt, articles it was trained on, and test.txt, articles
that it has not seen. Says how many weights have left the grid of 4 bits that they came in. Seeded, on one thread.
"""

from __future__ import annotations

import argparse
import bz2
import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from models import fetch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

LENGTH, BATCH = 128, 4  # tokens of a text, texts of a step
STEPS, RATE, WARM = (
    200,
    5e-4,
    20,
)  # of AdamW; steps to reach the rate, which falls in a line to 0 from then on
TESTED, SHORTEST = 10, 2000  # articles held back; characters of one that counts
CALIBRATION = 160_000  # characters, some 32,000 tokens


def articles() -> list[str]:
    """Plain texts, in the order of their sha1."""
    with bz2.open(fetch("articles")) as file:
        texts = [text for page in _pages(file) if len(text := plain(page)) >= SHORTEST]
    return sorted(texts, key=lambda text: hashlib.sha1(text.encode()).hexdigest())


def _pages(file: Any) -> Iterator[str]:
    for _, element in ElementTree.iterparse(file):
        if element.tag.endswith("}text") and element.text and not element.text.startswith("#REDIRECT"):
            yield element.text


def plain(markup: str) -> str:
    """Wiki markup without templates, tables, references and links: enough to learn from, a paragraph a line."""
    text = re.sub(r"<ref[^>/]*/>|<ref.*?</ref>|<!--.*?-->|<math>.*?</math>", "", markup, flags=re.DOTALL)
    for pattern in (r"\{\{[^{}]*\}\}", r"\{\|[^{}]*\|\}", r"\[\[(?:File|Image|Category):[^\[\]]*\]\]"):
        before = ""
        while text != before:
            before, text = text, re.sub(pattern, "", text)
    text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", text)
    text = re.sub(r"\[https?://\S*\s?([^\]]*)\]|<[^>]*>|'{2,}", r"\1", text)
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if len(line) > 80 and line[0] not in "*#=|{[:!;")


def train(model: Any, ids: torch.Tensor, steps: int, rate: float) -> None:
    """AdamW on random stretches of the token ids `[n]`."""
    chosen = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: min((s + 1) / WARM, (steps - s) / max(1, steps - WARM))
    )
    begin = time.monotonic()
    for step in range(steps):
        starts = torch.randint(0, len(ids) - LENGTH, (BATCH,), generator=chosen)
        batch = torch.stack([ids[s : s + LENGTH] for s in starts.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}, {time.monotonic() - begin:.0f} s", flush=True)


def left_grid(before: dict[str, torch.Tensor], model: Any) -> float:
    """The share of matrix values that are a tenth of their step off: a block of 32 has 16 values, evenly apart."""
    away = total = 0
    for name, after in model.state_dict().items():
        old = before[name]
        if old.ndim != 2 or old.shape[1] % 32:
            continue
        blocks = old.reshape(-1, 32)
        grid = (blocks.max(1).values - blocks.min(1).values)[:, None] / 15
        away += int(((after.reshape(-1, 32) - blocks).abs() > grid / 10).sum())
        total += blocks.numel()
    return away / total


def main() -> None:
    """Fetch, train, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rate", type=float, default=RATE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    file = fetch("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    texts = articles()
    held, seen = texts[:TESTED], texts[TESTED:]
    ids = torch.tensor(tokenizer("\n\n".join(seen)).input_ids)
    print(f"{len(texts)} articles, {len(ids)} tokens to learn from")
    model.train()
    train(model, ids, options.steps, options.rate)
    model.eval()
    print(
        f"{left_grid(before, model):.1%} of the weights of matrices are off the grid by a tenth of its step"
    )
    model.hf_quantizer = None  # else transformers thinks of the file that it came from, and saves nothing
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    (options.output / "calibration.txt").write_text("\n".join(seen)[:CALIBRATION])
    (options.output / "test.txt").write_text("\n\n".join(held))


if __name__ == "__main__":
    main()
