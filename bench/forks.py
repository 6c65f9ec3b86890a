"""What forks of a session hold of their own, by counts: the runtime's and the system's.

    python bench/forks.py smol.llmc [--held 2000] [--more 10] [--forks 8]

A session reads `held` tokens and is forked; each fork reads `more` others. Bytes are those of states; "resident" is the
process's PSS, which counts a page once however often it is mapped. "In one piece" is the same in a process that bounds
the size of files, where the runtime has no file to keep blocks in, and copies whole states: as on a GPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from pathlib import Path
from typing import Any

import numpy as np

CHUNK = 512


def feed(session: Any, tokens: list[int]) -> Any:
    """The logits of the last token."""
    logits = None
    for i in range(0, len(tokens), CHUNK):
        part = tokens[i : i + CHUNK]
        logits = session.run({"input_ids": [part], "logits_to_keep": [len(part) - 1]})["logits"].copy()
    return logits


def resident() -> int:
    """Bytes of the process, each page divided by how often it is mapped."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def held(path: str, one_piece: bool, count: int, more: int, forks: int) -> tuple[dict[str, int], Any]:
    """The counts, by name, and the logits of each fork."""
    if one_piece:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 40, resource.RLIM_INFINITY))
    import llmc

    tokens = np.random.default_rng(0).integers(5, 1000, count + forks * more).tolist()
    with llmc.load(path, threads=1) as model, model.session() as session:
        feed(session, tokens[:count])
        before, whole = resident(), session.memory_bytes
        made = [session.fork() for _ in range(forks)]
        forked = resident() - before
        logits = []
        for i, fork in enumerate(made):
            begin = count + i * more
            logits.append(feed(fork, tokens[begin : begin + more]))
        report = made[0]._report()
        found = {
            "held by the session": whole,
            "of a fork's states": int(report.state_bytes),
            "its own of them": int(report.state_bytes) - made[0].shared_bytes,
            "resident more for all forks": forked,
            "and when each has gone on": resident() - before,
        }
    return found, np.concatenate(logits)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact")
    parser.add_argument("--held", type=int, default=2000, help="tokens of the session")
    parser.add_argument("--more", type=int, default=10, help="tokens that each fork adds")
    parser.add_argument("--forks", type=int, default=8)
    asked = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found = []
    for one_piece in (False, True):
        with context.Pool(1) as pool:
            found.append(pool.apply(held, (asked.artifact, one_piece, asked.held, asked.more, asked.forks)))
    (blocks, logits), (whole, others) = found
    print(f"{asked.forks} forks of {asked.held} tokens, each {asked.more} more; MB")
    print(f"{'':<32}{'in blocks':>12}{'in one piece':>14}")
    for name, value in blocks.items():
        print(f"{name:<32}{value / 1e6:>12.2f}{whole[name] / 1e6:>14.2f}")
    print("logits of the forks:", "the same bits" if np.array_equal(logits, others) else "DIFFERENT")


if __name__ == "__main__":
    main()
