"""What earlier jobs cost, and from it what the next one will cost. Pure.

Each quantity (seconds until a session is ready, seconds of computing, bytes of results) is estimated as a weighted
geometric mean of what was observed, because such quantities differ by factors. Newer observations count more. A
mean with few observations is drawn towards the mean of a larger group: an island's own experience with inputs of
about this size towards that of all islands, and this towards the assumed value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

START_S = 5.0
"""Assumed seconds from the commit until a session is ready or a batch runs, besides fetching its inputs."""

COMPUTE_S = 1.0
"""Assumed seconds of computing, for inputs of any size."""

OUTPUT_BYTES = 100_000.0
"""Assumed size in bytes of the results that are sent home."""

FORGETTING = 0.9
"""Factor by which each observation reduces the weight of the earlier ones; about the last ten count."""

_LEAST = 1e-3
"""Smaller values count as this: the logarithm needs a positive number, and clocks do not measure less."""


class JobObservation(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one job cost at one island. A part that was not observed is None."""

    island: str
    """Key of the executor."""
    language: str
    """Kind of its code, or `batch`."""
    input_bytes: int
    start_s: float | None = None
    """Seconds from the commit until the session was ready, without waiting for a place and without fetching."""
    compute_s: float | None = None
    """Seconds of the run of a batch; of the first statement of a session."""
    output_bytes: int | None = None
    """Size of the output of the first statement of a session, or of the log of a batch."""
    wait_s: float | None = None
    """Seconds in line for a place."""
    fetch_s: float | None = None
    """Seconds of bringing the inputs."""


class JobPrediction(msgspec.Struct, frozen=True):
    """What the decision expected of one job at the chosen island. The names are those of `JobObservation`."""

    wait_s: float
    fetch_s: float
    start_s: float
    compute_s: float
    output_bytes: float


class Expectation(msgspec.Struct, frozen=True, omit_defaults=True):
    """An expected quantity, and the number of this island's own observations that it rests on."""

    value: float
    observed: int = 0


@dataclass(slots=True)
class GeometricMean:
    """A geometric mean with forgetting."""

    weight: float = 0.0
    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.weight = self.weight * FORGETTING + 1.0
        self.total = self.total * FORGETTING + math.log(max(value, _LEAST))
        self.count += 1

    def drawn_to(self, other: float) -> float:
        """The mean, with `other` as one more observation."""
        return math.exp((self.total + math.log(max(other, _LEAST))) / (self.weight + 1.0))


class CostModel:
    """The experience of this home with all islands."""

    def __init__(self, observations: Iterable[JobObservation] = ()) -> None:
        """`observations`: oldest first."""
        self._means: dict[tuple[str, ...], GeometricMean] = {}
        for each in observations:
            self.learn(each)

    def learn(self, seen: JobObservation) -> None:
        """Add the newest observation."""
        size = size_class(seen.input_bytes)
        for what, value, groups in (
            ("start", seen.start_s, ((seen.language,), (seen.language, seen.island))),
            ("compute", seen.compute_s, ((seen.language, size), (seen.language, size, seen.island))),
            ("output", seen.output_bytes, ((seen.language, size),)),
        ):
            if value is not None and math.isfinite(value) and value >= 0:
                for group in groups:
                    self._means.setdefault((what, *group), GeometricMean()).add(float(value))

    def start(self, island: str, language: str) -> Expectation:
        """Seconds from the commit until a session of this kind is ready at an island."""
        return self._expected("start", START_S, ((language,), (language, island)))

    def compute(self, island: str, language: str, input_bytes: int) -> Expectation:
        """Seconds of computing at an island with inputs of this size."""
        size = size_class(input_bytes)
        return self._expected("compute", COMPUTE_S, ((language, size), (language, size, island)))

    def output(self, language: str, input_bytes: int) -> Expectation:
        """Bytes of the results, at any island."""
        return self._expected("output", OUTPUT_BYTES, ((language, size_class(input_bytes)),))

    def _expected(self, what: str, assumed: float, groups: tuple[tuple[str, ...], ...]) -> Expectation:
        value, count = assumed, 0
        for group in groups:
            mean = self._means.get((what, *group))
            count = mean.count if mean is not None else 0
            if mean is not None:
                value = mean.drawn_to(value)
        return Expectation(value, count)


def size_class(size: int) -> str:
    """Inputs of about the same size (in bytes) have the same class: a factor of ten each, from 1 MB on."""
    return str(max(0, math.ceil(math.log10(max(size, 1) / 1e6))))
