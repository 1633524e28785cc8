"""`island status`: identity, addresses and problems of the daemon."""

from __future__ import annotations

import typer

from island.cli import base


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status")(status)


def status(as_json: base.Json = False) -> None:
    """Show identity, addresses, engine, state and problems of this island. Exit code 1 if there are problems."""
    found = base.api().get("/api/v1/island")
    base.show_pairs(found, as_json)
    if found["problems"]:
        raise typer.Exit(1)
