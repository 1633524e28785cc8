"""`island journal`: who did what, where, and how it ended."""

from __future__ import annotations

from typing import Annotated

import typer

from island.cli import base


def register(root: typer.Typer) -> None:
    """Add the command."""
    root.command("journal")(journal)


def journal(
    since: Annotated[
        str, typer.Option(help="From then on: 2026-11-20, 2026-11-20T18:00 (UTC), or 15m, 2h, 7d ago.")
    ] = "",
    contains: Annotated[str, typer.Option(help="Only rows that contain this text.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The newest so many rows.")] = 1000,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check that no row was edited, removed or inserted.")
    ] = False,
    as_json: base.Json = False,
) -> None:
    """The journal of this island, oldest first."""
    if verify:
        _verify(as_json)
        return
    found = base.api().get("/api/v1/journal", since=since or None, contains=contains or None, limit=limit)
    columns = ("seq", "at", "who", "act", "what", "outcome", "detail")
    base.rows(found, columns, as_json, empty="the journal has no such rows")


def _verify(as_json: bool) -> None:
    result = base.api().get("/api/v1/journal/verify")
    if as_json:
        base.show_json(result)
    for problem in result["problems"]:
        base.say(problem)
    if not result["whole"]:
        base.say(f"island: the journal of {result['island']} was changed; compare it with a backup of state.db")
        raise typer.Exit(1)
    base.say(f"the journal of {result['island']} is whole: {result['rows']} rows")
