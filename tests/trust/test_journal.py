"""The journal: what was done, and that nobody changed it since."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from island.errors import BadInput
from island.kernel.db import Database
from island.kernel.ports import SeededRng
from island.trust import journal
from island.trust.keys import NO_NETWORK, Identity

ME = Identity.generate(SeededRng("me"))


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    Database.open(tmp_path, "state").close()
    connection = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    connection.row_factory = sqlite3.Row
    yield connection
    connection.close()


def fill(conn: sqlite3.Connection, count: int = 5) -> None:
    for n in range(1, count + 1):
        journal.append(
            conn, at=100.25 + n, who="user@lapalma", act="job.accept", what=f"job {n}", outcome="done", detail={"n": n}
        )


def check(conn: sqlite3.Connection) -> list[str]:
    """All that this island can find by itself."""
    return journal.verify(conn) + journal.verify_seal(conn, ME.id)


def test_rows_come_back_in_order_filtered(conn: sqlite3.Connection) -> None:
    fill(conn)
    assert [e.seq for e in journal.entries(conn)] == [1, 2, 3, 4, 5]
    assert [e.seq for e in journal.entries(conn, since=103.25)] == [3, 4, 5]
    assert [e.what for e in journal.entries(conn, contains="JOB 4")] == ["job 4"]
    assert [e.seq for e in journal.entries(conn, limit=2)] == [4, 5]
    assert journal.entries(conn, contains="%") == []
    assert journal.entries(conn)[2].detail == {"n": 3}
    assert journal.verify(conn) == []


def test_an_empty_journal_is_whole(conn: sqlite3.Connection) -> None:
    assert check(conn) == []
    journal.seal(conn, ME, NO_NETWORK)
    assert check(conn) == [] and journal.sealed_tip(conn) is None


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize(
    "column, value",
    [("at", 1.0), ("who", "x"), ("act", "x"), ("what", "x"), ("outcome", "x"), ("detail", "{}"), ("hash", b"x" * 32)],
)
def test_an_edited_row_is_found(conn: sqlite3.Connection, column: str, value: object, sealed: bool) -> None:
    fill(conn)
    if sealed:
        journal.seal(conn, ME, NO_NETWORK)
    conn.execute(f"UPDATE journal SET {column} = ? WHERE seq = 3", (value,))
    assert any("row 3" in problem for problem in journal.verify(conn))


@pytest.mark.parametrize("gone", [1, 3, 5])
def test_a_removed_row_is_found_the_last_too(conn: sqlite3.Connection, gone: int) -> None:
    fill(conn)
    conn.execute("DELETE FROM journal WHERE seq = ?", (gone,))
    assert any("missing" in problem for problem in journal.verify(conn))
    conn.execute("DELETE FROM journal")
    assert journal.verify(conn) == ["rows 1 to 5 are missing at the end"]


def test_an_inserted_row_is_found(conn: sqlite3.Connection) -> None:
    fill(conn)
    conn.execute("UPDATE journal SET seq = -seq WHERE seq > 2")
    conn.execute("UPDATE journal SET seq = 1 - seq WHERE seq < 0")
    conn.execute(
        "INSERT INTO journal SELECT 3, at, who, act, 'forged', outcome, detail, previous, hash FROM journal WHERE seq=2"
    )
    assert journal.verify(conn)


def test_a_tail_cut_off_with_its_head_is_found_by_the_seal(conn: sqlite3.Connection) -> None:
    fill(conn)
    journal.seal(conn, ME, NO_NETWORK)
    assert check(conn) == []
    conn.execute("DELETE FROM journal WHERE seq = 5")
    conn.execute("UPDATE journal_head SET seq = 4, hash = (SELECT hash FROM journal WHERE seq = 4)")
    assert journal.verify(conn) == []
    assert check(conn) == ["the sealed row 5 is missing"]


def test_a_seal_that_is_missing_or_older_than_the_newest_row_is_found(conn: sqlite3.Connection) -> None:
    fill(conn, 3)
    assert check(conn) == ["the seal is missing: rows up to 3 are not signed by this island"]
    journal.seal(conn, ME, NO_NETWORK)
    fill(conn, 2)
    assert [problem.partition(":")[0] for problem in check(conn)] == [
        "the seal is that of row 3, but the newest row is 5"
    ]
    conn.execute("DELETE FROM journal")
    conn.execute("DELETE FROM journal_seal")
    assert check(conn) == ["rows 1 to 5 are missing at the end", "the rows and the seal are missing"]


def test_a_journal_written_anew_by_another_is_found_by_the_seal(conn: sqlite3.Connection) -> None:
    fill(conn)
    journal.seal(conn, ME, NO_NETWORK)
    conn.execute("DELETE FROM journal")
    conn.execute("DELETE FROM journal_head")
    fill(conn, 6)
    conn.execute("UPDATE journal SET what = 'x' WHERE seq = 1")
    forger = Identity.generate(SeededRng("forger"))
    assert any("row 1" in problem for problem in check(conn))
    conn.execute("DELETE FROM journal_seal")
    journal.seal(conn, forger, NO_NETWORK)
    assert "the seal is not signed by this island's key" in check(conn)


def test_odd_texts_never_make_an_act_fail(conn: sqlite3.Connection) -> None:
    journal.append(
        conn, at=1, who="\ud800", act="a", what="w" * 5000, outcome="\0", detail={"x": "y" * 9000, "z": {1, 2}}
    )
    journal.append(
        conn, at=float("inf"), who="", act="", what="'; DROP TABLE journal", outcome="", detail={"z": object}
    )
    assert journal.verify(conn) == []
    assert len(journal.entries(conn)[0].what) == 1000


@pytest.mark.parametrize(
    "detail", ["{", "[]", "{}", '{"generation": "2"}', '{"generation": 1e400}', '{"generation": 0}']
)
def test_the_generation_is_that_of_the_newest_acknowledgement(conn: sqlite3.Connection, detail: str) -> None:
    assert journal.generation(conn) == 1
    for generation in (2, 7):
        journal.append(
            conn,
            at=1,
            who="a@b",
            act=journal.ACKNOWLEDGE,
            what="x",
            outcome="done",
            detail={"generation": generation},
        )
        assert journal.generation(conn) == generation
    conn.execute("UPDATE journal SET detail = ? WHERE seq = 2", (detail,))
    assert journal.generation(conn) == 1


def test_an_unreadable_detail_is_shown_not_raised(conn: sqlite3.Connection) -> None:
    fill(conn, 2)
    conn.execute("UPDATE journal SET detail = '{' WHERE seq = 1")
    conn.execute("UPDATE journal SET detail = '[1]' WHERE seq = 2")
    assert [set(e.detail) for e in journal.entries(conn)] == [{"unreadable"}, {"unreadable"}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-20", 1795132800.0),
        ("2026-11-20T18:00", 1795197600.0),
        ("2026-11-20T18:00:00+02:00", 1795190400.0),
        ("90s", 910.0),
        ("1.5m", 910.0),
        ("0h", 1000.0),
        ("7d", 1000.0 - 7 * 86400),
    ],
)
def test_since_as_people_write_it(text: str, expected: float) -> None:
    assert journal.parse_since(text, 1000.0) == expected


@pytest.mark.parametrize("text", ["yesterday", "1", "-1h", "1w", "9" * 400 + "d", "2026-13-01", "'; --"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="is not a time"):
        journal.parse_since(text, 1000.0)
