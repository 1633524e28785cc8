"""`island status`: identity, addresses and problems of the daemon."""

from __future__ import annotations

import typer

from island import client
from island.cli import base


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status")(status)


def status(as_json: base.Json = False) -> None:
    """Show identity, addresses, engine, state and problems of this island. Exit code 1 if there are problems."""
    try:
        found = base.api(timeout=client.STATUS_SECONDS).get("/api/v1/island")
    except client.NoAnswer as error:
        pid = None if base.TARGET.url else base.home().pid()
        raise client.NoAnswer(
            f"the daemon (pid {pid}) does not answer" if pid else error.message, hint=error.hint
        ) from error
    base.show_pairs(found, as_json)
    if found["problems"]:
        raise typer.Exit(1)
