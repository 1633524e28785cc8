"""Files that only their owner may read, whatever the umask, and what older versions left open."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from island.errors import ConfigError
from island.kernel.db import Database
from island.private_files import create_private, make_private, read_secret, secret_path, secret_text, write_secret


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_secret_is_written_once_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_secret(path, b" secret\n")
    assert mode(path) == 0o600 and read_secret(path, "a key") == b" secret\n" and secret_text(path, "a key") == "secret"
    with pytest.raises(ConfigError, match="already exists"):
        write_secret(path, b"other")
    write_secret(path, b"other", replace=True)
    assert mode(path) == 0o600 and read_secret(path, "a key") == b"other"
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o777])
def test_a_secret_that_others_may_read_is_refused(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "key"
    write_secret(path, b"secret")
    path.chmod(bits)
    for read in (read_secret, secret_text):
        with pytest.raises(ConfigError, match="chmod 600"):
            read(path, "a key")


def test_the_service_manager_protects_its_credentials_whatever_their_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # systemd gives the account of the service access by an ACL, Kubernetes by the group: both show as 0440.
    folder = tmp_path / "credentials"
    folder.mkdir()
    write_secret(folder / "livy", b"secret")
    (folder / "livy").chmod(0o440)
    with pytest.raises(ConfigError, match="chmod 600"):
        secret_text(folder / "livy", "a password")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    assert secret_text(folder / "livy", "a password") == "secret"
    write_secret(tmp_path / "livy", b"secret")
    (tmp_path / "livy").chmod(0o440)
    with pytest.raises(ConfigError, match="chmod 600"):
        secret_text(tmp_path / "livy", "a password")


def test_a_credential_is_used_instead_of_the_file_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert secret_path(tmp_path, "token") == tmp_path / "token"
    folder = tmp_path / "credentials"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    assert secret_path(tmp_path, "token") == tmp_path / "token"
    folder.mkdir()
    (folder / "token").write_text("of another program")
    assert secret_path(tmp_path, "token") == tmp_path / "token"
    (folder / "island.token").write_text("of this program")
    assert secret_path(tmp_path, "token") == folder / "island.token"


def test_what_is_no_secret_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is missing"):
        read_secret(tmp_path / "none", "a key")
    with pytest.raises(FileNotFoundError):
        secret_text(tmp_path / "none", "a key")
    write_secret(tmp_path / "large", b"x" * 20_000)
    write_secret(tmp_path / "bytes", b"\xff" * 20)
    for name in ("large", "bytes"):
        with pytest.raises(ConfigError, match="is not a token"):
            secret_text(tmp_path / name, "a token")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_secret(tmp_path / "none" / "key", b"x")


@pytest.mark.parametrize("existing", [False, True])
def test_a_database_and_the_files_beside_it_are_private(tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "state.db"
    if existing:
        path.touch(0o666)
    database = Database.open(tmp_path, "state")
    assert {entry.name: mode(entry) for entry in tmp_path.iterdir()} == dict.fromkeys(
        ("state.db", "state.db-wal", "state.db-shm"), 0o600
    )
    database.close()


def test_a_file_is_private_before_it_is_filled(tmp_path: Path) -> None:
    create_private(tmp_path / "new")
    assert mode(tmp_path / "new") == 0o600
    (tmp_path / "old").touch(0o666)
    create_private(tmp_path / "old")
    assert mode(tmp_path / "old") == 0o600


def _old_home(home: Path) -> None:
    """As a version left it that did not set modes."""
    for folder in ("", "replicas", "replicas/ab", "empty"):
        (home / folder).mkdir(0o777)
    for file in ("state.db", "state.db-wal", "running.json", "key", "replicas/ab/1.parquet"):
        (home / file).touch(0o666)
    (home / "replicas" / "tool").touch(0o755)
    (home.parent / "elsewhere").touch(0o666)
    (home / "link").symlink_to(home.parent / "elsewhere")


def test_an_old_home_is_closed_and_its_secrets_are_left_to_be_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    _old_home(home)
    changed, failed = make_private(home, "state.db", {home / "key"})
    assert (changed, failed) == (9, [])
    assert mode(home / "key") == 0o666 and mode(tmp_path / "elsewhere") == 0o666
    assert mode(home / "replicas" / "tool") == 0o700
    for path in (home, *home.rglob("*")):
        assert path.name in ("key", "link") or mode(path) == (0o700 if path.is_dir() or path.name == "tool" else 0o600)
    assert make_private(home, "state.db", {home / "key"}) == (0, [])


def test_only_the_first_level_is_looked_at_once_the_database_is_private(tmp_path: Path) -> None:
    home = tmp_path / "home"
    _old_home(home)
    (home / "state.db").chmod(0o600)
    make_private(home, "state.db")
    assert mode(home / "replicas") == 0o700 and mode(home / "key") == 0o600
    assert mode(home / "replicas" / "ab" / "1.parquet") == 0o666  # below a folder that nobody else may enter
