"""A log that cannot be written: the program goes on, counts the lost lines and reports them."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STEPS = 10_000

LOOP = f"""
import asyncio, os, resource, sys
import structlog
from island.kernel import telemetry
from island.kernel.loops import ENDED, forever
from island.kernel.ports import SeededRng

steps = 0
async def step():
    global steps
    steps += 1
    if steps > {STEPS}:
        return ENDED
    log.warning("peer.away", failures=steps)

def say(*what):
    print(*what, *telemetry.problems(), int(telemetry.LOST._value.get()), flush=True)

telemetry.configure()
log = structlog.get_logger("island")
"""
"""A program whose loop logs more than the queue and a pipe can hold."""

RUN = """
asyncio.run(forever(step, name="x", rng=SeededRng(1), base=0.0))
"""


@contextmanager
def program(code: str, log: int | Path) -> Iterator[subprocess.Popen[str]]:
    """A program that logs to a descriptor or a file."""
    handle = log if isinstance(log, int) else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        child = subprocess.Popen(
            [sys.executable, "-c", LOOP + code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=handle,
            text=True,
            cwd=Path(__file__).parents[2],
        )
    finally:
        os.close(handle)
    with child:
        try:
            yield child
        finally:
            child.kill()


def line_of(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline()


def tell(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def small_pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    return reader, writer


def test_a_log_that_nobody_reads_stops_nothing_and_reports_later_what_was_lost() -> None:
    reader, writer = small_pipe()
    with (
        program(RUN + "say(steps); sys.stdin.readline(); telemetry.flush(); say('then')", writer) as child,
        os.fdopen(reader) as log,
    ):
        said = line_of(child)
        assert said.startswith(f"{STEPS + 1} the log of this island cannot be written: its reader"), said
        lost = int(said.split()[-1])
        written = []
        for line in log:
            written.append(line)
            if "log.lines_lost" in line:
                break
        assert f" lines={lost} " in written.pop() and lost > 0
        assert [int(re.findall(r"failures=(\d+)", line)[0]) for line in written] == [*range(1, STEPS - lost + 1)]
        tell(child)
        assert line_of(child) == f"then {lost}\n"  # no problem any more


def test_a_log_that_nobody_reads_does_not_prevent_the_end_of_the_program() -> None:
    reader, writer = small_pipe()
    with program(RUN, writer) as child:
        assert child.wait() == 0
    os.close(reader)


def test_a_log_on_a_full_disk_stops_nothing_and_reports_later_what_was_lost(tmp_path: Path) -> None:
    code = f"""
telemetry.flush()
say(steps)
os.dup2(os.open({str(tmp_path / "log")!r}, os.O_WRONLY | os.O_CREAT), 2)
log.info('again')
telemetry.flush()
say('then')
"""
    with program(RUN + code, Path("/dev/full")) as child:
        said = line_of(child)
        assert said.startswith(f"{STEPS + 1} the log of this island cannot be written: No space left on device"), said
        assert int(said.split()[-1]) == STEPS
        assert line_of(child) == f"then {STEPS}\n"
    again, report = (tmp_path / "log").read_text().splitlines()
    assert "event=again" in again
    assert f"event=log.lines_lost lines={STEPS} " in report and "No space left" in report


def test_a_line_that_was_written_in_part_is_not_continued_by_the_next_one(tmp_path: Path) -> None:
    code = """
def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
limit(1000)
for number in range(100):
    log.info("before", number=number)
telemetry.flush()
say("full")
limit(resource.RLIM_INFINITY)
log.info("after")
"""
    with program(code, tmp_path / "log") as child:
        said = line_of(child)
        assert child.wait() == 0
    lines = (tmp_path / "log").read_text().splitlines()
    whole = [line for line in lines if re.search(r"event=before number=\d+$", line)]
    lost = int(said.split()[-1])
    assert len(whole) in (100 - lost, 100 - lost + 1)  # what is left of the torn line may look like a shorter number
    assert lines[-2].endswith("event=after") and lines[-2].startswith("timestamp=")
    assert f"event=log.lines_lost lines={lost} " in lines[-1]


def test_the_end_of_the_program_writes_every_line() -> None:
    reader, writer = os.pipe()
    code = "for number in range(500): log.info('line', number=number)"
    with program(code, writer) as child, os.fdopen(reader) as log:
        lines = log.read().splitlines()
        assert child.wait() == 0
    assert [line.split("number=")[1] for line in lines] == [str(number) for number in range(500)]
