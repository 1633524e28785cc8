"""The journal in the operator API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from island.kernel.ids import IslandId
from island.net.api import base
from island.trust.heads import JournalHeads, unreached
from island.trust.journal import JournalEntry
from island.trust.service import Trust

MAX_ROWS = 10_000


class Acknowledged(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /api/v1/journal/acknowledge`."""

    reason: Annotated[str, Meta(min_length=1, max_length=1000)]


def routes(trust: Trust, heads: JournalHeads, display: Callable[[IslandId], str]) -> list[web.RouteDef]:
    """Return the routes for the journal."""

    async def read(request: web.Request) -> web.Response:
        """List the newest rows of the journal, oldest first; for a user, those about what she did."""
        query, caller = request.query, base.principal(request)
        limit = base.whole_number(query.get("limit", "1000"), "limit", MAX_ROWS)
        who = "" if caller.is_administrator else trust.who(caller.user)
        found = await trust.journal(query.get("since", ""), query.get("contains", "")[:1000], limit, who=who)
        return base.reply([row(entry, trust.name) for entry in found])

    checking = asyncio.Lock()

    async def verify(request: web.Request) -> web.Response:
        """Check every row and the seal, and compare the journal with the heads that other islands store.

        Runs once at a time; further requests wait, until their clients disconnect.
        """
        async with base.attended(request), checking:
            answers = await heads.compare()
            rows, problems = await trust.verify_journal()
        problems += heads.own_problems(display)
        return base.reply(
            {
                "island": trust.name,
                "rows": rows,
                "whole": not problems,
                "problems": problems[:100],
                "asked": len(answers),
                "answered": len(answers) - len(unreached(answers)),
                "unanswered": [display(island) for island in unreached(answers)],
                "disagreeing": [display(each.island) for each in answers if each.answer == "disagrees"],
            }
        )

    async def acknowledge(request: web.Request) -> web.Response:
        """Accept that rows are missing, for example after restoring a backup; this is recorded in the journal."""
        caller = base.administrator(request)
        body = await base.body(request, Acknowledged)
        return base.reply({"island": trust.name, "generation": await heads.acknowledge(caller.user, body.reason)})

    return [
        web.get("/api/v1/journal", read),
        web.get("/api/v1/journal/verify", verify),
        web.post("/api/v1/journal/acknowledge", acknowledge),
    ]


def row(entry: JournalEntry, island: str) -> dict[str, Any]:
    """Return a row as a flat JSON object; `detail` is a string with JSON."""
    return {
        "island": island,
        "seq": entry.seq,
        "at": base.iso(entry.at),
        "who": entry.who,
        "act": entry.act,
        "what": entry.what,
        "outcome": entry.outcome,
        "detail": json.dumps(entry.detail, ensure_ascii=False) if entry.detail else "",
    }
