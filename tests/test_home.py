"""A home folder that cannot be used is refused with the reason and what to do."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from island.cli.demo.demo_island import ISLAND
from island.cli.init import init
from island.errors import ConfigError
from island.home import Home, ownership_hint
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


def test_a_home_folder_on_a_read_only_disk(tmp_path: Path) -> None:
    home = tmp_path / "home"
    init(home, "kiso", "127.0.0.1:0", "127.0.0.1:0")
    done = command(*on_read_only_disk(home, *ISLAND, "--home", str(home), "run"))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"island: {home}/lock cannot be opened: Read-only file system",
        "Look for disk errors in the system's log, and mount the disk for writing.",
    ]


def test_doctor_names_the_disk_if_it_is_read_only(tmp_path: Path) -> None:
    home = tmp_path / "home"
    init(home, "kiso", "127.0.0.1:0", "127.0.0.1:0")
    done = command(*on_read_only_disk(home, *ISLAND, "--home", str(home), "doctor"))
    problems = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.startswith("problem ")]
    assert problems == [f"disk            the file system of {home} is read-only"]


def test_the_command_of_the_guide_that_replaces_a_token(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[1] / "docs" / "administrator.md").read_text("utf-8")
    (line,) = [each for each in guide.splitlines() if each.startswith("(umask 077;")]
    (tmp_path / "token").write_text("isl_a_the_old_token")
    subprocess.run(["sh", "-c", line.replace("HOME", str(tmp_path))], check=True, timeout=60)
    assert read_token(tmp_path / "token").startswith("isl_a_") and "old" not in (tmp_path / "token").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["token"]
