"""The command `island`: global options, groups of commands, and exit codes."""

from __future__ import annotations

import functools
import importlib
import io
import os
import signal
import sys
import traceback
from typing import Annotated, Any

import typer

import island
from island.cli import base, interrupts
from island.errors import IslandError

app = typer.Typer(
    name="island",
    help="One daemon per astronomy site: shared catalog, jobs that run where the data are, replication on demand, "
    "subscriptions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# Newer versions of Typer contain a copy of Click. This finds the base class of usage errors in either case.
_UsageError: Any = typer.BadParameter.__mro__[2]

# Each module has a function `register(app)`. The modules import little at the top, so that commands start fast.
MODULES = (
    "init",
    "run",
    "status",
    "config",
    "doctor",
    "user",
    "peer",
    "server",
    "dataset",
    "session",
    "job",
    "source",
    "subscription",
    "channel",
    "journal",
    "backup",
    "completion",
    "demo",
)


def _version(wanted: bool) -> None:
    if wanted:
        base.print_line(f"island {island.__version__}")
        raise typer.Exit


@app.callback()
def options(
    home: Annotated[
        str | None, typer.Option(help="Home folder of the island. Default: ISLAND_HOME, then ~/.island.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="URL of the daemon's user port. Default: ISLAND_URL, then that of the home folder."),
    ] = None,
    token_file: Annotated[
        str | None,
        typer.Option(
            help="File with the token, which only you can read. Default: the token in ISLAND_TOKEN, then that in the "
            "file ISLAND_TOKEN_FILE, then that of the home folder."
        ),
    ] = None,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show Python tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    base.TARGET.home = home or base.TARGET.home
    base.TARGET.url = url or base.TARGET.url
    base.TARGET.token_file = token_file or base.TARGET.token_file
    base.TARGET.traceback = traceback


@functools.cache
def build() -> typer.Typer:
    """Return the complete command with every group."""
    for name in MODULES:
        importlib.import_module(f"island.cli.{name}").register(app)
    return app


def run(arguments: list[str] | None = None) -> None:
    """Run the command and exit: 0 success, 1 failure, 2 usage error, 128 + signal number if interrupted."""
    try:
        command = typer.main.get_command(build())
        given = sys.argv[1:] if arguments is None else arguments
        code = command.main(args=_hoisted(given, command), standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except interrupts.Interrupted as stop:
        code = 128 + stop.number
    except (typer.Abort, KeyboardInterrupt) as stop:
        # Click converts KeyboardInterrupt to Abort, and also the end of input (EOFError) at a prompt.
        code = 1 if isinstance(stop.__cause__, EOFError) else 128 + signal.SIGINT
    except _UsageError as error:
        usage = io.StringIO()
        error.show(file=usage)
        base.say(usage.getvalue().rstrip("\n"))
        code = error.exit_code
    except IslandError as error:
        if base.TARGET.traceback:
            base.say(traceback.format_exc().rstrip("\n"))
        else:
            base.fail(error)
        code = 1
    except BrokenPipeError:
        # The reader of stdout has exited (as with `| head`). Without this, Python reports the error again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _hoisted(arguments: list[str], command: Any) -> list[str]:
    """Move the global options to the front, so that they are also accepted after the command.

    What follows another option that takes a value is its value, whatever it looks like.
    """
    front: list[str] = []
    rest: list[str] = []
    items = iter(arguments)
    for item in items:
        if item == "--" or (item == "engine" and not rest):
            # The arguments that follow belong to the engine, which has its own --token-file.
            rest += [item, *items]
        elif item in {"--home", "--token-file", "--url"}:
            value = next(items, None)
            front += [item] if value is None else [item, value]
        elif item == "--traceback" or item.startswith(("--home=", "--token-file=", "--url=")):
            front.append(item)
        elif _takes_value(command, item):
            rest += [item, *([] if (value := next(items, None)) is None else [value])]
        else:
            rest.append(item)
            command = getattr(command, "commands", {}).get(item, command)
    return front + rest


def _takes_value(command: Any, item: str) -> bool:
    """Whether `item` is an option of the command whose value is the next argument."""
    return any(item in each.opts and not getattr(each, "is_flag", True) for each in command.params)


if __name__ == "__main__":
    run()
