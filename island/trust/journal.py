"""The journal: who did what, where, and how it ended, in rows chained by their hashes.

A row's hash is BLAKE3 over the hash of the row before and the canonical bytes of its own
content; the head (newest row) is kept beside, and from time to time sealed: signed with
the island's key. An edited, removed, inserted or cut-off row is found by `verify`; to hide
a change from before the last seal takes the key itself.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import blake3

from island.errors import BadInput
from island.kernel import codec
from island.kernel.ids import IslandId, NetworkId
from island.trust.keys import Identity
from island.trust.signing import verify as verify_signature

FIRST = bytes(32)
"""The hash before the first row."""

_AGO = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhd])\Z")
_TEXT_LIMIT, _DETAIL_LIMIT = 1000, 8000


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the journal. `who` is `user@island`; `detail` is plain JSON data."""

    seq: int
    at: float
    who: str
    act: str
    what: str
    outcome: str
    detail: dict[str, Any]


def append(
    conn: sqlite3.Connection, *, at: float, who: str, act: str, what: str, outcome: str, detail: Mapping[str, Any]
) -> int:
    """Add a row in the caller's transaction on state.db and return its number.

    Texts over 1,000 characters are cut and detail over 8,000 is left out: a journal row never
    makes the act fail that it records. No secret may be put into it.
    """
    head = conn.execute("SELECT seq, hash FROM journal_head").fetchone()
    seq, previous = (head["seq"] + 1, head["hash"]) if head else (1, FIRST)
    texts = [_clean(text) for text in (who, act, what, outcome)]
    encoded = _detail(detail)
    digest = _hash(previous, [seq, float(at), *texts, encoded])
    conn.execute(
        "INSERT INTO journal (seq, at, who, act, what, outcome, detail, previous, hash)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (seq, float(at), *texts, encoded, previous, digest),
    )
    conn.execute("INSERT OR REPLACE INTO journal_head (one, seq, hash) VALUES (1, ?, ?)", (seq, digest))
    return int(seq)


def entries(conn: sqlite3.Connection, since: float | None = None, contains: str = "", limit: int = 1000) -> list[Entry]:
    """The newest `limit` rows from `since` (unix seconds) that contain a text anywhere, oldest first."""
    rows = conn.execute(
        "SELECT * FROM journal WHERE at >= ? AND (? = '' OR instr(lower(who || char(10) || act || char(10) ||"
        " what || char(10) || outcome || char(10) || detail), lower(?)) > 0) ORDER BY seq DESC LIMIT ?",
        (since if since is not None else -1e300, contains, contains, limit),
    ).fetchall()
    return [_entry(row) for row in reversed(rows)]


def parse_since(text: str, now: float) -> float:
    """Unix seconds from `2026-11-20`, `2026-11-20T18:00` (UTC unless it says otherwise), or `15m`, `2h`, `7d` ago.

    Raises `BadInput`.
    """
    if match := _AGO.match(text):
        return now - float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise BadInput(
            f"'{text[:80]}' is not a time",
            hint="Write 2026-11-20, 2026-11-20T18:00 (UTC), or 15m, 2h, 7d for that long ago.",
        ) from error


def is_unsealed(conn: sqlite3.Connection) -> bool:
    """Whether there are rows after the last seal."""
    head = conn.execute("SELECT seq FROM journal_head").fetchone()
    sealed = conn.execute("SELECT seq FROM journal_seal").fetchone()
    return head is not None and (sealed is None or sealed["seq"] < head["seq"])


def last(conn: sqlite3.Connection) -> int:
    """The number of the newest row; 0 for none."""
    row = conn.execute("SELECT max(seq) AS seq FROM journal").fetchone()
    return row["seq"] or 0


def seal(conn: sqlite3.Connection, identity: Identity, network: NetworkId) -> bool:
    """Sign the head if it is newer than the last seal; whether there was anything to sign."""
    if not is_unsealed(conn):
        return False
    head = conn.execute("SELECT seq, hash FROM journal_head").fetchone()
    signature = identity.sign("journal", network, _seal_payload(head["seq"], head["hash"]))
    conn.execute(
        "INSERT OR REPLACE INTO journal_seal (one, seq, hash, network, signature) VALUES (1, ?, ?, ?, ?)",
        (head["seq"], head["hash"], network, signature),
    )
    return True


def verify(conn: sqlite3.Connection, me: IslandId | None = None) -> list[str]:
    """What is wrong with the journal, as sentences; empty if nothing is.

    With `me` the seal's signature is checked too. Reads every row.
    """
    problems: list[str] = []
    expected, previous, sealed_hash = 1, FIRST, None
    seal_row = conn.execute("SELECT * FROM journal_seal").fetchone()
    for row in conn.execute("SELECT * FROM journal ORDER BY seq"):
        if row["seq"] != expected:
            problems.append(f"rows {expected} to {row['seq'] - 1} are missing")
        if row["previous"] != previous:
            problems.append(f"row {row['seq']} does not follow the row before it: one was edited, removed or inserted")
        if row["hash"] != _hash(row["previous"], [row[key] for key in _CONTENT]):
            problems.append(f"row {row['seq']} was edited: its content does not fit its hash")
        if seal_row is not None and row["seq"] == seal_row["seq"]:
            sealed_hash = row["hash"]
        expected, previous = row["seq"] + 1, row["hash"]
    problems += _verify_head(conn, expected - 1, previous)
    if seal_row is not None:
        problems += _verify_seal(seal_row, sealed_hash, me)
    return problems


_CONTENT = ("seq", "at", "who", "act", "what", "outcome", "detail")


def _verify_head(conn: sqlite3.Connection, last: int, digest: bytes) -> list[str]:
    head = conn.execute("SELECT seq, hash FROM journal_head").fetchone()
    if head is None:
        return [f"the head is missing, there are rows up to {last}"] if last else []
    if head["seq"] > last:
        return [f"rows {last + 1} to {head['seq']} are missing at the end"]
    if head["seq"] < last or head["hash"] != digest:
        return [f"the head (row {head['seq']}) does not fit the last row ({last})"]
    return []


def _verify_seal(row: sqlite3.Row, digest: bytes | None, me: IslandId | None) -> list[str]:
    problems = []
    if digest is None:
        problems.append(f"row {row['seq']}, which was sealed, is missing")
    elif digest != row["hash"]:
        problems.append(f"row {row['seq']} is not the one that was sealed: it or one before was replaced")
    payload = _seal_payload(row["seq"], row["hash"])
    if me is not None and not verify_signature(me, "journal", NetworkId(row["network"]), payload, row["signature"]):
        problems.append("the seal is not signed by this island's key")
    return problems


def _seal_payload(seq: int, digest: bytes) -> bytes:
    return codec.encode([seq, digest])


def _hash(previous: bytes, content: list[Any]) -> bytes:
    return blake3.blake3(previous + codec.encode(content), derive_key_context="island/1/journal").digest()


def _clean(text: str) -> str:
    cut = text if len(text) <= _TEXT_LIMIT else text[: _TEXT_LIMIT - 3] + "..."
    return cut.encode("utf-8", "replace").decode("utf-8")


def _detail(detail: Mapping[str, Any]) -> str:
    text = json.dumps(dict(detail), sort_keys=True, separators=(",", ":"), default=str)
    return text if len(text) <= _DETAIL_LIMIT else json.dumps({"left_out": f"{len(text)} characters"})


def _entry(row: sqlite3.Row) -> Entry:
    try:
        detail = json.loads(row["detail"])
    except ValueError:  # an edited row must not hide the journal; `verify` names it
        detail = {"unreadable": row["detail"][:200]}
    plain = detail if isinstance(detail, dict) else {"unreadable": str(detail)[:200]}
    return Entry(row["seq"], row["at"], row["who"], row["act"], row["what"], row["outcome"], plain)
