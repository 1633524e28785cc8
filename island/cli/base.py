"""Functions shared by all commands: API client, tables and JSON on stdout, messages on stderr.

Output that may be copied or parsed goes to stdout and is not wrapped. Messages go to stderr.
Exit codes: 0 success, 1 failure, 2 usage error, 128 + signal number if interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from island.client import Api
from island.errors import IslandError, Unauthenticated
from island.home import Endpoint, Home, token_in, token_of_environment
from island.kernel.terminal import escaped
from island.kernel.units import format_bytes

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@dataclass(slots=True)
class Target:
    """The global options, which select the island that the commands of this process connect to."""

    home: str | None = None
    url: str | None = None
    token_file: str | None = None
    traceback: bool = False


TARGET = Target()

PROSE = frozenset({"comment", "description", "detail", "error", "problem", "reason", "title"})
"""Columns whose text may be wrapped in a narrow terminal."""

SENTENCES = frozenset({"engines", "problems", "warnings"})
"""Keys of lists whose items are printed on a line each."""


def home() -> Home:
    """Return the home folder: `--home`, else `ISLAND_HOME`, else `~/.island`."""
    return Home.find(TARGET.home)


def api(*, timeout: float = 120.0) -> Api:
    """Return a client of the operator API; `timeout` is in seconds. Raises as `endpoint` does."""
    return Api(endpoint(), timeout=timeout)


def endpoint() -> Endpoint:
    """Return URL and token for the operator API.

    The URL is that of `--url`, else `ISLAND_URL`, else that of the home folder. The token is that of `--token-file`,
    else `ISLAND_TOKEN`, else that in `ISLAND_TOKEN_FILE`, else that of the home folder. `--home` comes before
    `ISLAND_URL`. Raises `IslandError` if no token can be read.
    """
    url = TARGET.url or (None if TARGET.home else os.environ.get("ISLAND_URL"))
    token = token_in(TARGET.token_file, "--token-file") if TARGET.token_file else token_of_environment()
    if token:
        return Endpoint(url or home().url(), token)
    if url and not home().exists():
        raise Unauthenticated(
            f"no token is given for {url}",
            hint="Set ISLAND_TOKEN_FILE, ISLAND_TOKEN or --token-file, or select a home folder with --home.",
        )
    own = home().endpoint()
    return Endpoint(url, own.token) if url else own


def say(text: str) -> None:
    """Print a message on stderr."""
    sys.stderr.write(escaped(text, lines=True) + "\n")
    sys.stderr.flush()


def print_line(text: str) -> None:
    """Print one line or a block of lines on stdout, without wrapping."""
    sys.stdout.write(escaped(text if text.endswith("\n") else text + "\n", lines=True))
    sys.stdout.flush()


def show_json(value: Any) -> None:
    """Print an object or a list of flat objects as JSON on stdout."""
    print_line(json.dumps(value, indent=1, ensure_ascii=False))


def show_rows(items: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool, *, empty: str = "") -> None:
    """Print rows: complete objects as JSON, or a table of `columns`. Prints `empty` on stderr if there are no rows."""
    if as_json:
        show_json(list(items))
        return
    if not items:
        say(empty or "no rows")
        return
    show_table(columns, ([format_cell(item.get(column)) for column in columns] for item in items))


def show_table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout; if stdout is not a terminal, the table is as wide as its content.

    In a terminal only the columns in `PROSE` are wrapped. Names, ids and addresses stay on one line, so
    that they can be copied.
    """
    terminal = sys.stdout.isatty()
    cells = [[escaped(text) for text in line] for line in lines]
    sheet = Table(box=None, pad_edge=False, header_style="bold")
    need = 0
    for index, column in enumerate(columns):
        widest = max(cell_len(text) for text in (column, *(line[index] for line in cells)))
        prose = terminal and column in PROSE
        need += 2 + (min(widest, 24) if prose else widest)
        sheet.add_column(column, overflow="fold", no_wrap=not prose)
    for line in cells:
        sheet.add_row(*(escape(text) for text in line))
    console = Console(file=sys.stdout)
    console.width = max(console.width if terminal else 10_000, need)
    console.print(sheet, soft_wrap=True)


def show_pairs(item: Mapping[str, Any], as_json: bool) -> None:
    """Print one object: as JSON, or one line per key, and one per sentence for lists of sentences."""
    if as_json:
        show_json(item)
        return
    wide = max((len(key) for key in item), default=0)
    for key, value in item.items():
        texts = [format_cell(each) for each in value] if key in SENTENCES and value else [format_cell(value)]
        for number, text in enumerate(texts):
            print_line(f"{'' if number else key:<{wide}}  {text}")


def format_cell(value: Any) -> str:
    """Format a value for a table or a line of text."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(format_cell(each) for each in value) or "-"
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return escaped(str(value).replace("\n", " ").replace("\t", " "))


def format_size(count: float | None) -> str:
    """Format a number of bytes with a unit; `-` if the number is unknown."""
    return "-" if count is None else format_bytes(count)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show a progress bar on stderr while the block runs; does nothing if stderr is not a terminal.

    The block gets a function that updates the bar with `{"done": n, "total": n, "what": text}`.
    """
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[what]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(escaped(title), total=None, what="")

        def feed(step: dict[str, Any]) -> None:
            bar.update(
                task,
                completed=step.get("done", 0),
                total=step.get("total") or None,
                what=escaped(str(step.get("what", ""))),
            )

        yield feed


def fail(error: IslandError) -> None:
    """Print an error on stderr: the message, and the hint on a second line."""
    say(f"island: {error.message}")
    overriding = next((name for name in ("ISLAND_TOKEN", "ISLAND_TOKEN_FILE") if os.environ.get(name)), "")
    if error.code == Unauthenticated.code and overriding and not TARGET.token_file and home().exists():
        say(f"{overriding} is set and overrides the token of the home folder. Unset it, or set the right token.")
    elif error.hint:
        say(error.hint)
