"""`island subscription`: standing requests for rows."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from island.cli import base
from island.client import quote

app = typer.Typer(help="Standing requests: these rows, from this source, into this dataset.", no_args_is_help=True)


class Begin(StrEnum):
    """Where a subscription begins."""

    beginning = "beginning"
    now = "now"


def register(root: typer.Typer) -> None:
    """Add the group to the command."""
    root.add_typer(app, name="subscription")


@app.command("add")
def add(
    source: Annotated[str, typer.Argument(metavar="OWNER/SOURCE", help="As `island source ls` shows it.")],
    into: Annotated[str, typer.Option(help="The dataset of this island that is made and grows.")],
    where: Annotated[str, typer.Option(help="A condition on the source's columns, in SQL.")] = "",
    region: Annotated[str, typer.Option(help="A part of the sky: 'circle RA DEC RADIUS', ICRS, degrees.")] = "",
    begin: Annotated[
        Begin, typer.Option("--from", help="What arrives from now on, or all that the source has.")
    ] = Begin.now,
    as_json: base.Json = False,
) -> None:
    """Subscribe: the rows that satisfy the condition become the dataset ME/INTO, as they appear."""
    body = {"source": source, "where": where, "region": region, "from": begin.value, "into": into}
    made = base.api().post("/api/v1/subscriptions", body)
    if as_json:
        base.show_json(made)
    else:
        base.print_line(made["id"])
    base.say(f"{made['source']} flows into {made['into']}; `island channel ls` shows how")


@app.command("ls")
def ls(as_json: base.Json = False) -> None:
    """The subscriptions of this island."""
    columns = ("id", "island", "source", "where", "region", "from", "into", "user", "state", "rows", "reason")
    base.show_rows(base.api().get("/api/v1/subscriptions"), columns, as_json, empty="there are no subscriptions")


@app.command("rm")
def rm(ident: Annotated[str, typer.Argument(metavar="ID", help="Its id, a unique prefix, or its dataset.")]) -> None:
    """End a subscription. What it delivered stays as a dataset."""
    ended = base.api().delete(f"/api/v1/subscriptions/{quote(ident)}")
    base.say(f"subscription {ended['id']} is removed; {ended['into']} stays with {ended['rows']} rows")
