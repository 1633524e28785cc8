"""The files of jobs at an engine of the same account, and at one of another account."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from island.doctor.engine_facts import can_read
from island.jobs.engines.files import OwnFiles, SharedFiles, readable_for_all, shared_folder_problem
from island.kernel.work import ThreadWorkers


@pytest.fixture
def workers() -> Iterator[ThreadWorkers]:
    found = ThreadWorkers()
    yield found
    found.close()


@pytest.fixture
def private() -> Iterator[None]:
    """The umask of the daemon."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder that other accounts can enter. They cannot enter the temporary folders of pytest."""
    folder = Path(tempfile.mkdtemp(prefix="island-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture
def shared(open_path: Path) -> Path:
    """A shared folder, as the administrator makes it."""
    folder = open_path / "shared"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, -1, 12345)
    folder.chmod(0o2750)
    return folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_own_files_are_private_and_removed(tmp_path: Path, workers: ThreadWorkers) -> None:
    files = OwnFiles(tmp_path / "jobs", workers)
    path = Path(await files.place("isl-1", "../x.py", b"1"))
    assert path == tmp_path / "jobs" / "isl-1" / "x.py" and path.read_bytes() == b"1"
    assert mode(path.parent) == 0o700
    assert await files.share("isl-1", "/data/a.parquet") == "/data/a.parquet"
    await files.withdraw("isl-1")
    await files.withdraw("isl-1")
    assert not path.parent.exists()


async def test_the_group_can_read_what_is_shared_and_nobody_else(
    tmp_path: Path, shared: Path, workers: ThreadWorkers, private: None
) -> None:
    home = tmp_path / "home"
    table = home / "replicas" / "table"
    (table / "day=1").mkdir(parents=True)
    (table / "day=1" / "a.parquet").write_bytes(b"a")
    (home / "b.parquet").write_bytes(b"b")
    files = SharedFiles(shared, workers)
    batch = Path(await files.place("isl-1", "x.py", b"print(1)"))
    folder = Path(await files.share("isl-1", str(table)))
    many = [Path(each) for each in json.loads(await files.share("isl-1", json.dumps([str(home / "b.parquet")] * 2)))]
    assert (folder / "day=1" / "a.parquet").read_bytes() == b"a" and folder.name == "table"
    assert len(set(many)) == 2 and all(each.read_bytes() == b"b" for each in many)
    group = shared.stat().st_gid
    for each in (shared / "isl-1").rglob("*"):
        assert each.stat().st_gid == group
        assert mode(each) == (0o2750 if each.is_dir() else 0o640), each
    assert mode(batch.parent) == 0o2750
    await files.withdraw("isl-1")
    assert list(shared.iterdir()) == []
    assert (table / "day=1" / "a.parquet").exists()


async def test_what_everybody_can_read_is_not_copied(open_path: Path, shared: Path, workers: ThreadWorkers) -> None:
    public = open_path / "public.parquet"
    public.write_bytes(b"p")
    public.chmod(0o644)
    assert readable_for_all(public) and not readable_for_all(shared)
    assert await SharedFiles(shared, workers).share("isl-1", str(public)) == str(public)
    assert list(shared.iterdir()) == []


def test_what_is_wrong_with_a_shared_folder(open_path: Path, shared: Path) -> None:
    assert shared_folder_problem(shared) == ""
    shared.chmod(0o2700)
    assert "chmod g+rx" in shared_folder_problem(shared)
    shared.chmod(0o2757)
    assert "every account can write" in shared_folder_problem(shared)
    assert "No such file" in shared_folder_problem(shared / "none")
    (shared / "file").write_text("")
    assert "is not a folder" in shared_folder_problem(shared / "file")
    shared.chmod(0o2750)
    open_path.chmod(0o700)
    assert f"cannot enter {open_path}" in shared_folder_problem(shared)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other accounts")
def test_which_accounts_can_read_a_folder(open_path: Path, shared: Path) -> None:
    assert can_read(open_path, "nobody") and can_read(shared, "root")
    assert not can_read(shared, "nobody") and not can_read(shared, "4711")
    os.chown(shared, -1, pwd.getpwnam("nobody").pw_gid)
    shared.chmod(0o2750)
    assert can_read(shared, "nobody")
    open_path.chmod(0o700)
    assert not can_read(shared, "nobody")
