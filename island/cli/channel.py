"""`island channel`: what flows."""

from __future__ import annotations

import typer

from island.cli import base

app = typer.Typer(help="Active flows into and out of this island.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the group to the command."""
    root.add_typer(app, name="channel")


@app.callback()
def channel() -> None:
    """Active flows into and out of this island."""


@app.command("ls")
def ls(as_json: base.Json = False) -> None:
    """Each flow: rate (rows/s), lag (rows of the source, seconds), rows, bytes, state and why."""
    columns = ("id", "island", "source", "into", "state", "rate", "lag", "lag_s", "rows", "bytes", "since", "reason")
    base.show_rows(base.api().get("/api/v1/channels"), columns, as_json, empty="nothing flows")
