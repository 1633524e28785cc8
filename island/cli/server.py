"""`island server`: the list of services beside the islands."""

from __future__ import annotations

from typing import Annotated

import typer

from island.cli import base
from island.client import quote

app = typer.Typer(help="Services beside the islands: Livy, Spark, HDFS and others.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the group to the command."""
    root.add_typer(app, name="server")


@app.command("ls")
def ls(as_json: base.Json = False) -> None:
    """List the servers of all islands."""
    base.show_rows(
        base.api().get("/api/v1/servers"),
        ("island", "id", "kind", "url", "comment"),
        as_json,
        empty="no servers",
    )


@app.command("add")
def add(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="livy, spark-ui, spark-history, hdfs, hbase, jupyterhub, other")
    ],
    url: Annotated[str, typer.Argument(metavar="URL", help="URL of the service, without user name and password.")],
    comment: Annotated[str, typer.Option(help="Short description.")] = "",
) -> None:
    """Add a service to the list that all islands see."""
    row = base.api().post("/api/v1/servers", {"kind": kind, "url": url, "comment": comment})
    base.say("added; all islands of the archipelago will list it")
    base.print_line(row["id"])


@app.command("rm")
def rm(server: Annotated[str, typer.Argument(metavar="ID", help="As `island server ls` shows it.")]) -> None:
    """Remove a service of this island from the list."""
    row = base.api().delete(f"/api/v1/servers/{quote(server)}")
    base.say(f"{row['kind']} {row['url']} is no longer listed")
