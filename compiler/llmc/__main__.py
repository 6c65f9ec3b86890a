"""`python -m llmc` and the script `llmc`: the command line, if what it needs is installed."""

from __future__ import annotations

import gc
import sys

from llmc.errors import LlmcError, extras_named


def main() -> int:
    """Run the command line; returns the exit code."""
    try:
        with extras_named():
            from llmc import cli
    except LlmcError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    code = cli.main()
    gc.freeze()  # the process ends: no last search for garbage, which takes seconds with torch loaded
    return code


if __name__ == "__main__":
    sys.exit(main())
