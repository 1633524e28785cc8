"""Two real daemons and the commands: what they print, and what bad input gets. No Spark session is started."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from island.cli.demo.demo_island import wait_for
from island.kernel import codec
from island.trust.messages import JournalHead
from tests.servers.daemon import ServedIsland, island_command, island_process

pytestmark = pytest.mark.e2e


@dataclass
class Pair:
    """`mauna` has data and can be dialled, `laptop` dials out only."""

    root: Path
    mauna: ServedIsland
    laptop: ServedIsland


def refused(place: ServedIsland, *arguments: str, token: str = "") -> str:
    """What a command that fails says; it must be one or two lines without a traceback."""
    done = place.run(*arguments, token=token)
    assert done.returncode == 1, f"{arguments} ended with {done.returncode}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.strip().splitlines() if not line.startswith("note: ")]
    assert 1 <= len(said) <= 3, done.stderr
    return "\n".join(said)


def table(rows: int, start: int = 0) -> pa.Table:
    schema = pa.schema(
        [
            pa.field("name", pa.string()),
            pa.field("ra", pa.float64(), metadata={"unit": "deg", "ucd": "pos.eq.ra;meta.main"}),
            pa.field("dec", pa.float64(), metadata={"unit": "deg", "ucd": "pos.eq.dec;meta.main"}),
            pa.field("mag", pa.float64(), metadata={"unit": "mag", "ucd": "phot.mag;em.opt.V"}),
        ]
    )
    return pa.table(
        {
            "name": [f"star-{n}" for n in range(start, start + rows)],
            "ra": [(n * 7.31) % 360 for n in range(start, start + rows)],
            "dec": [(n * 3.17) % 180 - 90 for n in range(start, start + rows)],
            "mag": [None if n % 10 == 0 else 5 + n % 15 for n in range(start, start + rows)],
        },
        schema=schema,
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    root = tmp_path_factory.mktemp("pair")
    found = Pair(root, ServedIsland(root, "mauna"), ServedIsland(root, "laptop", dialled=False))
    try:
        found.mauna.start()
        found.laptop.start()
        found.laptop.command("peer", "join", stdin=found.mauna.command("peer", "invite"))
        data = root / "stars"
        data.mkdir()
        pq.write_table(table(5000), data / "a.parquet")
        pq.write_table(table(5000, 5000), data / "b.parquet")
        found.mauna.command("dataset", "publish", str(data), "--name", "stars", "--title", "Bright stars of a test")
        wait_for("the dataset at the laptop", lambda: found.laptop.json("dataset", "ls") or None, 90)
        yield found
    finally:
        found.laptop.stop()
        found.mauna.stop()


def test_peers_see_each_other(pair: Pair) -> None:
    def met(place: ServedIsland) -> list[dict[str, Any]] | None:
        rows: list[dict[str, Any]] = place.json("peer", "ls")
        names = {row["island"] for row in rows if row["state"] in {"self", "up"}}
        return rows if names == {"mauna", "laptop"} else None

    for place in (pair.mauna, pair.laptop):
        rows = wait_for("both to be up", lambda place=place: met(place))  # type: ignore[misc]  # bound per place
        assert all("since" in row for row in rows)


def test_each_group_of_commands_does_in_a_process_of_its_own_what_it_does_in_this_one(pair: Pair) -> None:
    for group in ("peer", "server", "dataset", "session", "job", "source", "subscription", "channel"):
        arguments = ("--home", str(pair.laptop.home), group, "ls")
        done = island_process(*arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
        assert without_numbers(done.stdout) == without_numbers(island_command(*arguments).stdout)


def without_numbers(text: str) -> str:
    """A listing without what changes from one moment to the next."""
    return re.sub(r"[\d.]+", "0", text)


def test_listings_are_flat_and_name_the_island(pair: Pair) -> None:
    for command in (("peer",), ("server",), ("dataset",), ("source",)):
        for row in pair.laptop.json(*command, "ls"):
            assert row["island"]
            assert not any(isinstance(value, dict) for value in row.values())
    assert {s["island"] for s in pair.laptop.json("server", "ls")} == {"mauna", "laptop"}


def test_an_invitation_is_one_word_alone(pair: Pair) -> None:
    done = pair.mauna.run("peer", "invite")
    assert done.returncode == 0 and len(done.stdout.split()) == 1
    assert "this machine" in done.stderr  # its addresses are loopback


def test_bad_invitations(pair: Pair, tmp_path: Path) -> None:
    word = pair.mauna.command("peer", "invite").strip()
    guest = ServedIsland(tmp_path, "guest")
    other = ServedIsland(tmp_path, "other")
    try:
        guest.start()
        other.start()
        altered = word[:-20] + ("A" if word[-20] != "A" else "B") + word[-19:]
        for text in (altered, "nonsense", word[:40], ""):
            assert "invitation" in refused(guest, "peer", "join", text).lower()
        guest.command("peer", "join", stdin=word)
        assert "used" in refused(other, "peer", "join", word)
        foreign = refused(guest, "peer", "join", other.command("peer", "invite").strip())
        assert "archipelago" in foreign or "network" in foreign
    finally:
        guest.stop()
        other.stop()


def test_servers_are_mine_to_change_only(pair: Pair) -> None:
    pair.mauna.command("server", "add", "hdfs", "hdfs://namenode.example:8020", "--comment", "the big one")
    [row] = wait_for(
        "the server at the laptop",
        lambda: [s for s in pair.laptop.json("server", "ls") if s["kind"] == "hdfs"] or None,
        90,
    )
    assert row["island"] == "mauna" and row["comment"] == "the big one"
    refused(pair.laptop, "server", "rm", str(row["id"]))
    refused(pair.mauna, "server", "add", "ftp", "ftp://x.example")
    refused(pair.mauna, "server", "add", "livy", "http://user:password@x.example")
    refused(pair.mauna, "server", "add", "livy", "not a url")
    mine = next(s for s in pair.mauna.json("server", "ls") if s["kind"] == "hdfs")
    pair.mauna.command("server", "rm", str(mine["id"]))


def test_a_user_changes_nothing(pair: Pair) -> None:
    token = pair.mauna.user_token
    for command in (
        ("peer", "invite"),
        ("server", "add", "hdfs", "hdfs://x.example:8020"),
        ("dataset", "publish", str(pair.root / "stars"), "--name", "mine"),
        ("dataset", "unpublish", "stars"),
        ("source", "add", "folder", str(pair.root), "--name", "s"),
    ):
        assert "administrator" in refused(pair.mauna, *command, token=token)
    assert pair.mauna.run("dataset", "ls", token=token).returncode == 0
    assert "token" in refused(pair.mauna, "dataset", "ls", token="x" * 40)


def test_show_and_search(pair: Pair) -> None:
    shown = pair.laptop.json("dataset", "show", "mauna/stars")
    assert (shown["rows"], shown["island"], shown["name"]) == (10_000, "mauna", "stars")
    assert shown["bytes"] == sum(p.stat().st_size for p in (pair.root / "stars").iterdir())
    for arguments in (("bright",), ("--column", "mag"), ("--region", "circle 10 0 20"), ("--format", "parquet"), ()):
        assert [d["name"] for d in pair.laptop.json("dataset", "search", *arguments)] == ["stars"]
    for arguments in (("quasars",), ("--column", "nothing"), ("--format", "avro")):
        done = pair.laptop.run("dataset", "search", *arguments, "--json")
        assert (done.returncode, json.loads(done.stdout)) == (0, [])
    for words in (("'; DROP TABLE x; --",), ('"unclosed',), ("a AND (b",), ("*",), ("title:",)):
        assert pair.laptop.run("dataset", "search", "--", *words).returncode == 0
    assert "circle" in refused(pair.laptop, "dataset", "search", "--region", "circle 1 2")
    assert "parquet" in refused(pair.laptop, "dataset", "search", "--format", "xml")
    assert "stars" in refused(pair.laptop, "dataset", "show", "mauna/star")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("missing", ["no such", "not exist", "there is no"]),
        ("empty.parquet", ["empty"]),
        ("cut.parquet", ["truncated", "cut", "corrupt"]),
        ("cut.avro", ["truncated", "cut", "corrupt"]),
        ("checksum.parquet", ["corrupt", "checksum"]),
        ("text.csv", ["parquet"]),
    ],
)
def test_files_that_cannot_be_published(pair: Pair, shared_data: Path, file: str, words: list[str]) -> None:
    path = pair.root / file
    whole = (pair.root / "stars" / "a.parquet").read_bytes()
    avro = (shared_data / "avro" / "weather-snappy.avro").read_bytes()
    content = {
        "empty.parquet": b"",
        "cut.parquet": whole[: len(whole) // 2],
        "cut.avro": avro[: len(avro) // 2],
        "checksum.parquet": (shared_data / "parquet" / "datapage_v1-corrupt-checksum.parquet").read_bytes(),
        "text.csv": b"a,b\n1,2\n",
    }
    if file in content:
        path.write_bytes(content[file])
    said = refused(pair.mauna, "dataset", "publish", str(path), "--name", "bad").lower()
    assert any(word in said for word in words) and path.name in said
    assert [d["name"] for d in pair.mauna.json("dataset", "ls")].count("bad") == 0


@pytest.mark.parametrize("name", ["a/b", "", "..", "x" * 65, "a b", "a;b", "-x"])
def test_names_that_are_none(pair: Pair, name: str) -> None:
    assert "dataset name" in refused(pair.mauna, "dataset", "publish", str(pair.root / "stars"), f"--name={name}")


READ = """
import sys, pandas
t = pandas.read_parquet(sys.argv[1], columns=["mag"])
print(len(t), int(t.mag.notna().sum()))
"""


def read(place: ServedIsland, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", READ, url],
        env=place.environment(),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_a_lazy_read_moves_what_it_reads_and_nothing_twice(pair: Pair) -> None:
    before = pair.laptop.json("dataset", "show", "mauna/stars")
    first = read(pair.laptop, "island://mauna/stars")
    assert first.stdout.split() == ["10000", "9000"], first.stderr
    after = pair.laptop.json("dataset", "show", "mauna/stars")
    moved = after["bytes_moved"] - before["bytes_moved"]
    assert 0 < moved < after["bytes"] / 2
    assert read(pair.laptop, "island://mauna/stars").stdout == first.stdout
    assert pair.laptop.json("dataset", "show", "mauna/stars")["bytes_moved"] == after["bytes_moved"]
    whole = pair.laptop.run("dataset", "fetch", "mauna/stars")
    assert whole.returncode == 0, whole.stderr
    complete = pair.laptop.json("dataset", "show", "mauna/stars")
    assert complete["bytes_local"] == complete["bytes"] == complete["bytes_moved"]


def test_files_that_changed_are_told_at_read(pair: Pair) -> None:
    folder = pair.root / "changing"
    folder.mkdir()
    pq.write_table(table(3000), folder / "a.parquet")
    pair.mauna.command("dataset", "publish", str(folder), "--name", "changing")
    wait_for("it at the laptop", lambda: _named(pair.laptop, "changing"), 90)
    pq.write_table(table(3000, 77), folder / "a.parquet")
    done = read(pair.laptop, "island://mauna/changing")
    assert done.returncode != 0 and "changed" in done.stderr
    old = _named(pair.laptop, "changing")
    pair.mauna.command("dataset", "publish", str(folder), "--name", "changing")
    wait_for(
        "the new snapshot",
        lambda: (
            True if (_named(pair.laptop, "changing") or {}).get("snapshot") != (old or {}).get("snapshot") else None
        ),
        90,
    )
    assert read(pair.laptop, "island://mauna/changing").stdout.split() == ["3000", "2700"]
    pair.mauna.command("dataset", "unpublish", "changing")
    wait_for("it to be gone", lambda: None if _named(pair.laptop, "changing") else True, 90)


def _named(place: ServedIsland, name: str) -> dict[str, Any] | None:
    return next((d for d in place.json("dataset", "ls") if d["name"] == name), None)


def test_jobs_that_cannot_run(pair: Pair) -> None:
    assert "mauna/nothing" in refused(pair.laptop, "session", "open", "--kind", "sql", "--input", "mauna/nothing")
    done = pair.laptop.run("session", "open", "--kind", "cobol")
    assert done.returncode in {1, 2} and "cobol" in done.stderr
    assert pair.laptop.run("job", "show", "999999").returncode == 1
    assert pair.laptop.run("session", "exec", "999999", "1").returncode == 1


def test_subscriptions_that_are_refused(pair: Pair) -> None:
    watched = pair.root / "watched"
    watched.mkdir()
    pq.write_table(table(100), watched / "one.parquet")
    pair.mauna.command("source", "add", "folder", str(watched), "--name", "feed")
    wait_for(
        "the source and its columns at the laptop",
        lambda: next((s for s in pair.laptop.json("source", "ls") if s["name"] == "feed" and s.get("rows")), None),
        90,
    )

    def add(where: str, into: str = "mine", source: str = "mauna/feed") -> str:
        return refused(pair.laptop, "subscription", "add", source, "--where", where, f"--into={into}")

    assert "mag" in add("mga < 3")
    for where in ("mag <", "mag < 3; DROP TABLE x", "(SELECT 1)", "mag < (SELECT max(mag) FROM t)", "__import__('os')"):
        add(where)
    add("mag < 'bright'")
    add("mag < 3", into="a/b")
    add("mag < 3", source="mauna/nothing")
    add("mag < 3", source="nobody/feed")
    assert pair.laptop.json("subscription", "ls") == []
    assert pair.laptop.json("dataset", "ls") and _named(pair.laptop, "mine") is None


def test_rows_arrive_once_and_exactly(pair: Pair) -> None:
    watched = pair.root / "rows"
    watched.mkdir()
    pair.mauna.command("source", "add", "folder", str(watched), "--name", "rows")
    wait_for("the source", lambda: [s for s in pair.laptop.json("source", "ls") if s["name"] == "rows"] or None, 90)
    pair.laptop.command(
        "subscription", "add", "mauna/rows", "--where", "mag < 8", "--from", "beginning", "--into", "bright"
    )
    expected = 0
    for number in range(3):
        batch = table(200, number * 200)
        expected += sum(1 for mag in batch["mag"].to_pylist() if mag is not None and mag < 8)
        pq.write_table(batch, watched / f".{number}.part")
        (watched / f".{number}.part").rename(watched / f"{number}.parquet")
    (watched / "again.parquet").write_bytes((watched / "0.parquet").read_bytes())  # known by its content
    (watched / "_not.parquet").write_bytes((watched / "1.parquet").read_bytes())
    (watched / "half.parquet.tmp").write_bytes(b"PAR1")

    def complete() -> dict[str, Any] | None:
        found = _named(pair.laptop, "bright")
        return found if found and found["rows"] >= expected else None

    wait_for("the rows", complete, 90)
    assert read(pair.laptop, "island://laptop/bright").stdout.split() == [str(expected)] * 2
    [channel] = [c for c in pair.laptop.json("channel", "ls") if c["into"] == "laptop/bright"]
    assert channel["rows"] == expected
    assert {"rate", "lag", "bytes", "state"} <= set(channel)


def test_the_journal_finds_an_edited_row(pair: Pair, tmp_path: Path) -> None:
    assert pair.mauna.run("journal", "--verify").returncode == 0
    entries = pair.mauna.json("journal", "--contains", "publish")
    assert entries
    copy = ServedIsland(tmp_path, "copy")
    for name in ("key", "token", "token.user"):
        shutil.copy2(pair.mauna.home / name, copy.home / name)
    with (  # the daemon writes to this database meanwhile
        contextlib.closing(sqlite3.connect(pair.mauna.home / "state.db")) as conn,
        contextlib.closing(sqlite3.connect(copy.home / "state.db")) as copied,
    ):
        conn.backup(copied)
        assert copied.execute("UPDATE journal SET what = 'another' WHERE rowid = 2").rowcount == 1
        copied.commit()
    text = (pair.mauna.home / "island.toml").read_text()
    text = text.replace(pair.mauna.url.removeprefix("http://"), copy.url.removeprefix("http://"))
    (copy.home / "island.toml").write_text(text.replace(pair.mauna.peer_listen, copy.peer_listen))
    try:
        copy.start()
        assert "2" in refused(copy, "journal", "--verify")
    finally:
        copy.stop()


def test_a_reader_whose_only_holder_is_down_is_told_who_and_since_when(pair: Pair) -> None:
    folder = pair.root / "lonely"
    folder.mkdir()
    pq.write_table(table(1000), folder / "a.parquet")
    pair.mauna.command("dataset", "publish", str(folder), "--name", "lonely")
    wait_for("it at the laptop", lambda: _named(pair.laptop, "lonely"), 90)
    pair.mauna.kill()
    try:
        done = read(pair.laptop, "island://mauna/lonely")
        assert done.returncode != 0 and "mauna" in done.stderr and "since" in done.stderr
        assert pair.laptop.json("dataset", "search", "bright")
        rows = {r["island"]: r["state"] for r in pair.laptop.json("peer", "ls")}
        assert rows["mauna"] in {"suspect", "down"}
    finally:
        pair.mauna.start()
    wait_for(
        "the laptop to dial again",
        lambda: True if read(pair.laptop, "island://mauna/lonely").returncode == 0 else None,
        60,
    )


def test_status_says_who_and_what_is_wrong(pair: Pair) -> None:
    done = pair.laptop.run("status", "--json")
    shown = json.loads(done.stdout)
    assert (shown["island"], shown["peer_address"], shown["archipelago"]) == ("laptop", None, "demo")
    assert done.returncode == (1 if shown["problems"] else 0)


def test_a_journal_that_was_cut_is_seen_by_both_daemons(tmp_path: Path) -> None:
    kiso, laptop = ServedIsland(tmp_path, "kiso"), ServedIsland(tmp_path, "laptop", dialled=False)

    def held() -> bool | None:
        """Whether the laptop holds the newest head of kiso's journal."""
        rows = len(kiso.json("journal"))
        conn = sqlite3.connect(f"file:{laptop.home / 'state.db'}?mode=ro", uri=True)
        found = conn.execute("SELECT head FROM journal_heads").fetchone()
        conn.close()
        return True if found and codec.decode(found[0], JournalHead).seq == rows else None

    try:
        kiso.start()
        laptop.start()
        laptop.command("peer", "join", stdin=kiso.command("peer", "invite"))
        with (
            contextlib.closing(sqlite3.connect(kiso.home / "state.db")) as conn,
            contextlib.closing(sqlite3.connect(tmp_path / "backup.db")) as backup,
        ):
            conn.backup(backup)
        kiso.command("server", "add", "hdfs", "hdfs://namenode:8020")
        kiso.stop()  # the last head is given when the daemon stops
        kiso.start()
        wait_for("the head of kiso's journal at the laptop", held)
        compared = "1 of 1 linked islands"
        wait_for("a link to compare by", lambda: compared in said(kiso, "journal", "--verify")[1] or None)

        kiso.stop()  # an older file with its seal: nothing is wrong with it alone
        for suffix in ("-wal", "-shm"):
            (kiso.home / f"state.db{suffix}").unlink(missing_ok=True)
        shutil.copy(tmp_path / "backup.db", kiso.home / "state.db")
        kiso.start()
        wait_for("the laptop to see it", lambda: said(laptop, "status")[0] or None)
        assert "the journal of kiso does not continue row" in said(laptop, "status")[1]
        code, text = said(kiso, "journal", "--verify")
        assert code == 1 and "contradicts this journal at laptop" in text
        assert said(kiso, "status")[0] == 1

        kiso.stop()  # as somebody does who knows sqlite3: the tail and the seal deleted, the head fitted
        conn = sqlite3.connect(kiso.home / "state.db", isolation_level=None)
        conn.execute("DELETE FROM journal WHERE seq = (SELECT max(seq) FROM journal)")
        conn.execute("DELETE FROM journal_seal")
        conn.execute("UPDATE journal_head SET (seq, hash) = (SELECT seq, hash FROM journal ORDER BY seq DESC LIMIT 1)")
        conn.close()
        kiso.start()
        code, text = said(kiso, "journal", "--verify")
        assert code == 1 and "the seal is missing" in text
        kiso.command("journal", "--acknowledge", "a test cut it")
        wait_for("the laptop to accept it", lambda: None if said(laptop, "status")[0] else True)
        assert said(kiso, "journal", "--verify")[0] == 0
    finally:
        kiso.stop()
        laptop.stop()


def said(place: ServedIsland, *arguments: str) -> tuple[int, str]:
    """Exit code and all that a command prints."""
    done = place.run(*arguments)
    return done.returncode, done.stdout + done.stderr
