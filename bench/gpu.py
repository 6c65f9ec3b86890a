"""Run CUDA artifacts on a GPU: answers against the interpreter's, compute-sanitizer, times beside PyTorch's.

    python bench/gpu.py --prepare FOLDER      where llmc and nvcc are: compile everything; needs no GPU
    python3 FOLDER/gpu.py FOLDER              where the GPU is: needs NumPy and the driver, PyTorch to race;
                                              FOLDER/packed, which is smaller, does as well
    python3 FOLDER/gpu.py FOLDER --only checks,races --seconds 200 --json result.json

Parts: checks, sanitizer, profiles, races, compile (races with torch.compile), ncu, cpu (x86 artifacts).
What fails is reported, and the rest goes on; parts that no time is left for are named. docs/cuda.md has results.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gpu_cpu

PARTS = ("checks", "cpu", "sanitizer", "profiles", "races", "ncu", "compile")
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
HERE = Path(__file__).resolve().parent
PROFILED = (("minilm-size", 1, 128), ("minilm-size", 8, 128), ("base-size", 8, 128), ("minilm-size", 1, 8))
PRECISIONS = ("fp32", "fp16", "int8", "w8", "w4", "w4a8", "bf16")
_OF_PEAK = "throughput.avg.pct_of_peak_sustained_elapsed"
NCU = f"gpu__time_duration.sum,sm__{_OF_PEAK},dram__{_OF_PEAK}"


class Run:
    """What is known so far, and until when there is time.

    Attributes:
        folder: as prepared and unpacked.
        result: as --json writes it.
    """

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.end = time.monotonic() + options.seconds
        parts = ("machine", "checks", "sanitizer", "races", "profiles", "cpu", "seconds")
        self.result: dict[str, Any] = {"notes": []} | {part: {} for part in parts}

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def command(self, *words: Any, most: float = 120.0, cores: str | None = None) -> tuple[int, str]:
        """Exit code and output of a command, which may take the time that is left but not more than `most`."""
        pinned = ["taskset", "-c", cores] if cores and shutil.which("taskset") else []
        environment = {**os.environ, "PYTHONPATH": f"{self.folder / 'site'}{os.pathsep}{HERE}"}
        try:
            done = subprocess.run(
                [*pinned, *map(str, words)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=max(1.0, min(most, self.left)),
            )
        except (subprocess.TimeoutExpired, OSError) as error:
            output = getattr(error, "output", None) or ""
            text = output.decode(errors="replace") if isinstance(output, bytes) else output
            return 124, f"{text}\n{type(error).__name__}: {str(error)[:200]}"
        return done.returncode, done.stdout

    def worker(self, script: str, *words: Any, most: float = 120.0) -> dict[str, Any]:
        """The last line of JSON that one of our scripts printed."""
        code, text = self.command(sys.executable, HERE / script, *words, most=most)
        found = [line for line in text.splitlines() if line.startswith("{")]
        if found:
            result: dict[str, Any] = json.loads(found[-1])
            return result if code == 0 else {**result, "failed": text[-300:]}
        return {"failed": f"exit code {code}: {text[-600:]}"}

    def save(self) -> None:
        """What is known so far."""
        if self.options.json is not None:
            self.options.json.write_text(json.dumps(self.result, indent=1))

    def artifacts(self, *groups: str) -> list[Path]:
        return [path for group in groups for path in sorted((self.folder / group).iterdir())]


def name_of(artifact: Path) -> str:
    return f"{artifact.parent.name}/{artifact.name}"


def many(run: Callable[[Any], Any], items: Iterable[Any], at_once: int) -> list[Any]:
    """`run` on each, some at the same time."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(run, items))


def machine(run: Run) -> bool:
    """What this is; whether it has a GPU."""
    query = "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm"
    code, gpu = run.command("nvidia-smi", query, "--format=csv,noheader")
    probe = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())"
    cpu = [
        line
        for line in run.command("lscpu")[1].splitlines()
        if line.startswith(("Model name", "Thread(s)", "L2", "L3"))
    ]
    run.result["machine"] = {
        "gpu": gpu.strip() if code == 0 else "none: nvidia-smi does not run",
        "python": f"{platform.python_version()}, {' '.join(platform.libc_ver())}",
        "pytorch": run.command(sys.executable, "-c", probe)[1].strip().splitlines()[-1],
        "cpu": "; ".join(" ".join(line.split()) for line in cpu) + f"; {os.cpu_count()} usable",
        "tools": " ".join(t for t in ("nvcc", "compute-sanitizer", "ncu") if shutil.which(t)) or "none",
    }
    return code == 0


def checks(run: Run) -> None:
    """Every artifact's answers."""
    found = run.artifacts("kernels", "models")
    results = many(lambda a: run.worker("gpu_worker.py", "check", a), found, 6)
    run.result["checks"] = dict(zip(map(name_of, found), results, strict=True))
    if all("failed" in result for result in results):
        run.end = time.monotonic()  # nothing else can work


def sanitizer(run: Run) -> None:
    """Every kernel under each tool; the models under memcheck and racecheck."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        run.result["notes"].append("compute-sanitizer is not here: nothing was searched for races")
        return

    def one(job: tuple[str, Path]) -> str:
        tool, artifact = job
        worker = (sys.executable, HERE / "gpu_worker.py", "check", artifact, 1)
        code, text = run.command(program, "--tool", tool, "--error-exitcode", 9, *worker, most=90)
        said = [line for line in text.splitlines() if line.startswith("=========")]
        clean = code == 0 and any(word in text for word in ("ERROR SUMMARY: 0", "(0 errors", "0 hazards"))
        return "ok" if clean else " ".join(said[:3] + said[-1:])[:500] or text[-300:]

    jobs = [(tool, a) for tool in TOOLS for a in run.artifacts("kernels")]
    jobs += [(tool, a) for tool in TOOLS[:2] for a in run.artifacts("models") if "demo" in a.name]
    jobs.sort(key=lambda job: TOOLS.index(job[0]))
    results = many(one, jobs, 10)
    run.result["sanitizer"] = {f"{tool} {name_of(a)}": r for (tool, a), r in zip(jobs, results, strict=True)}


def profiles(run: Run) -> None:
    for name, batch, seq in PROFILED:
        for precision in PRECISIONS:
            artifact = run.folder / "models" / f"{name}-{precision}"
            if artifact.is_dir():
                found = run.worker("gpu_worker.py", "profile", artifact, batch, seq)
                run.result["profiles"][f"{artifact.name} {batch}x{seq}"] = found


def races(run: Run) -> None:
    for name in ("minilm-size", "base-size", "demo"):
        run.result["races"][name] = run.worker("gpu_race.py", run.folder, name, run.options.race_seconds)


def compile_races(run: Run) -> None:
    found = run.worker("gpu_race.py", run.folder, "minilm-size", 1.0, "compile", most=200)
    run.result["races"]["minilm-size+compile"] = found


def ncu(run: Run) -> None:
    """Raw counters of one run, beside the result."""
    if shutil.which("ncu") is None:
        run.result["notes"].append("ncu is not here")
        return
    words = (
        "ncu",
        "--clock-control",
        "none",
        "--csv",
        "--metrics",
        NCU,
        sys.executable,
        HERE / "gpu_worker.py",
        "once",
    )
    for name, batch, seq in PROFILED[1:2]:
        for precision in PRECISIONS:
            artifact = run.folder / "models" / f"{name}-{precision}"
            _, text = run.command(*words, artifact, batch, seq, most=60)
            place = run.options.json.parent if run.options.json else run.folder
            (place / f"ncu-{precision}.csv").write_text(text)


ACTIONS = {
    "checks": checks,
    "sanitizer": sanitizer,
    "profiles": profiles,
    "races": races,
    "ncu": ncu,
    "compile": compile_races,
    "cpu": gpu_cpu.measure,
}


def act(run: Run, part: str) -> None:
    """One part, timed; a fault of ours in it is a note."""
    if run.left < 5:
        run.result["notes"].append(f"no time was left for {part}")
        return
    start = time.monotonic()
    try:
        ACTIONS[part](run)
    except Exception as error:  # the other parts must still run
        run.result["notes"].append(f"{part}: {type(error).__name__}: {error}")
    run.result["seconds"][part] = round(time.monotonic() - start, 1)
    run.save()


def measure(run: Run) -> int:
    """All parts asked for; exit code 1 without a GPU. The CPU's part goes on beside those that time nothing."""
    wanted = [part for part in PARTS if part in run.options.only]
    if not machine(run):
        run.result["notes"].append("THERE IS NO GPU HERE: only the part `cpu` is run")
        wanted = [part for part in wanted if part == "cpu"]
    with ThreadPoolExecutor(1) as beside:
        other = [beside.submit(act, run, "cpu")] if "cpu" in wanted else []
        untimed = [part for part in wanted if part in ("checks", "sanitizer")]
        for part in untimed:
            act(run, part)
        for future in other:
            future.result()
    for part in wanted:
        if part not in (*untimed, "cpu"):
            act(run, part)
    return 0 if "none:" not in run.result["machine"]["gpu"] else 1


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path)
    add("--prepare", action="store_true", help="fill the folder instead")
    add("--target", default="cuda-sm_90", help="of the artifacts when preparing (default: cuda-sm_90)")
    add("--seconds", type=float, default=480.0, help="for everything (default: 480)")
    add("--race-seconds", type=float, default=1.5, help="of one shape (default: 1.5)")
    add(
        "--only",
        type=lambda text: text.split(","),
        default=PARTS,
        help=f"of {','.join(PARTS)} (default: all)",
    )
    add("--json", type=Path, help="write the result there")
    return parser.parse_args()


def unpack(folder: Path) -> Path:
    """The folder, or what its packed files hold."""
    packed = sorted(folder.glob("*.tar.xz"))
    if (folder / "kernels").is_dir() or not packed:
        return folder
    place = Path(tempfile.mkdtemp(prefix="llmc-gpu-"))
    many(lambda path: _extract(path, place), packed, len(packed))
    shutil.copytree(folder / "site", place / "site")
    return place


def _extract(path: Path, place: Path) -> None:
    with tarfile.open(path) as tar:
        tar.extractall(place, filter="data")


def main() -> None:
    options = read_options()
    if options.prepare:
        from gpu_prepare import prepare

        prepare(options.folder, options.target, print)
        return
    from gpu_table import lines

    run = Run(unpack(options.folder.resolve()), options)
    code = measure(run)
    run.save()
    print("\n".join(lines(run.result)))
    sys.exit(code)


if __name__ == "__main__":
    main()
