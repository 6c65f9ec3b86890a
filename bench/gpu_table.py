"""What bench/gpu.py found, as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Result = Mapping[str, Any]
FIRST = ("torch-fp32", "torch-tf32", "graph-fp32", "compile-fp32", "llmc-fp32")
SECOND = ("torch-fp16", "graph-fp16", "compile-fp16", "llmc-fp16", "llmc-int8")
THIRD = ("llmc-w8", "llmc-w4", "llmc-w4a8", "llmc-bf16")


def micro(seconds: float | None) -> str:
    """Microseconds."""
    return "-" if seconds is None else f"{seconds * 1e6:.0f}"


def check_lines(checks: Mapping[str, Result]) -> Iterator[str]:
    """One line for each artifact that was compared with the interpreter."""
    yield f"{'artifact':32} {'limit':>8} {'error':>9} {'self-test':>9}  verdict"
    for name, found in checks.items():
        if "failed" in found:
            yield f"{name:32} {found['failed'][:300]}"
            continue
        bad = [*found["wrong"], *(f"differs between runs: {x}" for x in found["unsteady"])]
        bad += found["selftest"]["failures"]
        verdict = "; ".join(bad[:4]) or "ok"
        error = found["selftest"]["error"]
        yield f"{name:32} {found['limit']:8.0e} {found['error']:9.2e} {error:9.2e}  {verdict}"


def sanitizer_lines(found: Mapping[str, str]) -> Iterator[str]:
    """Tool and artifact, and what it said."""
    fine = [name for name, said in found.items() if said == "ok"]
    yield f"compute-sanitizer: {len(fine)} of {len(found)} runs without a report"
    yield from (f"  {name}: {said}" for name, said in found.items() if said != "ok")


def race_lines(races: Mapping[str, Result]) -> Iterator[str]:
    """Medians in microseconds."""
    for title, names in (("fp32", FIRST), ("fp16, int8", SECOND), ("stored", THIRD)):
        yield f"{title}, us{'':22}" + "".join(f"{n:>13}" for n in names)
        for model, race in races.items():
            for row in race.get("rows", ()):
                taken = row.get("seconds", {})
                cells = "".join(f"{micro(taken.get(n)):>13}" for n in names)
                yield f"{model + ' ' + row['shape']:32}{cells}"
    for model, race in races.items():
        for row in race.get("rows", ()):
            yield from (f"{model} {row['shape']}: {who}: {why}" for who, why in row["failed"].items())
        if "failed" in race:
            yield f"{model}: {race['failed']}"


def apart_lines(races: Mapping[str, Result]) -> Iterator[str]:
    """Largest differences from PyTorch's fp32 answers."""
    yield "difference from torch-fp32, of the largest logit"
    for model, race in races.items():
        for row in race.get("rows", ()):
            apart = "  ".join(f"{who} {x:.1e}" for who, x in row.get("apart", {}).items())
            yield f"  {model} {row['shape']}: {apart}"


def profile_lines(profiles: Mapping[str, Result]) -> Iterator[str]:
    """The kernels that take longest."""
    for name, found in profiles.items():
        if "failed" in found:
            yield f"{name}: {found['failed']}"
            continue
        total = sum(k["seconds"] for k in found["kernels"].values())
        yield f"{name}: p50 {micro(found['p50'])} us, {found['steps']} launches, kernels with waits {micro(total)} us"
        for kernel, k in sorted(found["kernels"].items(), key=lambda e: -e[1]["seconds"])[:7]:
            rate = k["flops"] / k["seconds"] / 1e12 if k["seconds"] else 0.0
            each = micro(k["seconds"] / k["calls"])
            share = f"{100 * k['seconds'] / total:4.0f} %"
            yield f"    {share}  {k['calls']:3} x {each:>6} us  {rate:6.2f} TFLOP/s  {kernel}"


def lines(result: Result) -> Iterator[str]:
    """Everything, for a terminal."""
    yield from (f"{name:10} {text}" for name, text in result["machine"].items())
    yield from (f"\n{text}" for text in result["notes"])
    if result["checks"]:
        yield ""
        yield from check_lines(result["checks"])
    if result["sanitizer"]:
        yield ""
        yield from sanitizer_lines(result["sanitizer"])
    if result["races"]:
        yield ""
        yield from apart_lines(result["races"])
        yield from profile_lines(result["profiles"])
        yield ""
        yield from race_lines(result["races"])
    if result["cpu"]:
        yield ""
        yield from (f"{name}: {text}" for name, text in result["cpu"].items())
