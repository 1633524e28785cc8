"""What a Livy client sees of a job. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from island.jobs.messages import LOG_LINES


def session_state(executor_state: str, has_open_statements: bool) -> str:
    """The Livy state that home shows: an idle session with unfinished statements is `busy`."""
    return "busy" if executor_state == "idle" and has_open_statements else executor_state


def livy_log(engine_log: Sequence[str], notes: Sequence[str]) -> list[str]:
    """The log that a Livy client sees: the output streams of the engine, then the notes of island, newest last."""
    streams = list(engine_log) or ["stdout: ", "\nstderr: "]
    return [*streams, "\nisland: ", *notes[-LOG_LINES:]]


def short_log(lines: Sequence[str]) -> list[str]:
    """The last ten lines, including the headings, as a session's view shows them."""
    return list(lines[-10:])
