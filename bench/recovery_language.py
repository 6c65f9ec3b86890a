"""What an adapter that `llmc recover --lora` trains wins back of a compressed language model's perplexity.

    python bench/recovery_language.py FOLDER --only w4 --seconds 180

FOLDER is what bench/train_language.py writes: SmolLM2-135M trained on for a while, calibration.txt to learn from and
test.txt, articles that neither has seen. One thread; seconds are of processor time, of training alone. Perplexities are
of the artifacts, of --tokens tokens of test.txt in windows of 512 every 256; "rise" is above fp32's on the same ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import llmc
from llmc.perplexity import perplexity
from llmc.recover import Settings, recover

ASKED: dict[str, dict[str, Any]] = {
    "w4": {"quant": "w4"},
    "0.3": {"prune": "0.3"},
    "share 16": {"share": "16"},
}
WINDOW, NAME = 512, "recovered"
COLUMNS = (
    "option",
    "perplexity",
    "rise",
    "with its adapter",
    "rise",
    "rank",
    "adapter MB",
    "steps",
    "processor s",
)


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--only", nargs="*", choices=list(ASKED), default=list(ASKED))
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--max-seq", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=8000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = options.model / "test.txt"

    def measured(path: Path, adapter: str | None = None) -> float:
        limits = {"window": WINDOW, "stride": WINDOW // 2, "limit": options.tokens}
        return perplexity(path, data, **limits, adapter=adapter, threads=1).perplexity

    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        llmc.compile(options.model, scratch / "fp32.llmc")
        first = measured(scratch / "fp32.llmc")
        print(f"fp32: {first:.4f} over {options.tokens} tokens")
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
        for number, name in enumerate(options.only):
            adapter, artifact = scratch / f"adapter-{number}", scratch / f"{number}.llmc"
            done = recover(
                options.model,
                options.model / "calibration.txt",
                adapter,
                Settings(
                    **ASKED[name],
                    lora=options.rank,
                    budget=options.seconds,
                    rate=options.lr,
                    batch=options.batch,
                    max_seq=options.max_seq,
                ),
                clock=time.process_time,
                say=print,
            )
            print(
                f"# held back: {done.before.perplexity}, {done.compressed.perplexity}, {done.recovered.perplexity}"
            )
            llmc.compile(options.model, artifact, adapters={NAME: adapter}, **ASKED[name])
            own, recovered = measured(artifact), measured(artifact, NAME)
            size = sum(file.stat().st_size for file in adapter.iterdir()) / 1e6
            cells = (f"`{name}`", f"{own:.4f}", f"{100 * (own / first - 1):+.2f} %")
            cells += (f"{recovered:.4f}", f"{100 * (recovered / first - 1):+.2f} %")
            cells += (str(options.rank), f"{size:.1f}", str(done.steps), f"{done.seconds:.0f}")
            print(f"| {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
