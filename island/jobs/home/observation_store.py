"""SQL of the table job_observation: what earlier jobs of this home cost, beside what was expected."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

import msgspec

from island.jobs.cost_model import JobObservation, JobPrediction

KEPT = 2000
"""Maximum number of rows."""


@dataclass(frozen=True, slots=True)
class StoredObservation:
    """One row: what a job cost, and what was expected."""

    number: int
    observed: JobObservation
    predicted: JobPrediction


def add(conn: sqlite3.Connection, job: str, epoch: int, observed: JobObservation, predicted: JobPrediction) -> None:
    """Insert what a job cost, unless that is stored already. The oldest rows beyond `KEPT` are deleted."""
    conn.execute(
        "INSERT OR IGNORE INTO job_observation (job, epoch, observed, predicted) VALUES (?, ?, ?, ?)",
        (job, epoch, msgspec.json.encode(observed).decode(), msgspec.json.encode(predicted).decode()),
    )
    conn.execute("DELETE FROM job_observation WHERE number <= (SELECT max(number) FROM job_observation) - ?", (KEPT,))


def after(conn: sqlite3.Connection, number: int) -> list[StoredObservation]:
    """The rows with a larger number, oldest first."""
    rows = conn.execute("SELECT * FROM job_observation WHERE number > ? ORDER BY number", (number,))
    return [_stored(row) for row in rows]


def of_job(conn: sqlite3.Connection, job: str) -> dict[int, StoredObservation]:
    """What a job cost, by the epoch of the run."""
    rows = conn.execute("SELECT * FROM job_observation WHERE job = ?", (job,))
    return {row["epoch"]: _stored(row) for row in rows}


def _stored(row: sqlite3.Row) -> StoredObservation:
    return StoredObservation(
        row["number"],
        msgspec.json.decode(row["observed"], type=JobObservation),
        msgspec.json.decode(row["predicted"], type=JobPrediction),
    )
