"""What a restore leaves behind that was killed, or that was not alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from island.backup import saving
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
