"""The journal in the operator API."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from island.errors import BadInput
from island.net.api import base
from island.trust.journal import Entry
from island.trust.service import Trust

MAX_ROWS = 10_000


def routes(trust: Trust) -> list[web.RouteDef]:
    """Reading and verifying the journal."""

    async def read(request: web.Request) -> web.Response:
        """List the newest rows of the journal, oldest first."""
        query = request.query
        limit = _limit(query.get("limit", "1000"))
        found = await trust.journal(query.get("since", ""), query.get("contains", "")[:1000], limit)
        return base.reply([row(entry, trust.name) for entry in found])

    async def verify(_: web.Request) -> web.Response:
        """Check that no row was edited, removed or inserted."""
        rows, problems = await trust.verify_journal()
        return base.reply({"island": trust.name, "rows": rows, "whole": not problems, "problems": problems[:100]})

    return [web.get("/api/v1/journal", read), web.get("/api/v1/journal/verify", verify)]


def row(entry: Entry, island: str) -> dict[str, Any]:
    """A row as flat JSON; `detail` is JSON text."""
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


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:19]) <= MAX_ROWS:
        raise BadInput(f"limit must be 1 to {MAX_ROWS}")
    return int(text)
