"""`island source`: sources of new data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from island.cli import base
from island.client import quote
from island.errors import NotFound

app = typer.Typer(help="Sources of new data: watched folders.", no_args_is_help=True)
adding = typer.Typer(help="Add a source.", no_args_is_help=True)
app.add_typer(adding, name="add")


def register(root: typer.Typer) -> None:
    """Add the group to the command."""
    root.add_typer(app, name="source")


@adding.command("folder")
def add_folder(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder on the machine of the island.")],
    name: Annotated[str, typer.Option(help="Name of the source. Other islands see it as ISLAND/NAME.")],
    as_json: base.Json = False,
) -> None:
    """Watch a folder. The rows of new Parquet and Avro files are delivered to subscribers.

    Files whose names begin with `.` or `_`, or end with `.tmp` or `.part`, are ignored: write a file under such
    a name and rename it when it is complete. Files are identified by their content.
    """
    # A relative path is relative to the working directory of this command, not to that of the daemon.
    body = {"kind": "folder", "path": str(path.expanduser().absolute()), "name": name}
    made = base.api().post("/api/v1/sources", body)
    if as_json:
        base.show_json(made)
    base.say(f"{made['source']} watches {made['path']}. Every member of the archipelago can subscribe to it.")


@app.command("ls")
def ls(as_json: base.Json = False) -> None:
    """List the sources of all islands."""
    columns = ("island", "source", "kind", "format", "files", "rows", "bytes", "state", "updated", "problem")
    base.show_rows(base.api().get("/api/v1/sources"), columns, as_json, empty="no sources")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="As `island source ls` shows it.")],
    as_json: base.Json = False,
) -> None:
    """Show a source with its columns, which a condition of a subscription can use."""
    rows = base.api().get("/api/v1/sources")
    found = next((row for row in rows if row["source"] == name), None)
    if found is None:
        raise NotFound(f"there is no source {name}", hint="`island source ls` lists all sources.")
    if as_json:
        base.show_json(found)
        return
    columns, hidden = found.pop("columns"), found.pop("columns_hidden")
    base.show_pairs({key: value for key, value in found.items() if value not in (None, "")}, False)
    base.print_line("")
    base.show_table(("name", "type"), (base.format_cell(column).split(" ", 1) for column in columns))
    if hidden:
        base.say(f"{hidden} more columns are not shown")


@app.command("rm")
def rm(name: Annotated[str, typer.Argument(metavar="NAME", help="A source of this island.")]) -> None:
    """Remove a source. Its files are not deleted; subscriptions to it stop with a message."""
    base.api().delete(f"/api/v1/sources/{quote(name)}")
    base.say(f"source {name} is removed; its files were not deleted")
