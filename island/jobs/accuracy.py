"""How good the predictions of routing decisions were. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from island.jobs.cost_model import JobObservation, JobPrediction

TERMS: Final = {"wait": "s", "fetch": "s", "start": "s", "compute": "s", "output": "bytes"}
"""What is both predicted and observed, with its unit. `fetch` is the sum of the terms of bringing the inputs."""

LEAST: Final = {"s": 0.5, "bytes": 1000.0}
"""Smaller values count as these: differences below them do not matter to a choice."""


@dataclass(frozen=True, slots=True)
class TermAccuracy:
    """How good one term was. The ratios are of observed to predicted; None without jobs."""

    term: str
    unit: str
    jobs: int
    median_ratio: float | None
    within_factor_2: float | None
    """Share of the jobs whose ratio is from 0.5 to 2."""


def predicted(found: JobPrediction, term: str) -> float:
    """What was expected of a term, in its unit."""
    value: float = getattr(found, f"{term}_{TERMS[term]}")
    return value


def observed(found: JobObservation, term: str) -> float | None:
    """What was observed of a term, in its unit; None if nothing was."""
    value: float | None = getattr(found, f"{term}_{TERMS[term]}")
    return value


def accuracy(jobs: Iterable[tuple[JobPrediction, JobObservation]]) -> list[TermAccuracy]:
    """The accuracy of each term over these jobs."""
    ratios: dict[str, list[float]] = {term: [] for term in TERMS}
    for expected, seen in jobs:
        for term, unit in TERMS.items():
            if (value := observed(seen, term)) is not None:
                ratios[term].append(max(value, LEAST[unit]) / max(predicted(expected, term), LEAST[unit]))
    return [_term(term, ratios[term]) for term in TERMS]


def _term(term: str, ratios: list[float]) -> TermAccuracy:
    if not ratios:
        return TermAccuracy(term, TERMS[term], 0, None, None)
    near = sum(0.5 <= ratio <= 2.0 for ratio in ratios)
    return TermAccuracy(term, TERMS[term], len(ratios), statistics.median(ratios), near / len(ratios))
