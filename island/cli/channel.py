"""`island channel`: rows that are being delivered."""

from __future__ import annotations

import typer

from island.cli import base

app = typer.Typer(help="Channels: deliveries of rows to and from this island.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the group to the command."""
    root.add_typer(app, name="channel")


@app.callback()
def channel() -> None:
    """Channels: deliveries of rows to and from this island."""


@app.command("ls")
def ls(as_json: base.Json = False) -> None:
    """List the channels with rate (rows/s), lag (rows, seconds), rows, bytes, state and its reason."""
    columns = ("id", "island", "source", "into", "state", "rate", "lag", "lag_s", "rows", "bytes", "since", "reason")
    base.show_rows(base.api().get("/api/v1/channels"), columns, as_json, empty="no channels")
