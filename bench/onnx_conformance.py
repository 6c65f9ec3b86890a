"""Which tests of the onnx package llmc passes: every node test and every model test, each tried.

    python bench/onnx_conformance.py                     tries what is not in the cache, and writes docs/onnx-support.md
    python bench/onnx_conformance.py --only Conv,If      the tests of these ops, again
    python bench/onnx_conformance.py --again             those that were not right, too
    python bench/onnx_conformance.py --compile 500       also compiles 500 that are right, many together
    python bench/onnx_conformance.py --write             writes docs/onnx-support.md from the cache alone

Each test's model is imported as it ships and run by the interpreter; outputs are held to the test's own tolerances.
Each runs in a process of its own with a limit of time and of memory. Results are kept in the cache, a line for each.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx_table
from apart import apart
from onnx_cases import Case, cases, tried
from onnx_compiled import groups, load_compiler, rows_of

SECONDS, GIBIBYTES = 120, 6
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llmc" / "onnx.jsonl"


def main() -> None:
    options = _options()
    rows = _read(options.cache)
    if not options.write:
        load_compiler()
        _try_all(options, rows)
        _compile_some(options, rows)
    Path(options.output).write_text(onnx_table.page(rows), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="ops, with commas between")
    parser.add_argument("--compile", type=int, default=0, metavar="N", help="compile N more that are right")
    parser.add_argument("--write", action="store_true", help="write the page from the cache")
    parser.add_argument("--again", action="store_true", help="those that were not right, too")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--output", default="docs/onnx-support.md")
    return parser.parse_args()


def _read(cache: Path) -> dict[str, dict[str, Any]]:
    """Test -> the last that was found."""
    if not cache.exists():
        return {}
    lines = cache.read_text(encoding="utf-8").splitlines()
    return {row["type"]: row for row in map(json.loads, lines)}


def _try_all(options: argparse.Namespace, rows: dict[str, dict[str, Any]]) -> None:
    options.cache.parent.mkdir(parents=True, exist_ok=True)
    with options.cache.open("a", encoding="utf-8") as file:
        for case in _due(options, rows):
            row = apart(case.name, functools.partial(tried, case), SECONDS, GIBIBYTES)
            rows[case.name] = {"kind": case.kind, "op": case.op, "opset": case.opset, **row}
            file.write(json.dumps(rows[case.name]) + "\n")
            file.flush()
    print(*(f"{state} {count}" for state, count in Counter(r["state"] for r in rows.values()).items()))


def _compile_some(options: argparse.Namespace, rows: dict[str, dict[str, Any]]) -> None:
    """Those that are right and were not compiled yet."""
    only = set(filter(None, options.only.split(",")))
    due = [
        case
        for case in (cases() if options.compile else ())
        if rows[case.name]["state"] == "right"
        and _is_due(rows[case.name].get("compiled"), options.again)
        and (not only or case.op in only)
    ]
    with options.cache.open("a", encoding="utf-8") as file:
        for group in groups(due[: options.compile]):
            for row in rows_of(group):
                rows[row["type"]] |= row
                file.write(json.dumps(rows[row["type"]]) + "\n")
                file.flush()
    told = Counter(str(row.get("compiled", "")).partition(":")[0] for row in rows.values())
    print("compiled:", *(f"{state} {count}" for state, count in told.items() if state))


def _is_due(compiled: str | None, again: bool) -> bool:
    return compiled is None or (again and compiled != "right")


def _due(options: argparse.Namespace, rows: dict[str, dict[str, Any]]) -> Iterable[Case]:
    only = set(filter(None, options.only.split(",")))
    for case in cases():
        known = rows.get(case.name)
        again = known is not None and options.again and known["state"] != "right"
        if case.op in only if only else known is None or again:
            yield case


if __name__ == "__main__":
    main()
