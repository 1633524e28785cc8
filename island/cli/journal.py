"""`island journal`: the audit log of an island."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from island.cli import base


def register(root: typer.Typer) -> None:
    """Add the command."""
    root.command("journal")(journal)


def journal(
    since: Annotated[
        str, typer.Option(help="Only rows since this time: 2026-11-20, 2026-11-20T18:00 (UTC), or 15m, 2h, 7d ago.")
    ] = "",
    contains: Annotated[str, typer.Option(help="Only rows that contain this text.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of rows; the newest are shown.")] = 1000,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Check that no row was edited, removed or inserted, and ask linked islands what they hold."
        ),
    ] = False,
    acknowledge: Annotated[
        str,
        typer.Option(metavar="REASON", help="Accept that rows are missing, for example after restoring a backup."),
    ] = "",
    as_json: base.Json = False,
) -> None:
    """Show the journal of this island, oldest row first."""
    if acknowledge:
        base.api().post("/api/v1/journal/acknowledge", {"reason": acknowledge})
        base.say("acknowledged; the journal has a row about it, and the other islands are told")
        return
    if verify:
        _verify(as_json)
        return
    found = base.api().get("/api/v1/journal", since=since or None, contains=contains or None, limit=limit)
    columns = ("seq", "at", "who", "act", "what", "outcome", "detail")
    base.show_rows(found, columns, as_json, empty="the journal has no such rows")


def _verify(as_json: bool) -> None:
    result = base.api().get("/api/v1/journal/verify")
    if as_json:
        base.show_json(result)
    for problem in result["problems"]:
        base.say(problem)
    base.say(_asked(result))
    if not result["whole"]:
        base.say(
            f"island: the journal of {result['island']} was changed. Compare it with a backup of state.db; if you have "
            "just restored one, run: island journal --acknowledge REASON"
        )
        raise typer.Exit(1)
    base.say(f"the journal of {result['island']} is intact: {result['rows']} rows")


def _asked(result: dict[str, Any]) -> str:
    """Which other islands were asked for the head that they hold, and what they said."""
    if not result["asked"]:
        return "no other island is linked, so none could be asked for the head of this journal that it holds"
    said = f"{result['answered']} of {result['asked']} linked islands answered which head of this journal they hold"
    if result["disagreeing"]:
        said += f"; it contradicts this journal at {', '.join(result['disagreeing'])}"
    if result["unanswered"]:
        said += f"; no usable answer from {', '.join(result['unanswered'])}"
    return said
