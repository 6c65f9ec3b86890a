"""What bench/gpu.py does with the CPU of the machine: x86 artifacts, beside the parts that time nothing on the GPU."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any


def measure(run: Any) -> None:
    """The x86 artifacts: self-tests of all variants, then threads on two cores, quiet and disturbed."""
    code, text = run.command("lscpu", "-e=CPU,CORE,SOCKET")
    run.result["cpu"]["cores"] = " ".join(text.split()[3:]) if code == 0 else "unknown"
    for artifact in run.artifacts("cpu"):
        found = run.worker("gpu_worker.py", "variants", artifact)
        run.result["cpu"][f"self-test {artifact.name}"] = json.dumps(found)
    for cores in ("0,1", "0,2"):
        for precision in ("fp32", "int8"):
            for spinning in (False, True):
                threads(run, run.folder / "cpu" / f"minilm-size-{precision}", cores, spinning)


def threads(run: Any, artifact: Path, cores: str, spinning: bool) -> None:
    """One and two threads in turns; p50 in milliseconds."""
    loop = f"exec taskset -c {cores[-1]} sh -c 'while :; do :; done'"
    spinner = subprocess.Popen(["sh", "-c", loop]) if spinning else None
    found: dict[int, list[str]] = {1: [], 2: []}
    try:
        for _ in range(3):
            for count in found:
                words = ("--batch", 1, "--seq", 128, "--threads", count, "--duration", 0.6, "--json")
                _, text = run.command(artifact / "bench", *words, cores=cores)
                found[count].append(p50(text))
    finally:
        if spinner is not None:
            spinner.kill()
    name = f"{artifact.name} 1x128 cores {cores}{' + spinning' if spinning else ''}"
    run.result["cpu"][name] = "   ".join(f"{n} threads: {' '.join(x)} ms" for n, x in found.items())


def p50(text: str) -> str:
    try:
        return f"{json.loads(text)['latency']['p50'] * 1e3:.2f}"
    except (ValueError, KeyError):
        return "failed"
