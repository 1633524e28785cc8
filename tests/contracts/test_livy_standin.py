"""The stand-in for a Livy is as strict as a real one: the recording of Livy 0.9.0 is played to it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from aiohttp.test_utils import TestServer

from tests.contracts.test_livy_contract import play
from tests.standins.livy import PlayedLivy

GROUPS = "root,sessions,dead,batch"
DIFFERS = {
    "batch: its line in the log": "no code runs",
}


async def test_the_standin_answers_as_the_recording(tmp_path: Path) -> None:
    async with TestServer(PlayedLivy(files=tmp_path).app()) as server:
        output = await asyncio.to_thread(play, f"http://127.0.0.1:{server.port}", tmp_path, GROUPS)
    assert re.search(r"^\d+ passed, \d+ failed, \d+ skipped$", output, re.MULTILINE), output
    failed = set(re.findall(r"^FAIL  (.+?)  ", output, re.MULTILINE))
    assert failed == set(DIFFERS), output
