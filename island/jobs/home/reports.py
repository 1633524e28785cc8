"""Checks of the reports of executors. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from island.jobs import core
from island.jobs.cost_model import JobObservation
from island.jobs.messages import JobReport, RunTimes, StatementReport
from island.jobs.router import RoutingDecision
from island.kernel.codec import Malformed
from island.livy.messages import SESSION_ALIVE, SESSION_ENDED, STATEMENT_ENDED

SLACK_S: Final = 5.0
"""Seconds by which an executor may measure more than home, because home's clock may be set back a little."""

_STATEMENT_STATES: Final = STATEMENT_ENDED | {"waiting", "running", "cancelling"}


def checked_report(report: JobReport, job: str, epoch: int) -> JobReport:
    """The report, with progress limited to 0..1, after all checks that are needed to store and show it.

    Raises `Malformed` if it is about another job or epoch, or has an unknown state or an output that is not Livy's.
    """
    if (report.job, report.epoch) != (job, epoch):
        raise Malformed("the report is about another job than the requested one")
    if report.state not in (SESSION_ENDED if report.ended else SESSION_ENDED | SESSION_ALIVE):
        raise Malformed(f"the report has the unexpected state {report.state[:40]!r}")
    return msgspec.structs.replace(report, statements=tuple(_checked_statement(each) for each in report.statements))


def differs(last: JobReport | None, new: JobReport) -> bool:
    """Whether a report has anything, besides statements, that was not in the last one."""
    if last is None:
        return True
    keep = ("state", "reason", "app_id", "app_info", "moved")
    if any(getattr(last, name) != getattr(new, name) for name in keep) or len(last.notes) != len(new.notes):
        return True
    return new.log is not None and new.log != last.log


def final_times(report: JobReport) -> RunTimes | None:
    """What a run has cost, or None if that is not known yet or was not measured."""
    times = report.times
    if times is None or not (report.ended or times.compute is not None):
        return None
    return None if times.fetch is None and times.start is None and times.compute is None else times


def output_size(report: JobReport, kind: str) -> int | None:
    """The size in bytes of what a report brings home: the result of a statement, or the log of a batch."""
    if kind == "batch":
        return None if report.log is None else sum(len(line.encode("utf-8", "replace")) for line in report.log)
    return len(report.statements[0].output.encode("utf-8", "replace")) if report.statements else None


def observation(decision: RoutingDecision, times: RunTimes, output_bytes: int | None, elapsed: float) -> JobObservation:
    """What a job has cost at the chosen island.

    `elapsed`: seconds since the decision, by the clock of home. A longer part cannot be true, and is left out.
    """
    chosen = next(each for each in decision.candidates if each.island == decision.chosen)

    def believed(seconds: float | None) -> float | None:
        return seconds if seconds is not None and 0 <= seconds <= elapsed + SLACK_S else None

    return JobObservation(
        island=decision.chosen,
        language=decision.wanted.language,
        input_bytes=sum(part.bytes for part in chosen.parts),
        start_s=believed(times.start),
        compute_s=believed(times.compute),
        output_bytes=output_bytes,
        wait_s=believed(times.wait),
        fetch_s=believed(times.fetch),
    )


def _checked_statement(report: StatementReport) -> StatementReport:
    if report.state not in _STATEMENT_STATES:
        raise Malformed(f"a statement has the unexpected state {report.state[:40]!r}")
    if report.output and (problem := core.output_problem(report.output.encode("utf-8", "surrogatepass"))):
        raise Malformed(f"the output of a statement cannot be used: {problem}")
    if report.result is not None and (report.output or report.state not in STATEMENT_ENDED):
        raise Malformed("a statement that has no final output has a result")
    return msgspec.structs.replace(report, progress=min(1.0, max(0.0, report.progress)))  # NaN becomes 0
