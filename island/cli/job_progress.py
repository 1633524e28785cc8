"""What `island session` and `island job` share: finding a job, showing what is done while one waits."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from island.cli import base
from island.client import Api, quote
from island.errors import IslandError
from island.private_files import secret_text

ENDED = {"dead", "error", "killed", "success"}
KEY_HEADER = "X-Island-Job-Key"
FAILED = {"dead", "error", "killed"}


def path(job: str, *rest: str) -> str:
    """The API's path of a job."""
    return "/".join(["/api/v1/jobs", quote(job), *rest])


def key_headers(key_file: str | None) -> dict[str, str]:
    """The header with a job's key: from a file, from stdin (`-`), or from ISLAND_JOB_KEY; never an argument,
    which others on the machine could read."""
    if key_file == "-":
        key = sys.stdin.readline().strip()
    elif key_file:
        try:
            key = secret_text(Path(key_file), "a job's key")
        except OSError as error:
            raise IslandError(f"the key file {key_file} cannot be read: {error.strerror}") from error
    else:
        key = os.environ.get("ISLAND_JOB_KEY", "")
    return {KEY_HEADER: key} if key else {}


def get(api: Api, where: str, headers: dict[str, str], **query: Any) -> Any:
    """A GET that may carry a job's key."""
    if not headers:
        return api.get(where, **query)
    return json.loads(api.read(where, headers)[2])


class Narrator:
    """Says on stderr what island does for a job, each line once."""

    def __init__(self, api: Api, job: str, headers: dict[str, str] | None = None) -> None:
        self._api, self._job, self._headers = api, job, headers or {}
        self._said = 0

    def tell(self) -> None:
        """Say the lines that are new."""
        lines = island_lines(get(self._api, path(self._job, "log"), self._headers)["log"])
        for line in lines[self._said :]:
            base.say(f"  {line}")
        self._said = max(self._said, len(lines))


def island_lines(log: list[str]) -> list[str]:
    """The part of a log that says what island did."""
    return log[log.index("\nisland: ") + 1 :] if "\nisland: " in log else []


def settle(api: Api, job: str, *, headers: dict[str, str] | None = None, quiet: bool = False) -> dict[str, Any]:
    """Wait until a batch has ended or a session is idle or has ended, saying meanwhile what is done."""
    import time

    narrator = Narrator(api, job, headers)
    while True:
        row: dict[str, Any] = get(api, path(job, "wait"), headers or {}, timeout=1.0)
        if not quiet:
            narrator.tell()
        if row["state"] in ENDED or (row["kind"] == "session" and row["state"] == "idle"):
            return row
        if headers:
            time.sleep(1.0)  # another home is asked, which answers at once
