"""`island subscription`: standing requests for rows."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from island.cli import base
from island.client import quote

app = typer.Typer(help="Subscriptions: deliver new rows of a source into a dataset.", no_args_is_help=True)


class Begin(StrEnum):
    """Start position of a subscription."""

    beginning = "beginning"
    now = "now"


def register(root: typer.Typer) -> None:
    """Add the group to the command."""
    root.add_typer(app, name="subscription")


@app.command("add")
def add(
    source: Annotated[str, typer.Argument(metavar="OWNER/SOURCE", help="As `island source ls` shows it.")],
    into: Annotated[str, typer.Option(help="Name of the dataset to create.")],
    where: Annotated[str, typer.Option(help="SQL condition on the columns of the source.")] = "",
    region: Annotated[str, typer.Option(help="Sky region: 'circle RA DEC RADIUS' in degrees (ICRS).")] = "",
    begin: Annotated[
        Begin,
        typer.Option("--from", help="Start with new rows only (now), or with all rows of the source (beginning)."),
    ] = Begin.now,
    as_json: base.Json = False,
) -> None:
    """Subscribe to a source. Rows that satisfy the condition are added to the dataset ME/INTO."""
    body = {"source": source, "where": where, "region": region, "from": begin.value, "into": into}
    made = base.api().post("/api/v1/subscriptions", body)
    if as_json:
        base.show_json(made)
    else:
        base.print_line(made["id"])
    base.say(f"{made['source']} is delivered to {made['into']}; see `island channel ls`")


@app.command("ls")
def ls(as_json: base.Json = False) -> None:
    """List the subscriptions of this island."""
    columns = ("id", "island", "source", "where", "region", "from", "into", "user", "state", "rows", "reason")
    base.show_rows(base.api().get("/api/v1/subscriptions"), columns, as_json, empty="no subscriptions")


@app.command("rm")
def rm(
    ident: Annotated[str, typer.Argument(metavar="ID", help="Id, unique prefix of an id, or name of the dataset.")],
) -> None:
    """Remove a subscription. Its dataset is kept."""
    ended = base.api().delete(f"/api/v1/subscriptions/{quote(ident)}")
    base.say(f"subscription {ended['id']} is removed; {ended['into']} is kept with {ended['rows']} rows")
