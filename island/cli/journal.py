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
        str, typer.Option(help="Only rows since this time: 2026-11-20, 2026-11-20T18:00 (UTC), or an age: 15m, 2h, 7d.")
    ] = "",
    contains: Annotated[str, typer.Option(help="Only rows that contain this text.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of rows; the newest are shown.")] = 1000,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Check that no row was changed, removed or inserted, and compare the journal with the heads that "
            "linked islands store.",
        ),
    ] = False,
    acknowledge: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Accept that rows are missing, for example after restoring a backup."),
    ] = None,
    as_json: base.Json = False,
) -> None:
    """Show the journal of this island, oldest row first."""
    if acknowledge is not None:
        if not acknowledge.strip():
            raise typer.BadParameter("it needs a reason, which is recorded in the journal", param_hint="--acknowledge")
        base.api().post("/api/v1/journal/acknowledge", {"reason": acknowledge})
        base.say("acknowledged; this is recorded in the journal and sent to the other islands")
        return
    if verify:
        _verify(as_json)
        return
    found = base.api().get("/api/v1/journal", since=since or None, contains=contains or None, limit=limit)
    columns = ("seq", "at", "who", "act", "what", "outcome", "detail")
    base.show_rows(found, columns, as_json, empty="no rows")


def _verify(as_json: bool) -> None:
    result = base.api().get("/api/v1/journal/verify")
    if as_json:
        base.show_json(result)
    for problem in result["problems"]:
        base.say(problem)
    base.say(_asked(result))
    if not result["whole"]:
        base.say(
            f"island: the journal of {result['island']} was changed. Compare it with a backup of state.db. If you have "
            "just restored a backup, run: island journal --acknowledge REASON"
        )
        raise typer.Exit(1)
    base.say(f"the journal of {result['island']} is intact: {result['rows']} rows")


def _asked(result: dict[str, Any]) -> str:
    """Describe the answers of the islands that were asked for their copy of the journal's head."""
    if not result["asked"]:
        return "no other island is linked, so the head of this journal could not be compared with copies elsewhere"
    text = f"{result['answered']} of {result['asked']} linked islands answered and were compared with this journal"
    if result["disagreeing"]:
        text += f"; the copy contradicts this journal at {', '.join(result['disagreeing'])}"
    if result["unanswered"]:
        text += f"; no usable answer from {', '.join(result['unanswered'])}"
    return text
