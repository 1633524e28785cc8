"""`island source`: where new data come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from island.cli import base
from island.client import quote

app = typer.Typer(help="Sources of new data: watched folders.", no_args_is_help=True)
adding = typer.Typer(help="Add a source.", no_args_is_help=True)
app.add_typer(adding, name="add")


def register(root: typer.Typer) -> None:
    """Add the group to the command."""
    root.add_typer(app, name="source")


@adding.command("folder")
def add_folder(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The folder, on the island's machine.")],
    name: Annotated[str, typer.Option(help="The source's name; others see it as ISLAND/NAME.")],
    as_json: base.Json = False,
) -> None:
    """Watch a folder. The rows of new Parquet and Avro files are delivered to subscribers.

    Names that begin with `.` or `_` or end with `.tmp` or `.part` are never data: write under such
    a name and rename when the file is complete. A file is known by its content.
    """
    # A relative path means one of the person who types it, not of the daemon.
    body = {"kind": "folder", "path": str(path.expanduser().absolute()), "name": name}
    made = base.api().post("/api/v1/sources", body)
    if as_json:
        base.show_json(made)
    base.say(f"{made['source']} watches {made['path']}. Every member of the archipelago can subscribe to it.")


@app.command("ls")
def ls(as_json: base.Json = False) -> None:
    """List the sources of all islands."""
    columns = ("island", "source", "kind", "format", "files", "rows", "bytes", "state", "updated", "problem")
    base.show_rows(base.api().get("/api/v1/sources"), columns, as_json, empty="there are no sources")


@app.command("rm")
def rm(name: Annotated[str, typer.Argument(metavar="NAME", help="One of this island's sources.")]) -> None:
    """Remove a source. Its files are not deleted; subscriptions to it stop with a message."""
    base.api().delete(f"/api/v1/sources/{quote(name)}")
    base.say(f"source {name} is removed; its files were not deleted")
