"""The router: filters with reasons, and estimates in which each term can change the choice."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from island.jobs import router
from island.jobs.cost_model import Expectation
from island.jobs.router import (
    Candidate,
    InputTransfer,
    JobRequirements,
    RoutingDecision,
    decide,
    estimate,
    ranking,
    reject,
)
from island.kernel.ids import IslandId

HOME, NEAR, FAR = "a" * 64, "b" * 64, "c" * 64
WANTED = JobRequirements(home=HOME, language="pyspark")
ALL = ("batch", "pyspark", "sql")


def candidate(island: str, *, missing: int = 0, **more: Any) -> Candidate:
    part = InputTransfer("big/stars", 1_000_000_000, missing, 10, "big" if missing else "", 0.01, 50e6)
    given: dict[str, Any] = {"rtt": 0.0 if island == HOME else 0.02, "bandwidth": 50e6, "languages": ALL, **more}
    return Candidate(island=island, name=island[0], parts=(part,), offered=True, **given)


def chosen(*candidates: Candidate, wanted: JobRequirements = WANTED) -> str:
    return decide(wanted, candidates).chosen


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"up": False, "state": "it is down, for 3 min"}, "down, for 3 min"),
        ({"refusal": "jobs.foreign_code is none"}, "jobs.foreign_code"),
        ({"languages": ()}, "no Spark engine"),
        ({"languages": ("sql",)}, "does not run 'pyspark' (it runs sql)"),
    ],
)
def test_each_filter_rejects_with_its_reason(change: dict[str, Any], reason: str) -> None:
    bad = candidate(NEAR, **change)
    assert reason in reject(WANTED, bad)
    decision = decide(WANTED, [bad, candidate(FAR)])
    assert decision.chosen == FAR
    assert next(v for v in decision.verdicts if v.island == NEAR).verdict == "rejected"
    nobody = decide(WANTED, [bad])
    assert nobody.chosen == "" and nobody.verdicts[0].reason == reject(WANTED, bad) and ranking(nobody) == []


def test_a_pin_rejects_all_others() -> None:
    assert chosen(candidate(HOME), candidate(FAR), wanted=msgspec.structs.replace(WANTED, pin=FAR)) == FAR


def test_an_unknown_engine_is_not_rejected_before_it_was_asked() -> None:
    assert reject(WANTED, candidate(NEAR, languages=None)) == ""


def test_the_job_goes_to_the_data_unless_fetching_is_cheaper() -> None:
    assert chosen(candidate(HOME, missing=1_000_000_000), candidate(NEAR)) == NEAR
    assert chosen(candidate(HOME, missing=1_000), candidate(NEAR, rtt=0.2)) == HOME


# Each case differs from the base by one number, which changes the choice.
BASE = (candidate(NEAR), candidate(FAR, rtt=0.05))
FLIPS = [
    ("round trip", {"rtt": 0.9}),
    ("wait", {"wait": 60.0}),
    ("bandwidth home", {"bandwidth": 1000.0}),
    ("start", {"start": Expectation(60.0, 3)}),
    ("compute", {"compute": Expectation(60.0, 3)}),
]


@pytest.mark.parametrize(("term", "change"), FLIPS, ids=[row[0] for row in FLIPS])
def test_one_term_flips_the_choice(term: str, change: dict[str, Any]) -> None:
    near, far = BASE
    assert chosen(near, far) == NEAR
    assert chosen(msgspec.structs.replace(near, **change), far) == FAR


PART_FLIPS = [
    ("missing bytes", {"missing": 900_000_000, "source": "big"}),
    ("files and round trip to the source", {"missing": 1, "files": 1000, "source": "big"}),
]


@pytest.mark.parametrize(("term", "change"), PART_FLIPS, ids=[row[0] for row in PART_FLIPS])
def test_one_number_of_an_input_flips_the_choice(term: str, change: dict[str, Any]) -> None:
    near, far = BASE
    part = msgspec.structs.replace(near.parts[0], **change)
    assert chosen(msgspec.structs.replace(near, parts=(part,)), far) == FAR


def test_measured_bandwidth_flips_the_choice() -> None:
    """The same bytes are missing at both islands; only the bandwidth to the source differs."""
    near, far = candidate(NEAR, missing=100_000_000), candidate(FAR, missing=100_000_000, rtt=0.05)
    assert chosen(near, far) == NEAR
    slow = msgspec.structs.replace(near.parts[0], bandwidth=1e6)
    assert chosen(msgspec.structs.replace(near, parts=(slow,)), far) == FAR


def test_inputs_on_two_islands_go_to_the_cheaper_place() -> None:
    def holding(island: str, stars: int, alerts: int) -> Candidate:
        parts = (
            InputTransfer("x/stars", 9_000_000, stars, 1, "x"),
            InputTransfer("y/alerts", 800_000_000, alerts, 1, "y"),
        )
        return Candidate(island=island, name=island[0], rtt=0.02, languages=ALL, parts=parts, offered=True)

    decision = decide(WANTED, [holding(NEAR, 0, 800_000_000), holding(FAR, 9_000_000, 0)])
    assert decision.chosen == FAR
    assert "transfer" in next(v for v in decision.verdicts if v.island == NEAR).reason


def test_home_is_preferred_unless_another_island_is_clearly_better() -> None:
    assert chosen(candidate(HOME, wait=0.1), candidate(NEAR, rtt=0.001)) == HOME
    assert chosen(candidate(HOME, wait=0.3), candidate(NEAR, rtt=0.001)) == NEAR


def test_a_small_difference_in_start_does_not_move_the_data() -> None:
    holder = candidate(NEAR, start=Expectation(4.0))
    quick = candidate(FAR, missing=1_000_000, rtt=0.021, start=Expectation(3.4, 1))
    decision = decide(WANTED, [quick, holder])
    assert decision.chosen == NEAR and "the least to move" in decision.why
    assert chosen(msgspec.structs.replace(quick, start=Expectation(1.0, 9)), holder) == FAR


def test_the_draw_decides_between_equal_estimates() -> None:
    assert chosen(candidate(NEAR, draw=0.2), candidate(FAR, draw=0.7)) == NEAR
    assert chosen(candidate(NEAR, draw=0.7), candidate(FAR, draw=0.2)) == FAR


def test_only_islands_with_an_offer_are_chosen_after_the_first_offer() -> None:
    guess = msgspec.structs.replace(candidate(NEAR), offered=False)
    decision = decide(WANTED, [guess, candidate(FAR, wait=60.0)])
    assert decision.chosen == FAR
    assert "not asked" in next(v for v in decision.verdicts if v.island == NEAR).reason
    assert decide(WANTED, [guess, msgspec.structs.replace(candidate(FAR), offered=False)]).chosen == NEAR


def test_every_term_shows_its_number() -> None:
    slow = candidate(NEAR, missing=900_000_000, wait=60.0)
    terms = {term.what: term for term in estimate(WANTED, slow)}
    assert set(terms) == {"wait", "start", "transfer", "preparing", "round trips", "control", "compute", "output"}
    assert terms["transfer"].seconds == 18 and "858 MiB of 954 MiB of big/stars" in terms["transfer"].why
    assert "47.7 MiB/s" in terms["transfer"].why and "10 files × 10.0 ms" in terms["round trips"].why
    unmeasured = Candidate(island=NEAR, name="n", parts=(InputTransfer("x/y", 10, 10, 1, "x"),))
    assert "assumed, not measured yet" in estimate(WANTED, unmeasured)[2].why
    assert terms["start"].why == "5.00 s, not observed at this island yet"
    known = estimate(WANTED, candidate(NEAR, compute=Expectation(3.0, 1), output=Expectation(50e6)))
    assert [term.why for term in known if term.what == "compute"] == ["3.00 s, from 1 job at this island"]
    assert [term.seconds for term in known if term.what == "output"] == [1.0]


def test_at_most_ten_islands_are_considered_holders_first_and_near_ones_before_far_ones() -> None:
    islands = [IslandId(f"{n:064x}") for n in range(1000)]
    linked = [(island, 0.001 * (1000 - n)) for n, island in enumerate(islands[:900])]
    down = islands[950]
    found = router.shortlist(IslandId(HOME), islands[7], [down, islands[3], islands[5]], linked)
    assert found == [HOME, islands[7], islands[5], islands[3], *reversed(islands[894:900])]
    assert router.shortlist(IslandId(HOME), "", [down], linked[:2]) == [HOME, islands[1], islands[0], down]


sizes = st.integers(0, 10**12)
rates = st.none() | st.floats(1, 1e10)
parts = st.builds(
    InputTransfer, dataset=st.just("x/y"), bytes=sizes, missing=sizes, files=st.integers(0, 10**6), rtt=rates
)
candidates = st.lists(
    st.builds(
        Candidate,
        island=st.sampled_from([character * 64 for character in "abcdef0123"]),
        name=st.text(max_size=3),
        up=st.booleans(),
        rtt=rates,
        bandwidth=rates,
        wait=st.floats(0, 1e6),
        parts=st.lists(parts, max_size=3).map(tuple),
        languages=st.none() | st.just(()) | st.just(ALL),
        refusal=st.sampled_from(["", "", "no"]),
        offered=st.booleans(),
        draw=st.floats(0, 1),
    ),
    max_size=8,
    unique_by=lambda candidate: candidate.island,
)


@given(candidates)
def test_a_stored_decision_replays(found: list[Candidate]) -> None:
    decision = decide(WANTED, found)
    stored = msgspec.json.decode(msgspec.json.encode(decision), type=RoutingDecision)
    assert decide(stored.wanted, stored.candidates) == stored == decision
    assert {v.island for v in decision.verdicts} == {c.island for c in found}
    assert (decision.chosen == "") == all(reject(WANTED, c) for c in found)
    if decision.chosen:
        assert decision.verdicts[0].island == decision.chosen
        assert not reject(WANTED, next(c for c in found if c.island == decision.chosen))


def test_durations_are_formatted() -> None:
    assert [router.format_seconds(s) for s in (0.354, 12.4, 180)] == ["0.35 s", "12 s", "3 min"]
