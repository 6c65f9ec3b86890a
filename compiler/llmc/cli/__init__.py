"""The command line: `llmc COMMAND ...`, one file per command.

Nothing heavy is imported here or at the top of a command's file: `llmc --help`, `inspect` and `bench` start
without torch, transformers, tvm or sympy.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import click

from llmc import __version__
from llmc.cli.terminated import Terminated, terminable
from llmc.cli.verbosity import scope, with_options
from llmc.errors import LlmcError, extras_named

_EPILOG = """\b
Start here:
  llmc demo                                   see it work on a model that ships with llmc
  llmc compile ./my-model -o my-model.llmc    a fine-tuned Hugging Face folder -> native artifact
  llmc run my-model.llmc --text "hello"       run it
  llmc bench my-model.llmc --seq 128          measure it
  llmc COMMAND --help                         options and examples of one command

\b
Exit codes: 0 done, 1 failed (a sentence on stderr says why), 2 wrong usage, 130 interrupted, 143 terminated.
"""

_COMMANDS = (
    "check",
    "compile",
    "calibrate",
    "run",
    "bench",
    "eval",
    "inspect",
    "verify",
    "opt",
    "explain",
    "diff",
    "compare",
    "recover",
    "passes",
    "targets",
    "demo",
    "completion",
)


class _Commands(click.Group):
    """A group that imports a command's file when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"llmc.cli.{cmd_name}").command
        return with_options(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, and an unknown command names the one it resembles."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            close = get_close_matches(args[0], _COMMANDS, n=1)
            if not close or "did you mean" in error.message.lower():
                raise
            raise click.UsageError(f"{error.message} Did you mean {close[0]!r}?", ctx) from None


@click.group(
    cls=_Commands,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="llmc")
def llmc() -> None:
    """Turn a fine-tuned model into a small native artifact that runs without Python."""


with_options(llmc)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code and never raises for a user's mistake."""
    with scope():
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        with extras_named(), terminable():
            code = llmc.main(arguments, prog_name="llmc", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Terminated as signalled:
        print("terminated", file=sys.stderr)
        return 128 + signalled.number
    except (KeyboardInterrupt, click.Abort):
        print("interrupted", file=sys.stderr)
        return 130
    except LlmcError as error:
        show_error(error)
        return 1
    except OSError as error:
        return _os_error(error)
    except MemoryError as error:
        hint = "a model that declares such sizes needs so much; --dim and --max-batch bound those that are dynamic"
        show_error(LlmcError("there is not enough memory", found=str(error)[:300] or None, hint=hint))
        return 1
    except Exception as error:
        return _internal_error(error)


def show_error(error: LlmcError) -> None:
    """The error on stderr."""
    print(f"error: {_shown(str(error))}", file=sys.stderr)


def _shown(text: str) -> str:
    """Lines of a message, which may quote what a model or a user wrote."""
    from llmc.cli.output import printable

    return "\n".join(map(printable, text.split("\n")))


def _os_error(error: OSError) -> int:
    """A full disk, a missing permission: the system's own words. A closed pipe is nobody's mistake."""
    if error.errno == errno.EPIPE:
        # Python flushes stdout once more on exit; there must be somewhere to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if os.environ.get("LLMC_DEBUG"):
        traceback.print_exc()
    where = f"\n  at:    {_shown(str(error.filename))}" if error.filename else ""
    print(f"error: {(error.strerror or str(error)).lower()}{where}", file=sys.stderr)
    return 1


def _internal_error(error: Exception) -> int:
    if os.environ.get("LLMC_DEBUG"):
        traceback.print_exc()
    first = _shown((str(error).strip().splitlines() or [""])[0][:300])
    print(
        f"internal error: {type(error).__name__}: {first}\n"
        f"  this is a bug in llmc {__version__}, not in your model or command\n"
        "  hint:  run again with LLMC_DEBUG=1 for the traceback, and report that with the command you typed",
        file=sys.stderr,
    )
    return 1
