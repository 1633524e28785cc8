"""How other Python processes of this program are started: which modules they import, and from where.

`python -m` and `python -c` import from the working directory before the standard library. The
daemon may be started in a folder that holds files of others, so its children must not do so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

SAFE_FOLDER: Final = "/"
"""Working directory for children that use absolute paths only. Only root can add files to it."""

_ROOT = Path(__file__).resolve().parents[2]


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module with this interpreter. It does not import from the working directory."""
    return [sys.executable, "-P", "-m", module, *arguments]


def import_path(environment: Mapping[str, str]) -> str:
    """A PYTHONPATH for a child: that of `environment` as absolute paths, and the checkout that this program runs from.

    Empty entries, which stand for the working directory, are left out.
    """
    paths = [str(Path(item).resolve()) for item in environment.get("PYTHONPATH", "").split(os.pathsep) if item]
    if _ROOT.name not in {"site-packages", "dist-packages"}:
        paths.append(str(_ROOT))
    return os.pathsep.join(dict.fromkeys(paths))
