"""How long the parts of a run take: in line, fetching, starting, computing. Pure.

A part during which this island was restarted is not measured.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import msgspec

from island.jobs.executor.run import JobRun
from island.kernel.machine import Now

_PARTS: Final = ("wait", "fetch", "start", "compute")
_PART_OF: Final = {
    "waiting": "wait",
    "fetching": "fetch",
    "submitting": "start",
    "starting": "start",
    "preparing": "start",
    "running": "compute",
}


class _OutputStatus(msgspec.Struct):
    status: str = ""


def timed(before: JobRun, after: JobRun, now: Now) -> JobRun:
    """The run after a step, with the measured seconds of what the step has ended."""
    return _statement_timed(before, _part_timed(before, after, now), now)


def _part_timed(before: JobRun, after: JobRun, now: Now) -> JobRun:
    old, new = _part(before), _part(after)
    if new == old:
        return after
    since, times = after.memory.part_since, after.times
    if (name := _ended_part(after, old, new)) is not None:
        # A run that has lost its place and waits again has waited all the time.
        earlier = times.wait if name == "wait" else None
        seconds = None if since is None else (earlier or 0.0) + max(0.0, now.boot - since)
        times = msgspec.structs.replace(times, **{name: seconds})
    return replace(after, times=times, memory=replace(after.memory, part_since=now.boot))


def _part(run: JobRun) -> str:
    """The part that a run is in; "" after its end."""
    if run.phase == "running" and run.work.kind == "batch" and run.state in ("not_started", "starting"):
        return "start"
    return _PART_OF.get(run.phase, "")


def _ended_part(after: JobRun, old: str, new: str) -> str | None:
    """The part that the time since its begin counts for; None if a part was ended before it was complete."""
    if new == "wait":
        return "wait"
    if new:
        return old
    succeeded = after.work.kind == "batch" and after.state == "success"
    return "compute" if succeeded and old == "compute" else None


def _statement_timed(before: JobRun, after: JobRun, now: Now) -> JobRun:
    """The run with the time of its first statement."""
    if before.statement is None and after.statement is not None:
        return replace(after, memory=replace(after.memory, first_since=now.boot))
    since, statement = after.memory.first_since, after.statement
    if since is None or statement is None or not statement.ended:
        return after
    after = replace(after, memory=replace(after.memory, first_since=None))
    if not _is_result(statement.state, statement.output):
        return after
    return replace(after, times=msgspec.structs.replace(after.times, compute=max(0.0, now.boot - since)))


def _is_result(state: str, output: str) -> bool:
    """Whether a statement has ended without an error. The time until an error says nothing about computing."""
    if state != "available" or not output:
        return False
    try:
        return msgspec.json.decode(output, type=_OutputStatus).status == "ok"
    except (msgspec.DecodeError, RecursionError):
        return False
