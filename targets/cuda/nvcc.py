"""CUDA C++ to a fatbin by nvcc: no GPU and no driver is needed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llmc.errors import LlmcError
from llmc.targets import store

# Multiply-adds are written out: nvcc must contract nothing, so that all GPUs give the same bits.
FLAGS = ("-std=c++17", "-O3", "-fmad=false", "-prec-div=true", "-prec-sqrt=true", "-ftz=false")


def find_nvcc() -> str:
    """Path of nvcc.

    Raises:
        LlmcError: there is none.
    """
    path = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if path is None:
        raise LlmcError(
            "nvcc is not on the PATH",
            at="--target cuda",
            hint="install the CUDA toolkit (12.0 or later); a GPU or its driver is not needed to compile",
        )
    return path


def fatbin(source: str, architectures: Sequence[str], kept: store.Store) -> bytes:
    """Machine code for each of `architectures` ("sm_80"), and PTX of the last for later ones.

    Raises:
        LlmcError: nvcc is missing, or refuses an architecture.
    """
    nvcc = find_nvcc()
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    name = store.key(source, *architectures, *FLAGS, version)
    return kept.made(name, lambda: _assembled(nvcc, source, architectures))


def _assembled(nvcc: str, source: str, architectures: Sequence[str]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="llmc-") as folder:
        code, output = Path(folder) / "kernels.cu", Path(folder) / "kernels.fatbin"
        code.write_text(source)
        wanted = [f"-gencode=arch=compute_{a[3:]},code={a}" for a in architectures]
        newest = architectures[-1][3:]
        wanted.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
        command = [nvcc, *FLAGS, "--threads", "0", "-fatbin", *wanted, "-o", str(output), str(code)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            raise LlmcError(
                "nvcc failed",
                at=f"{nvcc}, for {', '.join(architectures)}",
                found="\n         ".join(lines[:5]) or f"exit code {done.returncode}",
                hint="does `nvcc --list-gpu-code` know the architecture?",
            )
        return output.read_bytes()
