"""Functions shared by `island session` and `island job`: paths and keys of jobs, waiting with progress messages."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from island.cli import base
from island.cli.job_log import new_lines, split_log
from island.client import Api, quote
from island.errors import IslandError
from island.kernel.terminal import escaped
from island.private_files import secret_text

ENDED = {"dead", "error", "killed", "success"}
KEY_HEADER = "X-Island-Job-Key"
FAILED = {"dead", "error", "killed"}

_CLEAR = "\x1b[K"
"""Clears a terminal's line to its end."""


def path(job: str, *rest: str) -> str:
    """Return the path of a job in the operator API."""
    return "/".join(["/api/v1/jobs", quote(job), *rest])


def key_headers(key_file: str | None) -> dict[str, str]:
    """Return the header with a job's key: from a file, from stdin (`-`), or from ISLAND_JOB_KEY.

    The key is never a command line argument, because other accounts of the machine can read those.
    Raises `IslandError` if the file cannot be read.
    """
    if key_file == "-":
        key = sys.stdin.readline().strip()
    elif key_file:
        try:
            key = secret_text(Path(key_file), "a job's key", pipe=True)
        except OSError as error:
            raise IslandError(
                f"the key file {key_file} cannot be read: {error.strerror}",
                hint="Check the path given with --key-file and the permissions of the file.",
            ) from error
    else:
        key = os.environ.get("ISLAND_JOB_KEY", "")
    return {KEY_HEADER: key} if key else {}


def get(api: Api, where: str, headers: dict[str, str], **query: Any) -> Any:
    """Return the JSON answer of a GET, with `headers` if there are any (a job's key)."""
    if not headers:
        return api.get(where, **query)
    return json.loads(api.read(where, headers)[2])


class Narrator:
    """Prints the steps that islands take for a job on stderr, each line once."""

    def __init__(self, api: Api, job: str, headers: dict[str, str] | None = None) -> None:
        self._api, self._job, self._headers = api, job, headers or {}
        self._engine: list[str] = []
        self._printed: list[str] = []

    def tell(self) -> None:
        """Print the lines of the island that are new."""
        _, lines = self._lines()
        for line in new_lines(self._printed, lines):
            base.say(f"  {line}")
        self._printed = lines

    def tell_all(self) -> None:
        """Print the new lines of the engine on stdout, and those of the island on stderr."""
        engine, _ = self._lines()
        for line in new_lines(self._engine, engine):
            base.print_line(line)
        self._engine = engine
        self.tell()

    def _lines(self) -> tuple[list[str], list[str]]:
        return split_log(get(self._api, path(self._job, "log"), self._headers)["log"])


class ElapsedText:
    """Shows how long a command has been waiting, on a line that is overwritten; nothing if stderr is not a terminal."""

    def __init__(self) -> None:
        self._since, self._shown = time.monotonic(), False

    def show(self, what: str) -> None:
        """Show `what` and the elapsed seconds."""
        if sys.stderr.isatty():
            self._shown = True
            sys.stderr.write(f"\r{_CLEAR}  {escaped(what)}: {time.monotonic() - self._since:.0f} s")
            sys.stderr.flush()

    def clear(self) -> None:
        """Clear the line, before other text is printed."""
        if self._shown:
            self._shown = False
            sys.stderr.write(f"\r{_CLEAR}")
            sys.stderr.flush()


def has_settled(row: dict[str, Any]) -> bool:
    """Whether a batch has ended, or a session is idle or has ended."""
    return row["state"] in ENDED or (row["kind"] == "session" and row["state"] == "idle")


def follow(api: Api, job: str, headers: dict[str, str]) -> None:
    """Print the log of a job as it grows, until the job has ended."""
    narrator = Narrator(api, job, headers)
    while True:
        row = get(api, path(job, "wait"), headers, timeout=1.0)
        narrator.tell_all()
        if row["state"] in ENDED:
            return
        if headers or row["state"] == "idle":
            time.sleep(1.0)  # such a request does not wait


def settle(
    api: Api, job: str, *, headers: dict[str, str] | None = None, quiet: bool = False, timeout: float | None = None
) -> dict[str, Any]:
    """Wait until a batch has ended, or a session is idle or has ended; return its row.

    Prints the job's progress on stderr meanwhile, and on a terminal the elapsed seconds, unless `quiet`.
    Raises `IslandError` after `timeout` seconds; the job goes on.
    """
    narrator, elapsed = Narrator(api, job, headers), ElapsedText()
    end = None if timeout is None else time.monotonic() + timeout
    try:
        while True:
            left = 1.0 if end is None else min(1.0, max(0.0, end - time.monotonic()))
            row: dict[str, Any] = get(api, path(job, "wait"), headers or {}, timeout=left)
            if not quiet:
                elapsed.clear()
                narrator.tell()
            if has_settled(row):
                return row
            if end is not None and time.monotonic() >= end:
                raise IslandError(
                    f"the {row['kind']} is still {row['state']} after {timeout:g} s; it goes on",
                    hint=f"Wait for it again with: island job wait {row['job']}",
                )
            if not quiet:
                elapsed.show(f"{row['kind']} is {row['state']}")
            if headers:
                time.sleep(1.0)  # the request goes to another home, where it does not wait
    finally:
        elapsed.clear()
