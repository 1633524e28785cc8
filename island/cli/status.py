"""`island status`: what the daemon is and how it does."""

from __future__ import annotations

import typer

from island.cli import base


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status")(status)


def status(as_json: base.Json = False) -> None:
    """Who this island is, where it listens, whether its engine runs, and what is wrong; exit code 1 if anything is."""
    found = base.api().get("/api/v1/island")
    base.show_pairs(found, as_json)
    if found["problems"]:
        raise typer.Exit(1)
