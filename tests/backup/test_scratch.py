"""Backups into one folder at the same time do not delete each other's temporary folders."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from island.backup.scratch import prefix

MANY = """
import sys
from pathlib import Path
from island.backup.scratch import scratch_folder

for _ in range(300):
    with scratch_folder(Path(sys.argv[1])) as folder:
        (folder / "copy").write_text("data")
        assert (folder / "copy").read_text() == "data"
"""


def test_backups_into_one_folder_leave_each_other_alone(tmp_path: Path) -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", MANY, str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for each in running:
        _, err = each.communicate(timeout=60)
        assert each.returncode == 0, err
    assert [path for path in tmp_path.iterdir() if path.name.startswith(prefix())] == []
