"""Messages of libraries: in the format of the log, on one line, and limited in number."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from island.kernel import library_log, telemetry
from island.kernel.stranger_log import PER_ADDRESS, PER_EVENT, WINDOW_S


class Lines:
    """The log of a program that has called `telemetry.configure`."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        telemetry.configure("info", "json", self._stream)

    def all(self) -> list[dict[str, Any]]:
        telemetry.flush()
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]


@pytest.fixture
def lines() -> Iterator[Lines]:
    before = structlog.get_config()
    yield Lines()
    library_log.uninstall()
    structlog.configure(**before)


async def test_a_loop_that_reports_an_error_without_end_writes_few_lines(
    lines: Lines, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(500):
        error = OSError(24, "Too many open files \x1b[2J\nforged=line")
        loop.call_exception_handler({"message": "socket.accept() out of system resource", "exception": error})
    found = lines.all()
    assert len(found) == PER_ADDRESS and capsys.readouterr().err == ""
    assert {(line["event"], line["logger"], line["level"]) for line in found} == {("library.log", "asyncio", "error")}
    assert all("out of system resource" in line["message"] and "Errno 24" in line["exception"] for line in found)


def record(name: str, created: float, message: str) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.ERROR, __file__, 1, message, (), None)
    made.created = created
    return made


def test_different_messages_are_limited_together_and_the_rest_is_counted(lines: Lines) -> None:
    begin = 1_800_000_000.0
    for number in range(3000):
        logging.getLogger("aiohttp.server").handle(record("aiohttp.server", begin, f"problem {number}"))
    assert len(lines.all()) == PER_EVENT
    logging.getLogger("aiohttp.server").handle(record("aiohttp.server", begin + WINDOW_S + 1, "another"))
    suppressed, last = lines.all()[PER_EVENT:]
    assert suppressed["event"] == "log.suppressed" and suppressed["lines"] == 3000 - PER_EVENT
    assert last["message"] == "another"


def test_programs_that_configure_the_log_twice_write_each_message_once(lines: Lines) -> None:
    again = Lines()
    logging.getLogger("asyncio").error("once")
    assert [line["message"] for line in again.all()] == ["once"] and not lines.all()
