"""The journal: the audit log of an island, with rows that are chained by their hashes.

The hash of a row is BLAKE3 over the hash of the previous row and the canonical bytes of its own
content. The head (newest row) is stored separately and sealed: signed with the island's key, in
the transaction that adds the row (`trust/sealing.py`). `verify` detects edited, removed, inserted
and cut-off rows; `verify_seal` detects a seal that is missing or older than the newest row. They
cannot detect that the whole journal was replaced by an older state. For that, other islands store
the newest head that they received (`trust/heads.py`).
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import blake3

from island.errors import BadInput
from island.kernel import codec
from island.kernel.ids import IslandId, NetworkId
from island.trust.keys import Identity
from island.trust.signing import verify as verify_signature

FIRST = bytes(32)
"""The previous hash of the first row."""

MAX_NUMBER = 2**53
"""The highest number of a row or a generation."""

ACKNOWLEDGE = "journal.acknowledge"
"""The `act` of a row that begins a new generation: an administrator accepts that rows are missing."""

_LOWEST = -(2**63)
"""The lowest number of a row in SQLite. Another program may have written numbers below 1."""

_AGO = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhd])\Z")
_TEXT_LIMIT, _DETAIL_LIMIT = 1000, 8000


class Tip(NamedTuple):
    """The number and the hash of a row: the newest or the sealed one."""

    seq: int
    hash: bytes


class VerifiedRows(NamedTuple):
    """The last of the rows that were verified, their problems as sentences, and whether there may be more rows."""

    last: Tip
    problems: list[str]
    more: bool


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One row of the journal. `at` is in Unix seconds, `who` is `user@island`, `detail` is plain JSON data."""

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

    Texts over 1,000 characters are truncated and details over 8,000 characters are omitted, so that
    adding a row does not make the recorded action fail. Rows must not contain secrets.
    """
    # The head is the newest row, unless another program wrote to the file; the action must not fail even then.
    newest = conn.execute(
        "SELECT seq, hash FROM journal_head WHERE seq >= (SELECT coalesce(max(seq), 0) FROM journal)"
        " UNION ALL SELECT seq, hash FROM (SELECT seq, hash FROM journal ORDER BY seq DESC LIMIT 1) LIMIT 1"
    ).fetchone()
    seq, previous = (newest["seq"] + 1, newest["hash"]) if newest else (1, FIRST)
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


def entries(
    conn: sqlite3.Connection, since: float | None = None, contains: str = "", limit: int = 1000, *, who: str = ""
) -> list[JournalEntry]:
    """The newest `limit` rows since `since` (Unix seconds) that contain a text in any column, oldest first.

    `who` selects the rows of one `user@island`; "" means all.
    """
    rows = conn.execute(
        "SELECT * FROM journal WHERE at >= ? AND (? = '' OR who = ?) AND (? = '' OR instr(lower(who || char(10) || act"
        " || char(10) || what || char(10) || outcome || char(10) || detail), lower(?)) > 0) ORDER BY seq DESC LIMIT ?",
        (since if since is not None else -1e300, who, who, contains, contains, limit),
    ).fetchall()
    return [_entry(row) for row in reversed(rows)]


def parse_since(text: str, now: float) -> float:
    """Parse an ISO 8601 date or time (UTC if it has no offset), or `15m`, `2h`, `7d` before `now`, into Unix seconds.

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
            hint="Write 2026-11-20, 2026-11-20T18:00 (UTC), or 15m, 2h, 7d for a time that long ago.",
        ) from error


def tip(conn: sqlite3.Connection) -> Tip | None:
    """The stored head; None for an empty journal."""
    return _tip(conn.execute("SELECT seq, hash FROM journal_head").fetchone())


def sealed_tip(conn: sqlite3.Connection) -> Tip | None:
    """The sealed row, or None without a seal. The signature is not checked."""
    return _tip(conn.execute("SELECT seq, hash FROM journal_seal").fetchone())


def hash_at(conn: sqlite3.Connection, seq: int) -> bytes | None:
    """The hash of a row, or None if the row does not exist."""
    row = conn.execute("SELECT hash FROM journal WHERE seq = ?", (seq,)).fetchone()
    return row["hash"] if row else None


def generation(conn: sqlite3.Connection) -> int:
    """The generation of the journal: that of the newest row with act `ACKNOWLEDGE`, or 1."""
    row = conn.execute(
        "SELECT detail FROM journal WHERE act = 'journal.acknowledge' ORDER BY seq DESC LIMIT 1"
    ).fetchone()
    if row is None:
        return 1
    try:
        stored = json.loads(row["detail"])["generation"]
    except (ValueError, KeyError, TypeError):  # an edited row; `verify` and `verify_seal` report it
        return 1
    return stored if isinstance(stored, int) and 1 <= stored <= MAX_NUMBER else 1


def last(conn: sqlite3.Connection) -> int:
    """The number of the newest row, 0 if there are no rows."""
    row = conn.execute("SELECT max(seq) AS seq FROM journal").fetchone()
    return row["seq"] or 0


def seal(conn: sqlite3.Connection, identity: Identity, network: NetworkId) -> None:
    """Sign the head, if the journal is not empty, in the caller's transaction."""
    if (head := tip(conn)) is not None:
        signature = identity.sign("journal", network, _seal_payload(head.seq, head.hash))
        conn.execute(
            "INSERT OR REPLACE INTO journal_seal (one, seq, hash, network, signature) VALUES (1, ?, ?, ?, ?)",
            (head.seq, head.hash, network, signature),
        )


def verify(conn: sqlite3.Connection) -> list[str]:
    """The problems of the rows and the head, as sentences. Reads all rows."""
    rows = verify_rows(conn, None, limit=-1)
    return rows.problems + verify_head(conn, rows.last)


def verify_rows(conn: sqlite3.Connection, after: Tip | None, limit: int) -> VerifiedRows:
    """Verify at most `limit` rows that follow the row `after`; None starts with the first row. -1 means no limit."""
    problems: list[str] = []
    first, (number, previous) = (after.seq + 1, after) if after else (_LOWEST, Tip(0, FIRST))
    expected, count = number + 1, 0
    for row in conn.execute("SELECT * FROM journal WHERE seq >= ? ORDER BY seq LIMIT ?", (first, limit)):
        count += 1
        if row["seq"] != expected:
            problems.append(f"rows {expected} to {row['seq'] - 1} are missing")
        if row["previous"] != previous:
            problems.append(f"row {row['seq']} does not follow the previous row: a row was edited, removed or inserted")
        if row["hash"] != _hash(row["previous"], [row[key] for key in _CONTENT]):
            problems.append(f"row {row['seq']} was edited: its content does not match its hash")
        expected, previous = row["seq"] + 1, row["hash"]
    return VerifiedRows(Tip(expected - 1, previous), problems, more=count == limit)


def verify_head(conn: sqlite3.Connection, newest: Tip) -> list[str]:
    """The problems of the head, as sentences. `newest` is the last row, in the same transaction."""
    return _verify_head(tip(conn), newest)


def unsealed(conn: sqlite3.Connection) -> int:
    """The newest row of an earlier version that did not seal each row, before `end_upgrade`; 0 if there is none."""
    known = conn.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'journal_unsealed'").fetchone()
    return conn.execute("SELECT coalesce(max(seq), 0) FROM journal_unsealed").fetchone()[0] if known else 0


def end_upgrade(conn: sqlite3.Connection) -> None:
    """Record that the rows of an earlier version are sealed."""
    conn.execute("DROP TABLE IF EXISTS journal_unsealed")


def verify_seal(conn: sqlite3.Connection, me: IslandId, unsealed: int = 0) -> list[str]:
    """The problems of the seal, as sentences. Reads only the newest and the sealed row.

    Rows up to the number `unsealed` need no seal.
    """
    row = conn.execute("SELECT * FROM journal_seal").fetchone()
    newest = conn.execute("SELECT seq, hash FROM journal ORDER BY seq DESC LIMIT 1").fetchone()
    if row is None:
        if newest is None:
            return [] if tip(conn) is None else ["the rows and the seal are missing"]
        if newest["seq"] <= unsealed:
            return []
        return [f"the seal is missing: rows up to {newest['seq']} are not signed by this island"]
    problems = []
    digest = hash_at(conn, row["seq"])
    if digest is None:
        problems.append(f"the sealed row {row['seq']} is missing")
    elif digest != row["hash"]:
        problems.append(f"row {row['seq']} is not the sealed row: it or an earlier row was replaced")
    if newest is not None and newest["seq"] > max(row["seq"], unsealed):
        problems.append(
            f"the seal is that of row {row['seq']}, but the newest row is {newest['seq']}: "
            "the seal was replaced by an older one, or another program wrote the newer rows"
        )
    payload = _seal_payload(row["seq"], row["hash"])
    if not verify_signature(me, "journal", NetworkId(row["network"]), payload, row["signature"]):
        problems.append("the seal is not signed by this island's key")
    return problems


_CONTENT = ("seq", "at", "who", "act", "what", "outcome", "detail")


def _verify_head(head: Tip | None, newest: Tip) -> list[str]:
    last = newest.seq
    if head is None:
        return [f"the head is missing, but there are rows up to {last}"] if last else []
    if head.seq > last:
        return [f"rows {last + 1} to {head.seq} are missing at the end"]
    if head != newest:
        return [f"the head (row {head.seq}) does not match the last row ({last})"]
    return []


def _tip(row: sqlite3.Row | None) -> Tip | None:
    return Tip(row["seq"], row["hash"]) if row else None


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


def _entry(row: sqlite3.Row) -> JournalEntry:
    try:
        detail = json.loads(row["detail"])
    except ValueError:  # an edited row must not make the journal unreadable; `verify` reports it
        detail = {"unreadable": row["detail"][:200]}
    plain = detail if isinstance(detail, dict) else {"unreadable": str(detail)[:200]}
    return JournalEntry(row["seq"], row["at"], row["who"], row["act"], row["what"], row["outcome"], plain)
