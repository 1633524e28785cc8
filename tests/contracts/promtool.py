"""Runs `promtool`, which checks metrics and rules; it is in Debian's package `prometheus`."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

from tests.missing import missing


def promtool() -> Callable[..., str]:
    """A function that runs promtool and returns its output; fails the test with it if the status is not 0.

    Skips the test if promtool is missing, except in CI (`CI=true`).
    """
    program = shutil.which("promtool")
    if program is None:
        missing("promtool is missing: install Debian's package `prometheus`, or put promtool in PATH")

    def run(*arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            [program, *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"promtool {' '.join(arguments[:2])}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    return run
