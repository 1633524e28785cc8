"""Replay of the recording of a real Livy 0.9.0 against the engine and the gateway.

The player and the recording are in the folder `livy` beside this file. A subject is a running
server. Each has its accepted differences, with reasons. The test fails if there is a new
difference, and if an accepted difference no longer occurs.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.islands.user_port import site_in_thread
from tests.servers.engine import RunningEngine, need_spark

pytestmark = pytest.mark.spark

RECORDING = Path(__file__).resolve().parent / "livy"
GROUPS = "root,sessions,py,sql,shared,dead,batch,delete"

# Steps that differ from the recording on purpose, and why that is accepted.
NO_SCALA = {
    "sessions: delete it": "kind spark is refused, so that there is nothing to delete",
    "py: statement of kind spark": "kind spark is refused with 400",
    "py: post answers at once": "its number: the refused statement of kind spark took none",
    "shared: spark": "kind spark is refused with 400",
    "dead: proxyUser": "the step asks for kind spark",
    "dead: delete while starting": "the step before opened nothing",
    "dead: doAs": "the step asks for kind spark",
    "dead: doAs delete": "the step before opened nothing",
    "delete: sc": "there is no session of kind spark",
}
BETTER = {
    "py: log": "Spark's INFO lines are left out of the log, which so has fewer than 100 lines",
    "py: unknown job": "the session is alive after an interrupt, so that the job is not found (404)",
}
PY4J = {"py: analysis error": "the line number of a frame of py4j: pyspark 3.5.9 from PyPI has a newer one"}
# Recorded with Python 3.11; other versions have different line numbers and carets.
PYTHON_3_11 = {"shared: exit()", "py: syntax error", "py: indentation error", "py: unclosed bracket"}
MATPLOT = {"py: %matplot": "matplotlib is not installed"}

Subject = Callable[[Path, Path], AbstractContextManager[str]]


@contextmanager
def engine(home: Path, work: Path) -> Iterator[str]:
    """The embedded engine alone."""
    need_spark()
    running = RunningEngine(home, "--allow-files", str(work))
    try:
        yield running.login_url
    finally:
        running.close()


def accepted() -> dict[str, str]:
    """The differences of the embedded engine on this machine."""
    missing = {} if importlib.util.find_spec("matplotlib") else MATPLOT
    return {**NO_SCALA, **BETTER, **PY4J, **missing}


@contextmanager
def gateway(home: Path, work: Path) -> Iterator[str]:
    """An island's user port, with the embedded engine behind it."""
    need_spark()
    home.mkdir()
    limits = ("--max-sessions", "8", "--max-batches", "8")
    running = RunningEngine(home / "engine", "--allow-files", str(home / "island" / "jobs"), *limits)
    sections = {"jobs": {"allow_files": [str(work)]}, "livy": {"max_sessions": 16}}
    try:
        with site_in_thread(home / "island", running.url, running.token, sections) as url:
            yield url
    finally:
        running.close()


def accepted_of_gateway() -> dict[str, str]:
    """The accepted differences of the gateway: those of the engine, and improvements."""
    return {**accepted(), "dead: statements": "what is stored of a session is readable when the session is gone"}


SUBJECTS: list[tuple[str, Subject, Callable[[], dict[str, str]]]] = [
    ("engine", engine, accepted),
    ("gateway", gateway, accepted_of_gateway),
]


@pytest.mark.parametrize(("subject", "differs"), [row[1:] for row in SUBJECTS], ids=[row[0] for row in SUBJECTS])
def test_livy_contract(subject: Subject, differs: Callable[[], dict[str, str]], tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with subject(tmp_path / "home", work) as url:
        output = play(url, work, GROUPS)
    failed = set(re.findall(r"^FAIL  (.+?)  ", output, re.MULTILINE))
    assert re.search(r"^\d+ passed, \d+ failed, \d+ skipped$", output, re.MULTILINE), output
    may_differ = PYTHON_3_11 if sys.version_info[:2] != (3, 11) else set()
    assert failed - may_differ == set(differs()) - may_differ, output


def play(url: str, work: Path, groups: str) -> str:
    """Replay groups of the recording against a server. Returns the output of the player."""
    command = [sys.executable, str(RECORDING / "transcript.py"), url]
    command += ["--golden", str(RECORDING / "golden-livy-0.9.0.json"), "--only", groups, "--work", str(work)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout
