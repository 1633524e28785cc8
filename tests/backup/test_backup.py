"""Backups of a home folder: what is in them, what is refused, and what a failure leaves behind."""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import io
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from island.backup import archive, core, restoring, saving, scratch
from island.backup.messages import MAX_FILES, ArchivedFile, BackupManifest
from island.catalog import store as catalog_store
from island.cli.demo.demo_island import ISLAND
from island.cli.init import init
from island.doctor import home_facts
from island.errors import BadInput, ConfigError, Conflict, Corrupt, DiskFailed, Full, IslandError
from island.home import Home
from island.jobs import result_rows
from island.jobs.home.store import next_local
from island.kernel.db import Database, newest_version
from island.kernel.db_file import check_content, copy_database
from island.trust import journal
from island.trust.keys import Identity
from island.trust.sealing import seal_problems
from tests.standins.faults import disk_with, on_read_only_disk

NOW = 1_800_000_000.0


def tree(folder: Path) -> dict[str, bytes]:
    """The content of all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(database: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(database)) as conn:
        return conn.execute(query).fetchall()


@pytest.mark.parametrize("name", ["b.tar", "b.tar.gz"])
def test_a_backup_restores_the_island(home: Home, tmp_path: Path, name: str) -> None:
    saved = saving.save(home, tmp_path / name, now=NOW)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "home", "shown.json"])
    assert restoring.verify(tmp_path / name) == saved.manifest
    assert (saved.manifest.island, saved.manifest.key) == ("kiso", Identity.load(home.key).id)

    back = Home(tmp_path / "other" / "place")
    restoring.restore(tmp_path / name, back, now=NOW + 5)
    before, after = tree(home.path), tree(back.path)
    left_out = {path for path in before if path.startswith("replicas/")} | {"chunks.db"}
    assert after.keys() == before.keys() - left_out | {"lock"}
    changed = {path for path in after if after[path] != before.get(path)}
    assert changed <= {"state.db", "gossip.db", "lock"}
    for path in (back.path, *back.path.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    segment = "streams/copy/part-00000001.parquet"
    assert (back.path / segment).stat().st_mtime_ns == (home.path / segment).stat().st_mtime_ns
    for table in ("catalog_snapshot", "subscriptions", "gossip_own_batches", "job_statement"):
        assert rows(back.path / "state.db", f"SELECT count(*) FROM {table}")[0][0] > 0


def test_what_a_restore_changes_in_state_db(home: Home, tmp_path: Path) -> None:
    moved = f"{home.path}/streams/copy"
    with closing(sqlite3.connect(home.path / "state.db", isolation_level=None)) as conn:
        (last,) = conn.execute("SELECT max(seq) FROM journal").fetchone()
        (local,) = conn.execute("SELECT next FROM job_counter").fetchone()
        conn.execute("UPDATE catalog_snapshot SET base = ? WHERE base LIKE '%/streams/copy'", (moved,))
        conn.execute("UPDATE invitation SET expires = ?", (NOW + 86_400,))
        conn.execute("UPDATE job SET phase = 'placed', state = 'idle'")
        conn.execute("UPDATE run SET step = 'running', state = 'idle'")
        conn.execute("UPDATE stream_sources SET path = ?", (f"{home.path}/streams-of-others",))
    saving.save(home, tmp_path / "b.tar", now=NOW)
    back = Home(tmp_path / "back")
    restoring.restore(tmp_path / "b.tar", back, now=NOW + 5)
    with closing(sqlite3.connect(back.path / "state.db", isolation_level=None)) as conn:
        conn.row_factory = sqlite3.Row
        assert conn.execute("SELECT at FROM gossip_own_restored").fetchone()[0] == NOW + 5
        assert next_local(conn) == local + restoring.SKIPPED_JOB_IDS
        bases = {row["base"] for row in conn.execute("SELECT base FROM catalog_snapshot")}
        assert f"{back.path}/streams/copy" in bases and "/srv/island/stars" in bases and moved not in bases
        assert conn.execute("SELECT path FROM stream_sources").fetchone()[0] == f"{home.path}/streams-of-others"
        assert conn.execute("SELECT expires FROM invitation").fetchone()["expires"] == NOW + 5
        for table in ("job", "run"):
            assert [bool(row["stop"]) for row in conn.execute(f"SELECT stop FROM {table}")] == [True]
        newest = journal.entries(conn)[-1]
        assert (newest.seq, newest.act, newest.who) == (last + 1, "island.restore", "administrator@kiso")
        assert journal.verify(conn) == [] and seal_problems(conn, Identity.load(back.key).id) == []
        assert conn.execute("PRAGMA user_version").fetchone()[0] == newest_version("state")


def test_a_restore_does_not_seal_a_journal_that_was_changed(home: Home, tmp_path: Path) -> None:
    with closing(sqlite3.connect(home.path / "state.db", isolation_level=None)) as conn:
        conn.execute("DELETE FROM journal_seal")
    saving.save(home, tmp_path / "b.tar", now=NOW)
    restoring.restore(tmp_path / "b.tar", Home(tmp_path / "back"), now=NOW)
    assert rows(tmp_path / "back" / "state.db", "SELECT * FROM journal_seal") == []
    assert rows(tmp_path / "back" / "state.db", "SELECT * FROM journal WHERE act = 'island.restore'") == []


def test_received_rows_can_be_left_out(home: Home, tmp_path: Path) -> None:
    manifest = saving.save(home, tmp_path / "b.tar", now=NOW, streams=False).manifest
    assert not manifest.streams and not any(file.name.startswith("streams/") for file in manifest.files)


def test_names_that_differ_in_case_only_and_files_of_others(home: Home, tmp_path: Path) -> None:
    """Subscriptions may be called `copy` and `Copy`. The daemon deletes files of other names in their folders."""
    (home.path / "streams" / "Copy").mkdir()
    for name in ("Copy/part-00000000.parquet", "copy/my own.parquet"):
        (home.path / "streams" / name).write_bytes(b"rows")
    saving.save(home, tmp_path / "b.tar", now=NOW)
    names = {file.name for file in restoring.verify(tmp_path / "b.tar").files}
    assert "streams/Copy/part-00000000.parquet" in names and "streams/copy/my own.parquet" not in names


def test_a_password_file_with_the_name_of_another_secret(home: Home, tmp_path: Path) -> None:
    text = home.toml.read_text("utf-8")
    home.toml.write_text(text.replace('password_file = ""', 'password_file = "key"'), "utf-8")
    saved = saving.save(home, tmp_path / "b.tar", now=NOW)
    assert restoring.verify(tmp_path / "b.tar") == saved.manifest


def test_a_password_file_in_the_home_folder_is_included_and_another_is_named(home: Home, tmp_path: Path) -> None:
    text = home.toml.read_text("utf-8")
    assert 'password_file = ""' in text
    engine = '[[engine]]\nname = "a"\nurl = "https://a.example"\n'
    engine += 'password_file = "a.password"\nca_file = "/etc/ca.pem"\n'
    (home.path / "a.password").write_text("another secret")
    home.toml.write_text(text + engine, "utf-8")
    saved = saving.save(home, tmp_path / "engines.tar", now=NOW)
    assert "a.password" in {file.name for file in saved.manifest.files}
    assert [warning.partition(" is ")[0] for warning in saved.warnings] == ["/etc/ca.pem (engine[0].ca_file)"]
    home.toml.write_text(text.replace('password_file = ""', 'password_file = "livy.password"'), "utf-8")
    (home.path / "livy.password").write_text("a secret")
    saved = saving.save(home, tmp_path / "in.tar", now=NOW)
    assert "livy.password" in {file.name for file in saved.manifest.files} and saved.warnings == ()
    home.toml.write_text(text.replace('password_file = ""', 'password_file = "../secret"'), "utf-8")
    saved = saving.save(home, tmp_path / "out.tar", now=NOW)
    assert "../secret" in saved.warnings[0] and "../secret" not in {file.name for file in saved.manifest.files}


def test_a_backup_of_a_database_that_is_written_is_a_state_that_was_committed(home: Home, tmp_path: Path) -> None:
    """Each transaction adds a row to both of two tables; a torn copy would have more rows in one."""
    stop, written = threading.Event(), threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(home.path / "state.db", isolation_level=None, timeout=30)) as conn:
            conn.execute("CREATE TABLE one (x)")
            conn.execute("CREATE TABLE two (x)")
            while not stop.is_set():
                conn.execute("BEGIN IMMEDIATE")
                for table in ("one", "two"):
                    conn.execute(f"INSERT INTO {table} VALUES (randomblob(3000))")
                conn.execute("COMMIT")
                written.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert written.wait(30)
        for number in range(5):
            saving.save(home, tmp_path / f"{number}.tar", now=NOW)
    finally:
        stop.set()
        writer.join()
    for number in range(5):
        back = tmp_path / f"back{number}"
        restoring.restore(tmp_path / f"{number}.tar", Home(back), now=NOW)
        [(one, two)] = rows(back / "state.db", "SELECT (SELECT count(*) FROM one), (SELECT count(*) FROM two)")
        assert one == two > 0


def test_a_pack_that_a_daemon_deletes_meanwhile_starts_the_copy_again(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy of state.db still refers to the pack; the next copy does not."""
    [(pack,)] = rows(home.path / "state.db", "SELECT pack FROM catalog_page LIMIT 1")
    copies: list[Path] = []

    def copy_and_sweep(source: Path, target: Path, kind: Any) -> int:
        version = copy_database(source, target, kind)
        if kind == "state":
            copies.append(source)
            with closing(sqlite3.connect(home.path / "state.db", isolation_level=None)) as conn:
                conn.execute("DELETE FROM catalog_page WHERE pack = ?", (pack,))
            (home.path / "manifests" / pack).unlink(missing_ok=True)
        return version

    monkeypatch.setattr("island.backup.saving.copy_database", copy_and_sweep)
    saved = saving.save(home, tmp_path / "b.tar", now=NOW)
    assert len(copies) == 2 and saved.warnings == ()
    assert f"manifests/{pack}" not in {file.name for file in saved.manifest.files}


@pytest.mark.parametrize("name", ["pack", "streams/copy/part-00000099.parquet"])
def test_a_file_that_a_daemon_deletes_during_the_backup_does_not_start_it_again(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An active subscription replaces packs, and sweeps segments that it has not committed, every few seconds."""
    [(pack,)] = rows(home.path / "state.db", "SELECT pack FROM catalog_page LIMIT 1")
    gone = home.path / (f"manifests/{pack}" if name == "pack" else name)
    gone.touch()
    copies: list[str] = []

    def count(source: Path, target: Path, kind: Any) -> int:
        copies.append(kind)
        return copy_database(source, target, kind)

    monkeypatch.setattr("island.backup.saving.copy_database", count)
    saved = saving.save(home, tmp_path / "b.tar", now=NOW, progress=lambda _done, _total: gone.unlink(missing_ok=True))
    assert copies == ["gossip", "state"] and not gone.exists()
    assert restoring.verify(tmp_path / "b.tar") == saved.manifest
    names = {file.name for file in saved.manifest.files}
    assert ("streams/copy/part-00000001.parquet" in names) and (f"manifests/{pack}" in names)
    assert "streams/copy/part-00000099.parquet" not in names


def test_packs_are_copied_to_another_disk(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_link(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def packs(name: str) -> list[ArchivedFile]:
        files = saving.save(home, tmp_path / name, now=NOW).manifest.files
        return [file for file in files if file.name.startswith("manifests/")]

    linked = packs("linked.tar")
    monkeypatch.setattr("os.link", refuse_link)
    assert packs("copied.tar") == linked != []


def test_results_that_statements_refer_to_are_included_and_a_lost_one_is_reported(home: Home, tmp_path: Path) -> None:
    data = b'{"status":"ok","data":{}}'
    name = hashlib.sha256(data).hexdigest()
    Database.open(home.path, "state").close()  # the folder is that of an earlier version
    with closing(sqlite3.connect(home.path / "state.db", isolation_level=None)) as conn:
        conn.execute(
            "INSERT INTO job_statement (job, number, code, language, state, result, result_size)"
            " VALUES ('job', 0, '1', '', 'available', ?, ?)",
            (name, len(data)),
        )
    folder = home.path / "results"
    folder.mkdir()
    for each in (name, "f" * 64):  # the other one has no statement
        (folder / each).write_bytes(data)
    saved = saving.save(home, tmp_path / "b.tar", now=NOW)
    assert saved.warnings == ()
    assert [file.name for file in saved.manifest.files if file.name.startswith("results/")] == [f"results/{name}"]
    restoring.restore(tmp_path / "b.tar", Home(tmp_path / "back"), now=NOW)
    assert (tmp_path / "back" / "results" / name).read_bytes() == data
    (folder / name).unlink()
    [warning] = saving.save(home, tmp_path / "c.tar", now=NOW).warnings
    assert "1 results of statements are missing" in warning


def test_a_pack_that_is_lost_is_reported(home: Home, tmp_path: Path) -> None:
    [(pack,)] = rows(home.path / "state.db", "SELECT pack FROM catalog_page LIMIT 1")
    (home.path / "manifests" / pack).unlink()
    saved = saving.save(home, tmp_path / "b.tar", now=NOW)
    assert "publish" in saved.warnings[0]
    assert restoring.verify(tmp_path / "b.tar") == saved.manifest


KILLED = """
import os, signal, sys
from pathlib import Path
from island.backup import saving
from island.home import Home

target = Path(sys.argv[2])
saving.save(Home(Path(sys.argv[1])), target, now=1.0, progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_the_next_backup_deletes_what_a_killed_one_has_left(home: Home, tmp_path: Path) -> None:
    """It may contain the key."""
    folder = tmp_path / "backups"
    folder.mkdir()
    done = subprocess.run([sys.executable, "-c", KILLED, home.path, folder / "monday.tar"], check=False)
    (left,) = folder.iterdir()
    assert done.returncode == -signal.SIGKILL and (left / "archive").exists()
    others = [folder / f"{scratch.prefix()}{name}" for name in ("running", "link", "file")]
    others.append(folder / ".island-backup-0a1b2c3d4e5f-other")  # of another machine, which shares the folder
    others[0].mkdir()
    others[3].mkdir()
    (others[0] / "archive").touch()
    others[1].symlink_to(home.path)
    others[2].touch()
    running = os.open(others[0], os.O_RDONLY)
    try:
        fcntl.flock(running, fcntl.LOCK_EX)
        saving.save(home, folder / "tuesday.tar", now=NOW)
    finally:
        os.close(running)
    assert sorted(folder.iterdir()) == sorted([*others, folder / "tuesday.tar"])
    assert (others[0] / "archive").exists() and home.exists()


# --- what is refused ----------------------------------------------------------------------------


def test_nothing_is_overwritten(home: Home, tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(b"something else")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("b.tar", "link"):
        with pytest.raises(Conflict, match="not overwritten"):
            saving.save(home, tmp_path / name, now=NOW)
    assert (tmp_path / "b.tar").read_bytes() == b"something else"
    with pytest.raises(BadInput, match="not a folder"):
        saving.save(home, tmp_path / "none" / "b.tar", now=NOW)
    saving.save(home, tmp_path / "good.tar", now=NOW)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for target in (tmp_path / "full", tmp_path / "b.tar"):
        with pytest.raises(Conflict, match="not an empty folder"):
            restoring.restore(tmp_path / "good.tar", Home(target), now=NOW)
    (tmp_path / "empty").mkdir(mode=0o755)
    restoring.restore(tmp_path / "good.tar", Home(tmp_path / "empty"), now=NOW)


def test_a_file_that_appears_meanwhile_is_not_overwritten(home: Home, tmp_path: Path) -> None:
    target = tmp_path / "b.tar"

    def appear(done: int, total: int) -> None:
        if done == total:
            target.write_bytes(b"something else")

    with pytest.raises(Conflict, match="not overwritten"):
        saving.save(home, target, now=NOW, progress=appear)
    assert target.read_bytes() == b"something else"
    finished = tmp_path / "finished"
    finished.write_bytes(b"a backup")
    with pytest.raises(Conflict, match="not overwritten"):
        saving._place(finished, target)  # it appears after all checks
    assert target.read_bytes() == b"something else"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of root")
def test_the_root_of_a_new_file_system_is_an_empty_folder(home: Home, tmp_path: Path) -> None:
    saving.save(home, tmp_path / "b.tar", now=NOW)
    disk = tmp_path / "disk"
    (disk / "lost+found").mkdir(parents=True, mode=0o700)
    with disk_with(200_000), pytest.raises(Full, match="cannot be written"):
        restoring.restore(tmp_path / "b.tar", Home(disk), now=NOW)
    assert [path.name for path in disk.iterdir()] == ["lost+found"]
    restoring.restore(tmp_path / "b.tar", Home(disk), now=NOW)
    assert home_facts.entries(Home(disk)).foreign == []
    os.chown(disk, 65534, 65534)
    assert "lost+found" not in home_facts.entries(Home(disk)).foreign
    (tmp_path / "second" / "lost+found").mkdir(parents=True)
    init(tmp_path / "second", "second")
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "lost+found").touch()
    with pytest.raises(Conflict, match="not an empty folder"):
        init(tmp_path / "third", "third")


def test_a_failed_restore_deletes_what_it_wrote_and_nothing_else(home: Home, tmp_path: Path) -> None:
    saving.save(home, tmp_path / "b.tar", now=NOW)
    new = tmp_path / "new"

    def interfere(done: int, total: int) -> None:
        # The file is read twice: the second time it is written.
        if (new / "gossip.db").exists() and not (new / "state.db").exists():
            (new / "state.db").write_text("of another program")
            (new / "notes").write_text("of another program")

    with pytest.raises(IslandError, match="File exists"):
        restoring.restore(tmp_path / "b.tar", Home(new), now=NOW, progress=interfere)
    assert tree(new) == {"state.db": b"of another program", "notes": b"of another program"}


def test_a_backup_in_the_home_folder_is_refused(home: Home, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(home.path / "manifests")
    for target in (home.path / "b.tar", home.path / "manifests" / "b.tar", tmp_path / "link" / "b.tar"):
        with pytest.raises(BadInput, match=r"is in the home folder.*\n.*on another disk"):
            saving.save(home, target, now=NOW)
    assert not list(tmp_path.rglob("*b.tar*"))


def test_a_home_folder_of_a_running_daemon_is_refused(home: Home, tmp_path: Path) -> None:
    saving.save(home, tmp_path / "b.tar", now=NOW)
    with home.locked():
        with pytest.raises(Conflict, match="a daemon or another restore is running with the home folder"):
            restoring.restore(tmp_path / "b.tar", home, now=NOW)
        with pytest.raises(Conflict, match="'kiso', whose key is in the backup, is running"):
            restoring.restore(tmp_path / "b.tar", Home(tmp_path / "second"), now=NOW)
    assert not (tmp_path / "second").exists()
    restoring.restore(tmp_path / "b.tar", Home(tmp_path / "second"), now=NOW)


@pytest.mark.parametrize("name", ["state", "gossip"])
def test_newer_databases_are_refused_with_what_to_do(home: Home, tmp_path: Path, name: str) -> None:
    saving.save(home, tmp_path / "good.tar", now=NOW)
    newer = newest_version("state") + 90
    with closing(sqlite3.connect(home.path / f"{name}.db", isolation_level=None)) as conn:
        conn.execute(f"PRAGMA user_version={newer}")
    with pytest.raises(ConfigError, match=r"newer version.*\n.*Install the newer version"):
        saving.save(home, tmp_path / "b.tar", now=NOW)
    assert not (tmp_path / "b.tar").exists()

    def make_newer(files: dict[str, bytes]) -> None:
        files[f"{name}.db"] = files[f"{name}.db"][:60] + newer.to_bytes(4, "big") + files[f"{name}.db"][64:]

    forge(tmp_path / "good.tar", tmp_path / "newer.tar", make_newer)
    with pytest.raises(ConfigError, match=r"newer version.*\n.*Install the newer version"):
        restoring.restore(tmp_path / "newer.tar", Home(tmp_path / "back"), now=NOW)
    assert not (tmp_path / "back").exists()


def test_a_newer_format_is_refused(home: Home, tmp_path: Path) -> None:
    saving.save(home, tmp_path / "good.tar", now=NOW)
    forge(tmp_path / "good.tar", tmp_path / "newer.tar", lambda files: None, format=2)
    with pytest.raises(IslandError, match="reads formats up to 1"):
        restoring.verify(tmp_path / "newer.tar")


# --- a disk that fails --------------------------------------------------------------------------


def test_a_backup_of_a_home_folder_on_a_read_only_disk(home: Home, tmp_path: Path) -> None:
    """SQLite cannot read a database with a write-ahead log there, because it would have to create files beside it."""
    target = tmp_path / "b.tar"
    with closing(sqlite3.connect(home.path / "state.db", isolation_level=None)) as conn:
        conn.execute("CREATE TABLE late (number)")
        conn.execute("INSERT INTO late VALUES (7)")
        assert (home.path / "state.db-wal").stat().st_size
        before = tree(home.path)
        save = (*ISLAND, "--home", str(home.path), "backup", str(target))
        done = subprocess.run(on_read_only_disk(home.path, *save), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert tree(home.path) == before
    restoring.verify(target)
    with tarfile.open(target) as archived:
        archived.extract("state.db", tmp_path / "out", filter="data")
    assert rows(tmp_path / "out" / "state.db", "SELECT number FROM late") == [(7,)]
    assert not list(tmp_path.glob(".b.tar*"))


def test_a_database_that_changes_while_its_files_are_copied(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder cannot be written through this mount, but a daemon writes to it through another one."""
    copyfile, source = shutil.copyfile, home.path / "state.db"

    def copied(name: Path, target: Path) -> None:
        copyfile(name, target)
        os.utime(source, ns=(0, 0))

    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    monkeypatch.setattr(shutil, "copyfile", copied)
    with pytest.raises(Conflict, match=r"state\.db was changed while it was copied"):
        copy_database(source, tmp_path / "copy", "state")


def test_a_database_that_cannot_be_copied_is_named(home: Home, tmp_path: Path) -> None:
    (home.path / "gossip.db").write_bytes(b"not a database" * 100)
    with pytest.raises(IslandError) as refused:
        saving.save(home, tmp_path / "b.tar", now=NOW)
    assert str(home.path / "gossip.db") in refused.value.message and "b.tar" not in refused.value.message


# --- a full disk --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [50_000, 300_000])
def test_a_full_disk_leaves_no_part_of_a_backup(home: Home, tmp_path: Path, size: int) -> None:
    """50 kB: a copy of a database does not fit. 300 kB: the archive does not."""
    before = tree(tmp_path)
    with disk_with(size), pytest.raises(IslandError):
        saving.save(home, tmp_path / "b.tar", now=NOW)
    assert {name: data for name, data in tree(tmp_path).items() if "-shm" not in name and "-wal" not in name} == before
    saving.save(home, tmp_path / "b.tar", now=NOW)


def test_the_error_of_a_full_disk(home: Home, tmp_path: Path) -> None:
    with disk_with(300_000), pytest.raises(Full, match=r"b\.tar cannot be written"):
        saving.save(home, tmp_path / "b.tar", now=NOW)


def test_a_full_disk_leaves_no_part_of_a_home_folder(home: Home, tmp_path: Path) -> None:
    saving.save(home, tmp_path / "b.tar", now=NOW)
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "new"):
        with disk_with(200_000), pytest.raises(Full, match="cannot be written"):
            restoring.restore(tmp_path / "b.tar", Home(target), now=NOW)
    assert list((tmp_path / "empty").iterdir()) == [] and not (tmp_path / "new").exists()


def test_a_restore_needs_space_for_the_changes_in_state_db(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite writes them to a log beside it first, and a migration may change every page."""
    files = saving.save(home, tmp_path / "b.tar", now=NOW).manifest.files
    needed = sum(file.size for file in files) + next(file.size for file in files if file.name == "state.db")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=needed))
    with pytest.raises(Full, match="the restore needs"):
        restoring.restore(tmp_path / "b.tar", Home(tmp_path / "back"), now=NOW)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=needed + 2**20))
    restoring.restore(tmp_path / "b.tar", Home(tmp_path / "back"), now=NOW)


def test_a_full_disk_is_not_called_a_damaged_database(home: Home) -> None:
    """The index of the write-ahead log, 32 KiB, does not fit."""
    path = home.path / "state.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("CREATE TABLE last_change (x)")
        log = path.with_name("state.db-wal").read_bytes()
    path.with_name("state.db-wal").write_bytes(log)
    with disk_with(10_000), pytest.raises(DiskFailed, match="disk I/O error") as refused:
        check_content(path)
    assert "free space" in refused.value.hint
    check_content(path)


def test_the_copy_of_a_database_is_read_without_files_beside_it(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would not fit on a disk that the copies have filled."""
    beside: list[str] = []

    def listed(conn: sqlite3.Connection) -> set[str]:
        found = catalog_store.packs(conn)
        (copy,) = [Path(row["file"]) for row in conn.execute("PRAGMA database_list")]
        beside.extend(path.name for path in copy.parent.iterdir())
        return found

    monkeypatch.setattr(saving, "catalog_store", SimpleNamespace(packs=listed))
    saving.save(home, tmp_path / "b.tar", now=NOW)
    assert sorted(beside) == ["gossip.db", "state.db"]


def test_a_database_that_cannot_be_read_is_an_error_with_advice(home: Home, tmp_path: Path) -> None:
    with closing(sqlite3.connect(home.path / "state.db", isolation_level=None)) as conn:
        pages = conn.execute("SELECT rootpage FROM sqlite_schema WHERE tbl_name = 'catalog_page'").fetchall()
        (size,) = conn.execute("PRAGMA page_size").fetchone()
    with (home.path / "state.db").open("r+b") as file:
        for (page,) in pages:
            file.seek((page - 1) * size)
            file.write(b"damage" * 100)
    with pytest.raises(DiskFailed, match=f"{home.path}/state.db cannot be read.*malformed"):
        saving.save(home, tmp_path / "b.tar", now=NOW)
    assert not (tmp_path / "b.tar").exists()


# --- hostile and damaged files ------------------------------------------------------------------


def forge(good: Path, bad: Path, change: Callable[[dict[str, bytes]], object], **manifest: Any) -> None:
    """Write a backup like `good` after `change(files)`, with a manifest that agrees with its files."""
    with tarfile.open(good) as source:
        found: dict[str, bytes] = {}
        for entry in source:
            content = source.extractfile(entry)
            assert content is not None
            found[entry.name] = content.read()
    described = msgspec.json.decode(found.pop("manifest.json"))
    change(found)
    described["files"] = [
        {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "modified_ns": 0}
        for name, data in found.items()
    ]
    text = msgspec.json.encode(described | manifest)
    with tarfile.open(bad, "w", format=tarfile.GNU_FORMAT) as target:
        for name, data in {"manifest.json": text, **found}.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            target.addfile(header, io.BytesIO(data))


def insert(files: dict[str, bytes], name: str) -> None:
    last = {key: files.pop(key) for key in core.LAST}
    files[name] = b"hostile"
    files.update(last)


@pytest.fixture
def good(home: Home, tmp_path: Path) -> Path:
    """A valid backup."""
    saving.save(home, tmp_path / "good.tar", now=NOW)
    return tmp_path / "good.tar"


def refuse(path: Path, match: str) -> None:
    """Neither checking nor restoring accepts the file, and nothing is written."""
    back = path.parent / "back"
    with pytest.raises(Corrupt, match=match):
        restoring.verify(path)
    with pytest.raises(Corrupt, match=match):
        restoring.restore(path, Home(back), now=NOW)
    assert not back.exists()


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/evil", "manifests/../../evil", "manifests//evil", ".ssh", "streams/.evil", "a/b/c/d/e", "lock",
     "running.json", "x" * 101, "new\nline", "back\\slash", "état", "State.db", "key/evil", "manifests"],
)  # fmt: skip
def test_hostile_names_are_refused(good: Path, tmp_path: Path, name: str) -> None:
    forge(good, tmp_path / "bad.tar", lambda files: insert(files, name))
    refuse(tmp_path / "bad.tar", "not a usable backup")


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE,
     tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.GNUTYPE_SPARSE],
)  # fmt: skip
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_only_regular_files_are_accepted(good: Path, tmp_path: Path, kind: bytes, first: bool) -> None:
    data = good.read_bytes()
    with tarfile.open(good) as source:
        entries = source.getmembers()
    at = entries[0 if first else 3].offset
    header = tarfile.TarInfo(entries[0 if first else 3].name)
    header.type, header.linkname, header.size = kind, "/etc/passwd", 2**62
    (tmp_path / "bad.tar").write_bytes(data[:at] + header.tobuf(tarfile.GNU_FORMAT) + data[at + 512 :])
    refuse(tmp_path / "bad.tar", "not a regular file")


def test_a_file_that_the_manifest_does_not_list_is_refused(good: Path, tmp_path: Path) -> None:
    with tarfile.open(good) as source:
        end = source.getmembers()[-1]
    data = good.read_bytes()
    (tmp_path / "bad.tar").write_bytes(data[: end.offset_data + 512] + data[end.offset :])
    refuse(tmp_path / "bad.tar", "does not list")


def test_changed_bytes_are_found_wherever_they_are(good: Path, tmp_path: Path) -> None:
    data = good.read_bytes()
    with tarfile.open(good) as source:
        places = [entry.offset_data + entry.size // 2 for entry in source if entry.size]
        places += [entry.offset + 5 for entry in source.getmembers()]
    for at in places:
        (tmp_path / "bad.tar").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        refuse(tmp_path / "bad.tar", "not a usable backup")


def test_what_follows_the_end_is_refused(good: Path, tmp_path: Path) -> None:
    for rest in (b"more", bytes(512) + b"x"):
        (tmp_path / "bad.tar").write_bytes(good.read_bytes() + rest)
        refuse(tmp_path / "bad.tar", "behind its end")


def test_a_backup_that_ends_early_is_refused(good: Path, tmp_path: Path) -> None:
    data = good.read_bytes()
    zipped = gzip.compress(data)
    for whole in (data, zipped):
        for length in (0, 1, 300, 512, 2000, len(whole) // 2, len(whole) - 1100 if whole is data else len(whole) - 9):
            (tmp_path / "bad.tar").write_bytes(whole[:length])
            refuse(tmp_path / "bad.tar", "not a usable backup")


def test_a_manifest_larger_than_its_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo(archive.MANIFEST)
    header.size = 2**62
    (tmp_path / "bad.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT))
    refuse(tmp_path / "bad.tar", "does not begin with a manifest")


def test_a_backup_larger_than_the_disk_is_refused_before_anything_is_written(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(Full, match="1000 B free"):
        restoring.restore(good, Home(tmp_path / "back"), now=NOW)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("missing", ["state.db", "token", "key", "island.toml"])
def test_an_incomplete_backup_is_refused(good: Path, tmp_path: Path, missing: str) -> None:
    forge(good, tmp_path / "bad.tar", lambda files: files.pop(missing))
    refuse(tmp_path / "bad.tar", f"{missing} is missing")


def test_another_key_is_refused(good: Path, tmp_path: Path) -> None:
    forge(good, tmp_path / "bad.tar", lambda files: None, key="0" * 64)
    refuse(tmp_path / "bad.tar", "its key is not that of its manifest")
    forge(good, tmp_path / "worse.tar", lambda files: files.update(key=b"no key"))
    refuse(tmp_path / "worse.tar", "is not a private key")


def test_a_damaged_database_is_found_before_the_home_folder_can_be_used(good: Path, tmp_path: Path) -> None:
    """Its checksum is right: the file was damaged before it was backed up."""

    def damage(files: dict[str, bytes]) -> None:
        files["state.db"] = files["state.db"][:4096] + os.urandom(8192) + files["state.db"][12288:]

    forge(good, tmp_path / "bad.tar", damage)
    with pytest.raises(Corrupt, match=r"state\.db is damaged"):
        restoring.restore(tmp_path / "bad.tar", Home(tmp_path / "back"), now=NOW)
    assert not (tmp_path / "back").exists()
    forge(good, tmp_path / "worse.tar", lambda files: files.update({"state.db": b"x" * 8192}))
    refuse(tmp_path / "worse.tar", "state.db is not a database")


@pytest.mark.parametrize("place", ["/a\0b", "relative", ""])
def test_a_home_that_is_no_absolute_path_is_refused(good: Path, tmp_path: Path, place: str) -> None:
    for key in ("home", "real_home"):
        forge(good, tmp_path / "bad.tar", lambda files: None, **{key: place})
        refuse(tmp_path / "bad.tar", "its manifest is not valid")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("island.toml", b"a", "island.toml is not valid"),
        ("island.toml", b"\xff", "island.toml is not valid"),
        ("token", b"", "the file 'token' does not contain a token"),
        ("token.user", b"short", "the file 'token.user' does not contain a token"),
    ],
)
def test_a_backup_that_no_daemon_could_start_with_is_refused(
    good: Path, tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    forge(good, tmp_path / "bad.tar", lambda files: files.update({name: content}))
    refuse(tmp_path / "bad.tar", reason)


def test_a_database_that_cannot_be_migrated_is_refused(good: Path, tmp_path: Path) -> None:
    """It is a database, but not that of an island."""
    with closing(sqlite3.connect(tmp_path / "other.db")) as conn:
        conn.execute("CREATE TABLE journal (x)")
    other = (tmp_path / "other.db").read_bytes()
    forge(good, tmp_path / "bad.tar", lambda files: files.update({"state.db": other}))
    with pytest.raises(Corrupt, match=r"state\.db"):
        restoring.restore(tmp_path / "bad.tar", Home(tmp_path / "back"), now=NOW)
    assert not (tmp_path / "back").exists()


def test_a_backup_on_a_failing_disk_is_an_error_with_advice(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def failing(path: Path) -> Iterator[Any]:
        def seek(*_: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        yield SimpleNamespace(seek=seek)

    monkeypatch.setattr(restoring, "_opened", failing)
    with pytest.raises(Corrupt, match="Input/output error"):
        restoring.verify(good)


def test_a_file_that_is_no_backup_is_refused(home: Home, tmp_path: Path) -> None:
    for name, data in (("text", b"hello " * 200), ("zip", gzip.compress(b"hello")), ("database", b"")):
        (tmp_path / name).write_bytes(data)
        refuse(tmp_path / name, "not a usable backup")
    with pytest.raises(BadInput, match="cannot be read"):
        restoring.verify(tmp_path / "none")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(BadInput, match="not a regular file"):
        restoring.verify(tmp_path / "fifo")
    reading, writing = os.pipe()
    with open(reading, "rb"), open(writing, "wb"), pytest.raises(BadInput, match="not a regular file"):
        restoring.verify(Path(f"/dev/fd/{reading}"))


def test_the_manifest_has_limits() -> None:
    file = ArchivedFile("state.db", 1, "0" * 64, 0)
    names = ("state.db", "token", "token.user", "island.toml", "key")
    good = BackupManifest(1, "kiso", "0" * 64, "0.1.0", "", "/h", "/h", True, tuple(
        msgspec.structs.replace(file, name=name) for name in names))  # fmt: skip
    core.check(good, "b.tar")
    large = msgspec.structs.replace(good.files[-1], size=core.SECRET_LIMIT + 1)
    for files in ((*good.files[:-1], large), good.files[::-1], (good.files[0], *good.files)):
        with pytest.raises(Corrupt):
            core.check(msgspec.structs.replace(good, files=files), "b.tar")


def test_a_manifest_of_the_maximum_length_is_checked_at_once() -> None:
    """With a list in the place of a set this takes minutes."""
    names = [*(f"x{number}" for number in range(MAX_FILES - 5)), "state.db", "token", "token.user", *core.LAST]
    files = tuple(ArchivedFile(name, 1, "0" * 64, 0) for name in names)
    core.check(BackupManifest(1, "kiso", "0" * 64, "0.1.0", "", "/h", "/h", True, files), "b.tar")


def test_the_version_with_results_is_that_of_their_migration() -> None:
    """A backup of an earlier database has no such column to read."""
    schema = resources.files("island.kernel") / "schema" / "state"
    [migration] = [each.name for each in schema.iterdir() if "ADD COLUMN result " in each.read_text("utf-8")]
    assert int(migration[:4]) == result_rows.SINCE
