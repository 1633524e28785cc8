"""`island status`: identity, addresses and problems of the daemon."""

from __future__ import annotations

from typing import Any

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
    if not as_json and "engines" in found:  # a daemon of an earlier version does not list them
        found = {**found, "engines": [_sentence(each) for each in found["engines"]]}
    base.show_pairs(found, as_json)
    if found["problems"]:
        raise typer.Exit(1)


def _sentence(engine: dict[str, Any]) -> str:
    what = f"Livy at {engine['url']}" if engine["url"] else "on this machine"
    if engine["problem"]:
        return f"{engine['name']}: {what}; it does not work, see problems"
    kinds = ", ".join(engine["kinds"]) or "unknown kinds"
    return f"{engine['name']}: {what}; {engine['free']} of {engine['capacity']} places are free; {kinds}"
