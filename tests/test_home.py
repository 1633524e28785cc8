"""A home folder that cannot be used is refused with the reason and what to do."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from island.cli.demo.demo_island import ISLAND
from island.cli.init import init
from island.doctor import core, store
from island.errors import ConfigError, Conflict
from island.home import Home, ownership_hint
from island.kernel.db import Database, Kind
from island.kernel.db_file import check_file_version
from island.kernel.ports import SystemClock
from island.trust.users import read_token
from tests.standins.faults import on_read_only_disk

NOBODY = 65534

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away and become another account")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command that ends at once; a daemon that starts in spite of its home folder is stopped by the timeout."""
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)


@only_root
def test_root_does_not_run_the_daemon_of_another_account(tmp_path: Path) -> None:
    home = tmp_path / "home"
    init(home, "kiso", "127.0.0.1:0", "127.0.0.1:0")
    os.chown(home, NOBODY, NOBODY)
    before = sorted(path.name for path in home.iterdir())
    done = command(*ISLAND, "--home", str(home), "run")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"island: the home folder {home} belongs to nobody, and this command runs as root",
        f"Run: runuser -u nobody -- island run --home {home}",
    ]
    assert sorted(path.name for path in home.iterdir()) == before


@only_root
def test_a_lock_of_another_account() -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        home = Home(Path(name) / "home")
        home.path.mkdir()
        os.chown(home.path, NOBODY, NOBODY)
        (home.path / "lock").touch(0o600)
        os.seteuid(NOBODY)
        try:
            with pytest.raises(ConfigError) as refused, home.locked():
                pass
        finally:
            os.seteuid(0)
    assert refused.value.message == f"{home.path}/lock cannot be opened by nobody: it belongs to root"
    assert refused.value.hint == f"Run as root: chown -R nobody: {home.path}"
    assert ownership_hint("nobody", "nobody", home.path) == f"Run as nobody: chmod -R u+rwX {home.path}"


def test_a_lock_whose_file_was_deleted_locks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore that fails deletes its lock, which another process may have opened already."""
    home, lock = Home(tmp_path), fcntl.flock

    def delete_first(descriptor: int, operation: int) -> None:
        home.lock.unlink()
        lock(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", delete_first)
    with pytest.raises(Conflict), home.locked():
        pass
    monkeypatch.undo()
    with home.locked(), pytest.raises(Conflict), home.locked():
        pass


def test_a_home_folder_on_a_read_only_disk(tmp_path: Path) -> None:
    home = tmp_path / "home"
    init(home, "kiso", "127.0.0.1:0", "127.0.0.1:0")
    done = command(*on_read_only_disk(home, *ISLAND, "--home", str(home), "run"))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"island: {home}/lock cannot be opened: Read-only file system",
        "Look for disk errors in the system's log, and mount the disk for writing.",
    ]


@pytest.mark.parametrize("name", ["state", "gossip", "chunks"])
def test_run_and_doctor_advise_the_same_for_a_damaged_database(tmp_path: Path, name: Kind) -> None:
    path = tmp_path / f"{name}.db"
    path.write_bytes(b"this was a database " * 100)
    with pytest.raises(ConfigError) as refused:
        check_file_version(path, name)
    (found,) = core.databases([store.database(tmp_path, name, SystemClock(), seconds=9.0)])
    assert refused.value.hint == found.advice
    assert f"{name}.db is damaged: file is not a database" in refused.value.message
    assert ("restore a backup" in found.advice) == (name == "state")


def test_doctor_names_the_disk_if_it_is_read_only(tmp_path: Path) -> None:
    home = tmp_path / "home"
    init(home, "kiso", "127.0.0.1:0", "127.0.0.1:0")
    Database.open(home, "state").close()
    with contextlib.closing(sqlite3.connect(home / "state.db", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE last_change (x)")
        log = (home / "state.db-wal").read_bytes()
    (home / "state.db-wal").write_bytes(log)  # as after a power failure: its index would have to be written
    (home / "state.db-wal").chmod(0o600)
    done = command(*on_read_only_disk(home, *ISLAND, "--home", str(home), "doctor"))
    problems = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.startswith("problem ")]
    assert problems == [f"disk            the file system of {home} is read-only"]
    assert "state.db was not checked: unable to open database file" in done.stdout


def test_a_daemon_is_found_on_a_read_only_disk(tmp_path: Path) -> None:
    """The disk became read-only while the daemon was running."""
    ask = "import pathlib, sys; from island.home import Home; print(Home(pathlib.Path(sys.argv[1])).in_use())"
    with Home(tmp_path).locked():
        done = command(*on_read_only_disk(tmp_path, sys.executable, "-c", ask, str(tmp_path)))
    assert done.stdout == "True\n", done.stderr


def test_the_command_of_the_guide_that_replaces_a_token(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[1] / "docs" / "administrator.md").read_text("utf-8")
    (line,) = [each for each in guide.splitlines() if each.startswith("(umask 077;")]
    (tmp_path / "token").write_text("isl_a_the_old_token")
    subprocess.run(["sh", "-c", line.replace("HOME", str(tmp_path))], check=True, timeout=60)
    assert read_token(tmp_path / "token").startswith("isl_a_") and "old" not in (tmp_path / "token").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["token"]
