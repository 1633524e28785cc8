"""What a restore leaves behind that was killed, or that was not alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from island.backup import restoring, saving
from island.errors import Conflict
from island.home import Home

NOW = 1_800_000_000.0


def test_a_killed_restore_leaves_no_home_folder_without_its_marks(home: Home, tmp_path: Path) -> None:
    """A daemon that started there would accept used invitations again, and sign what it has signed differently before.

    The steps are at least those for each of the files and the databases, and two names.
    """
    saved = saving.save(home, tmp_path / "b.tar", now=NOW)
    (tmp_path / "killed").mkdir()
    command = [sys.executable, "-m", "tests.backup.killed_restores", f"{tmp_path}/b.tar", f"{tmp_path}/killed"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > len(saved.manifest.files) + 5
    assert [each["step"] for each in found if each["usable"] and not each["marked"]] == []
    assert found[-1] == {"step": "", "home": True, "usable": True, "marked": True}
    assert [each["home"] for each in found].count(True) <= 3, "only the last steps make a home folder"


def meanwhile(home: Home, path: Path, act: Callable[[], None], when: Callable[[], bool]) -> None:
    """Restore the backup `path` to `home`, and run `act` once, when a piece was read and `when()` is true."""
    left = [act]

    def progress(_done: int, _total: int) -> None:
        if left and when():
            left.pop()()

    try:
        restoring.restore(path, home, now=NOW, progress=progress)
    finally:
        assert not left


def content(folder: Path) -> set[str]:
    """The names of the files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_no_daemon_starts_with_a_folder_while_it_is_restored(home: Home, tmp_path: Path) -> None:
    """At every piece that is written, and when both databases are adapted, the folder belongs to the restore."""
    saving.save(home, tmp_path / "b.tar", now=NOW)
    new, refused = Home(tmp_path / "new"), 0

    def start(_done: int, _total: int) -> None:
        nonlocal refused
        if new.path.exists():
            with pytest.raises(Conflict), new.locked():
                raise AssertionError("a daemon could start")
            refused += 1

    restoring.restore(tmp_path / "b.tar", new, now=NOW, progress=start)
    assert refused > 5
    with new.locked():
        assert new.exists()


def test_the_second_of_two_restores_leaves_the_folder_to_the_first(home: Home, tmp_path: Path) -> None:
    saved = saving.save(home, tmp_path / "b.tar", now=NOW)
    expected = {file.name for file in saved.manifest.files} | {"lock"}

    def second() -> None:
        with pytest.raises(Conflict):
            restoring.restore(tmp_path / "b.tar", Home(tmp_path / "new"), now=NOW)

    meanwhile(Home(tmp_path / "new"), tmp_path / "b.tar", second, (tmp_path / "new" / "state.db").exists)
    assert content(tmp_path / "new") == expected


def test_a_folder_that_another_restore_has_filled_meanwhile_is_left_alone(home: Home, tmp_path: Path) -> None:
    """Both have found the folder absent: the second has checked its backup when the first is finished."""
    saved = saving.save(home, tmp_path / "b.tar", now=NOW)
    new = Home(tmp_path / "new")
    with pytest.raises(Conflict, match="not an empty folder"):
        meanwhile(new, tmp_path / "b.tar", lambda: _restore(tmp_path / "b.tar", new), lambda: not new.path.exists())
    assert content(new.path) == {file.name for file in saved.manifest.files} | {"lock"}


def test_a_failed_restore_deletes_its_lock(home: Home, tmp_path: Path) -> None:
    saving.save(home, tmp_path / "b.tar", now=NOW)
    (tmp_path / "new").mkdir()

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        meanwhile(Home(tmp_path / "new"), tmp_path / "b.tar", stop, (tmp_path / "new" / "token").exists)
    assert list((tmp_path / "new").iterdir()) == []


def _restore(path: Path, home: Home) -> None:
    restoring.restore(path, home, now=NOW)
