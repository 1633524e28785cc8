"""The choice of the island that runs a job: hard filters, then an estimate in seconds as a sum of terms.

Pure. The service describes the islands (`Candidate`), first from what this island knows itself,
then from their own offers; `decide` filters, estimates and chooses. A `RoutingDecision` has all
its inputs, and `decide(decision.wanted, decision.candidates)` returns the same decision again.
`island job explain` replays decisions in this way.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import msgspec

from island.jobs.cost_model import COMPUTE_S, OUTPUT_BYTES, START_S, Expectation, JobPrediction
from island.kernel.ids import IslandId
from island.kernel.units import format_bytes

ASSUMED_BANDWIDTH = 10_000_000.0
"""Bytes per second, if nothing has been measured yet."""

ASSUMED_RTT = 0.05
"""Seconds, if nothing has been measured yet."""

EXCHANGES = 8
"""Number of control round trips between home and executor for a small job (offer, commit, statement, result)."""

FETCH_S = 0.2
"""Fixed cost in seconds of fetching one input: manifest, hashes, streams, syncing to disk, preparing."""

HOME_FACTOR, HOME_SECONDS = 1.1, 0.15
"""Home is preferred unless another island is better by more than 10 % and 150 ms, the variation of measurements.

Start and compute do not count for the 10 %: they are about the same everywhere and much larger than moving a small
dataset, which would then always come to the job.
"""

RANKED = 10
"""Maximum number of islands that a decision considers and stores."""

TIE = 0.01
"""Estimates that differ by at most this many seconds count as equal; the random draw decides."""


class InputTransfer(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an island would get one input."""

    dataset: str
    bytes: int
    """Size of the complete input in bytes."""
    missing: int
    """Number of bytes of the input that the island does not have."""
    files: int = 1
    source: str = ""
    """Name of the island from which the missing bytes would be fetched; "" if nothing is missing."""
    rtt: float | None = None
    """Measured round-trip time to the source in seconds; None if not measured."""
    bandwidth: float | None = None
    """Measured bytes per second from the source; None if not measured."""


class Candidate(msgspec.Struct, frozen=True, omit_defaults=True):
    """One island as a candidate for a job."""

    island: str
    """Its key."""
    name: str
    """Its display name."""
    up: bool = True
    state: str = ""
    """If it is not up: the reason, and for how long."""
    rtt: float | None = None
    """Measured round-trip time from home in seconds; 0 for home itself."""
    bandwidth: float | None = None
    """Measured bytes per second between home and this island."""
    wait: float = 0.0
    """Seconds until a place is free."""
    start: Expectation | None = None
    """Expected seconds from the commit until the session is ready, without waiting and fetching; None: assumed."""
    compute: Expectation | None = None
    """Expected seconds of computing; None: assumed."""
    output: Expectation | None = None
    """Expected bytes of results that are sent home; None: assumed."""
    parts: tuple[InputTransfer, ...] = ()
    languages: tuple[str, ...] | None = None
    """Kinds of code that its engine runs; () if it has no engine; None if not known."""
    refusal: str = ""
    """The island's own reason for a refusal (policy or limits), with the setting that would have to change."""
    full: bool = False
    """The refusal holds for now only: the island could run the job, but has no free place."""
    offered: bool = False
    """Whether these numbers are the island's own offer, not an estimate of home."""
    draw: float = 0.0
    """A random number, drawn once, that decides between equal estimates."""


class JobRequirements(msgspec.Struct, frozen=True, omit_defaults=True):
    """The requirements of a job that candidates must meet."""

    home: str
    language: str
    """`pyspark`, `sql`, `spark`, `sparkr`, `shared`, or `batch`."""
    pin: str = ""
    """Key of the island that the user requires (`queue = "island:NAME"`), or ""."""


class CostTerm(msgspec.Struct, frozen=True):
    """One term of an estimate."""

    what: str
    seconds: float
    why: str


TERMS = ("wait", "start", "transfer", "preparing", "round trips", "control", "compute", "output")
"""Names of the terms of every estimate, in order."""


FETCHING = ("transfer", "preparing", "round trips")
"""Terms that an executor measures as one: the time of bringing the inputs."""


NOISE = 0.15
"""How far the time for starting and computing is off at best, as a part of it. Among islands that are as good within
this, the one with the least to wait for and to move is chosen: one odd observation must not move data."""

ALIKE = ("start", "compute")
"""Terms that are about the same at all islands."""


class Assessment(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result for one candidate: `rejected` with the reason, or its estimate in seconds."""

    island: str
    name: str
    verdict: str
    """`chosen`, `considered` or `rejected`."""
    reason: str
    terms: tuple[CostTerm, ...] = ()
    seconds: float | None = None


class RoutingDecision(msgspec.Struct, frozen=True):
    """The chosen island, the inputs of the decision, and the assessment of each candidate."""

    wanted: JobRequirements
    candidates: tuple[Candidate, ...]
    chosen: str
    """Key of the chosen island, or "" if no island can run the job."""
    why: str
    verdicts: tuple[Assessment, ...]


def reject(wanted: JobRequirements, candidate: Candidate) -> str:
    """The first reason why an island cannot run the job, or ""."""
    if wanted.pin and candidate.island != wanted.pin:
        return "you asked for another island (--at, or the queue)"
    if not candidate.up:
        return candidate.state or "it cannot be reached"
    if candidate.refusal:
        return candidate.refusal
    if candidate.languages is not None and not candidate.languages:
        return "it has no Spark engine"
    if candidate.languages is not None and wanted.language not in candidate.languages:
        return f"its engine does not run '{wanted.language}' (it runs {', '.join(candidate.languages)})"
    return ""


def estimate(wanted: JobRequirements, candidate: Candidate) -> tuple[CostTerm, ...]:
    """The terms of the estimated time, in seconds, of running the job at an island."""
    at_home = candidate.island == wanted.home
    missing = [part for part in candidate.parts if part.missing > 0]
    rtt = 0.0 if at_home else _or(candidate.rtt, ASSUMED_RTT)
    start = candidate.start or Expectation(START_S)
    compute = candidate.compute or Expectation(COMPUTE_S)
    output = (candidate.output or Expectation(OUTPUT_BYTES)).value
    terms = [
        CostTerm("wait", candidate.wait, "a place is free" if candidate.wait == 0 else "places are taken"),
        CostTerm("start", start.value, _expected(start)),
        CostTerm(
            "transfer", sum(p.missing / _or(p.bandwidth, ASSUMED_BANDWIDTH) for p in missing), _transfer(candidate)
        ),
        CostTerm("preparing", FETCH_S * len(missing), _preparing(missing)),
        CostTerm("round trips", sum(p.files * _or(p.rtt, ASSUMED_RTT) for p in missing), _trips(missing)),
        CostTerm(
            "control", EXCHANGES * rtt, "this is home" if at_home else f"{EXCHANGES} × {_rtt(candidate.rtt)} from home"
        ),
        CostTerm("compute", compute.value, _expected(compute)),
        CostTerm(
            "output",
            0.0 if at_home else output / _or(candidate.bandwidth, ASSUMED_BANDWIDTH),
            "stays at home" if at_home else f"{format_bytes(round(output))} at {_bandwidth(candidate.bandwidth)}",
        ),
    ]
    return tuple(terms)


def shortlist(
    home: IslandId, pin: str, holders: Sequence[IslandId], linked: Sequence[tuple[IslandId, float | None]]
) -> list[IslandId]:
    """The islands that a decision considers, at most `RANKED`: home, the pinned one, holders and neighbours.

    `holders`: islands that have an input completely. `linked`: the islands with a session, with their round-trip
    times in seconds. Linked holders come before other linked islands, near ones before far ones; holders without a
    session come last, so that the explanation can say why they were not chosen.
    """
    has = set(holders)
    near = heapq.nsmallest(RANKED, [(rtt or ASSUMED_RTT, island) for island, rtt in linked])
    near_holders = sorted((rtt or ASSUMED_RTT, island) for island, rtt in linked if island in has)
    order = [
        home,
        *([IslandId(pin)] if pin else []),
        *(island for _, island in near_holders),
        *(island for _, island in near),
        *sorted(has),
    ]
    return list(dict.fromkeys(order))[:RANKED]


def decide(wanted: JobRequirements, candidates: Sequence[Candidate]) -> RoutingDecision:
    """Choose the island with the smallest estimate. Home is preferred; between equal estimates the draw decides."""
    costs: dict[str, tuple[tuple[CostTerm, ...], float]] = {}
    reasons: dict[str, str] = {}
    for candidate in candidates:
        if reason := reject(wanted, candidate):
            reasons[candidate.island] = reason
        else:
            terms = estimate(wanted, candidate)
            costs[candidate.island] = (terms, sum(term.seconds for term in terms))
    # After the first offers, only islands that offered a place can be chosen.
    offered = {c.island for c in candidates if c.offered and c.island in costs}
    choosable = {island: seconds for island, (_, seconds) in costs.items() if not offered or island in offered}
    moving = {i: seconds - sum(t.seconds for t in costs[i][0] if t.what in ALIKE) for i, seconds in choosable.items()}
    chosen, why = _choose(wanted, candidates, choosable, moving)
    verdicts = []
    for candidate in candidates:
        if candidate.island in reasons:
            verdicts.append(Assessment(candidate.island, candidate.name, "rejected", reasons[candidate.island]))
            continue
        terms, seconds = costs[candidate.island]
        verdict, reason = "considered", _behind(terms, seconds, costs[chosen])
        if candidate.island == chosen:
            verdict, reason = "chosen", why
        elif candidate.island not in choosable:
            reason = (
                f"{format_seconds(seconds)}, estimated by home; not asked for an offer, others had better estimates"
            )
        verdicts.append(Assessment(candidate.island, candidate.name, verdict, reason, terms, seconds))
    order = {"chosen": 0, "considered": 1, "rejected": 2}
    verdicts.sort(key=lambda v: (order[v.verdict], v.seconds or 0.0, v.name, v.island))
    return RoutingDecision(wanted, tuple(candidates), chosen, why, tuple(verdicts))


def ranking(decision: RoutingDecision) -> list[str]:
    """Keys of the islands that can run the job, best first."""
    return [v.island for v in decision.verdicts if v.verdict != "rejected"]


def prediction(decision: RoutingDecision) -> JobPrediction:
    """What a decision expects of the job at the chosen island. Raises `StopIteration` if it chose none."""
    chosen = next(verdict for verdict in decision.verdicts if verdict.island == decision.chosen)
    candidate = next(each for each in decision.candidates if each.island == decision.chosen)
    seconds = {term.what: term.seconds for term in chosen.terms}
    return JobPrediction(
        wait_s=seconds.get("wait", 0.0),
        fetch_s=sum(seconds.get(what, 0.0) for what in FETCHING),
        start_s=seconds.get("start", 0.0),
        compute_s=seconds.get("compute", 0.0),
        output_bytes=(candidate.output or Expectation(OUTPUT_BYTES)).value,
    )


def _choose(
    wanted: JobRequirements, candidates: Sequence[Candidate], seconds: dict[str, float], moving: dict[str, float]
) -> tuple[str, str]:
    if not seconds:
        return "", "no island can run this job"
    best = min(seconds.values())
    margin = max(min(moving.values()) * (HOME_FACTOR - 1.0), HOME_SECONDS)
    noise = NOISE * min(seconds[island] - moving[island] for island in seconds if seconds[island] == best)
    if wanted.home in seconds:
        at_home = seconds[wanted.home]
        if at_home <= best + TIE:
            return wanted.home, f"your own island is the fastest place: {format_seconds(at_home)}"
        if at_home <= best + margin:
            return (
                wanted.home,
                f"home, {format_seconds(at_home)}, is nearly as good as the best, {format_seconds(best)}",
            )
    # What starting and computing take is known within `NOISE` at best, so it does not outweigh what has to be moved.
    as_good = {island for island, value in seconds.items() if value <= best + max(TIE, noise)}
    least = min(moving[island] for island in as_good)
    equals = [c for c in candidates if c.island in as_good and moving[c.island] <= least + TIE]
    winner = min(equals, key=lambda c: (c.draw, c.island))
    found = format_seconds(seconds[winner.island])
    if len(seconds) == 1:
        return winner.island, f"the only place that can run it: {found}"
    if len(equals) > 1:
        return winner.island, f"chosen at random among {len(equals)} equal places: {found}"
    if seconds[winner.island] > best + TIE:
        return winner.island, f"{found}, as fast as the best within the accuracy of estimates, and the least to move"
    return winner.island, f"the fastest place: {found}"


def _behind(terms: tuple[CostTerm, ...], seconds: float, best: tuple[tuple[CostTerm, ...], float]) -> str:
    gaps = [(own.seconds - other.seconds, own) for own, other in zip(terms, best[0], strict=True)]
    gap, term = max(gaps, key=lambda pair: pair[0])
    if gap <= 0 or seconds <= best[1]:
        return f"{format_seconds(seconds)}: no better than the chosen place"
    return f"{format_seconds(seconds)}: most of the difference is {term.what}: {term.why}"


def _transfer(candidate: Candidate) -> str:
    if not candidate.parts:
        return "the job has no inputs"
    total = sum(part.bytes for part in candidate.parts)
    missing = [part for part in candidate.parts if part.missing > 0]
    if not missing:
        return f"all {format_bytes(total)} of input are already there"
    return "; ".join(
        f"{format_bytes(p.missing)} of {format_bytes(p.bytes)} of {p.dataset} are missing,"
        f" from {p.source or 'a holder'} at {_bandwidth(p.bandwidth)}"
        for p in missing
    )


def _trips(missing: list[InputTransfer]) -> str:
    if not missing:
        return "no file has to be fetched"
    return "; ".join(f"{part.files} files × {_rtt(part.rtt)}" for part in missing)


def _preparing(missing: list[InputTransfer]) -> str:
    if not missing:
        return "nothing has to be fetched"
    return f"{len(missing)} {'input' if len(missing) == 1 else 'inputs'} × {FETCH_S:g} s: manifest, hashes, disk"


def _expected(found: Expectation) -> str:
    if not found.observed:
        return f"{format_seconds(found.value)}, not observed at this island yet"
    jobs = "1 job" if found.observed == 1 else f"{found.observed} jobs"
    return f"{format_seconds(found.value)}, from {jobs} at this island"


def _or(value: float | None, assumed: float) -> float:
    return value if value is not None and value > 0 else assumed


def _rtt(value: float | None) -> str:
    return f"{value * 1000:.1f} ms" if value else f"{ASSUMED_RTT * 1000:.0f} ms (assumed, not measured yet)"


def _bandwidth(value: float | None) -> str:
    return f"{format_bytes(value)}/s" if value else f"{format_bytes(ASSUMED_BANDWIDTH)}/s (assumed, not measured yet)"


def format_seconds(seconds: float) -> str:
    """Format a duration: `0.35 s`, `12 s`, `3 min`."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
