"""The command line: one file per command, each a parse, one call of the library and a print.

Exit codes: 0, 1 for what the user can mend (a message without traceback), 2 for a bug in
cryoscan, 130 after Ctrl-C.
"""

import os
import sys
import traceback
from typing import Annotated

import typer

from cryoscan.cli import (
    batch,
    benchmark,
    datedb,
    demo,
    enhance,
    export,
    identify,
    info,
    relabel,
    scan,
    segment,
    simulate,
    train,
)
from cryoscan.errors import CryoscanError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Find and name proteins in cryo-ET tomograms and cryo-EM maps without knowing their sequences.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("info")(info.info)
app.command("identify")(identify.identify)
app.command("scan")(scan.scan)
app.command("relabel")(relabel.relabel)
app.command("batch")(batch.batch)
app.command("export")(export.export)
app.command("enhance")(enhance.enhance)
app.command("segment")(segment.segment)
app.add_typer(datedb.app, name="datedb")
app.add_typer(simulate.app, name="simulate")
app.command("benchmark")(benchmark.benchmark)
app.command("train")(train.train)
app.command("demo")(demo.demo)

_USAGE_ERROR = typer.BadParameter.__mro__[1]  # every mistake in a command's words; its home moved between versions


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        from cryoscan.provenance import cryoscan_version

        print(f"cryoscan {cryoscan_version()}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Run a command and leave with its exit code; every end is a sentence, not a traceback."""
    try:
        sys.exit(app(standalone_mode=False, prog_name="cryoscan") or 0)
    except CryoscanError as error:
        _leave(str(error), code=1)
    except (KeyboardInterrupt, typer.Abort):
        _leave("Stopped.", code=130)
    except BrokenPipeError:  # the reader of our output left, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _leave(_about(error), code=1)
    except MemoryError:
        _leave("expected enough memory; got too little. Work on a part of the volume, or bin it.", code=1)
    except Exception as error:  # the last line of defence, on purpose
        if isinstance(error, _USAGE_ERROR):
            _leave_for_usage(error)
        traceback.print_exc()
        _leave("This is a bug in cryoscan: please report the lines above and what you did.", code=2)


def _about(error: OSError) -> str:
    """An operating system's error in our three parts."""
    what = f"to use {error.filename}" if error.filename else "a working disk"
    return (
        f"expected {what}; got {error.strerror or error}. "
        "Check that the path exists, that you may read and write there, and that the disk is not full."
    )


def _leave(message: str, *, code: int) -> None:
    print(f"cryoscan: {message}", file=sys.stderr)
    sys.exit(code)


def _leave_for_usage(error: Exception) -> None:
    """A wrong command or option ends with 1: 2 is for bugs."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "cryoscan"
    message = getattr(error, "format_message", error.__str__)()
    if not message.strip():  # a group without a command has shown its help
        sys.exit(0)
    _leave(f"{message} See `{command} --help`.", code=1)
