"""Restores one backup again and again, and kills each restore one step later than the one before.

    python -m tests.backup.killed_restores BACKUP FOLDER

Prints one line of JSON for each: what was about to be done, whether the folder is then a home folder, and whether its
state.db is marked as restored. A step is a change of the folder, or the opening of a file or a database in it.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from island.backup import restoring
from island.home import Home

STEPS = {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.chmod", "os.utime", "sqlite3.connect"}


def main(backup: Path, folder: Path) -> None:
    """Print a line for each restore, up to the first that is not killed."""
    vars(os)["fsync"] = int  # what a process has written survives it, and the syncs would take seconds
    restoring.restore(backup, Home(folder / "whole"), now=1.0)  # imports everything that a restore needs
    number = 0
    while True:
        number += 1
        home = Home(folder / str(number))
        (folder / f"{number}.step").touch()
        child = os.fork()
        if child == 0:
            kill_before(number, home.path, folder / f"{number}.step")
            restoring.restore(backup, home, now=1.0)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        step = (folder / f"{number}.step").read_text()
        print(json.dumps({"step": step, "home": home.exists(), "usable": home.key.exists(), "marked": marked(home)}))
        if status == 0:
            return
        assert os.WTERMSIG(status) == signal.SIGKILL, status


def kill_before(number: int, folder: Path, note: Path) -> None:
    """Kill this process before its step `number` in `folder`, and write to `note` which one it is."""
    left = number

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in STEPS and str(folder) in str(arguments):
            left -= 1
            if left == 0:
                note.write_text(f"{event} {arguments}")
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def marked(home: Home) -> bool:
    """Whether state.db says that it was restored."""
    if not (home.path / "state.db").exists():
        return False
    with closing(sqlite3.connect(home.path / "state.db")) as conn:
        try:
            return bool(conn.execute("SELECT * FROM gossip_own_restored").fetchall())
        except sqlite3.DatabaseError:  # it is not complete, or of an older version
            return False


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
