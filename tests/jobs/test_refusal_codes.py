"""Refusals of an executor have codes, by which homes decide; and each failure of an engine has its meaning."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import msgspec
import pytest

from island.errors import Denied, EngineFailed, Unreachable
from island.jobs.engines.port import EngineFull, EngineLost, EngineRefused
from island.jobs.executor.events import FailureKind
from island.jobs.executor.performer import failure_kind
from island.jobs.messages import (
    FULL,
    INVALID_JOB,
    NO_ENGINE,
    NO_INPUT,
    POLICY,
    RESERVATION_EXPIRED,
    RESERVATION_S,
    STOPPED,
    UNSUPPORTED_KIND,
    CommitAnswer,
    CommitRequest,
    Envelope,
    InputRef,
    JobSpec,
    Offer,
    OfferRequest,
    StopRequest,
)
from island.kernel import codec
from island.kernel.ids import IslandId
from island.livy.client import ANSWERED
from tests.sim.archipelago import Archipelago, SimIsland, simulate
from tests.sim.jobs import OPEN, PlayedEngine, World
from tests.standins.faults import failed_write

UUID = "01890a5d-ac96-774b-bcce-b30209{:06x}"
SESSION = JobSpec(kind="session", language="pyspark")


def envelope(home: SimIsland, number: int = 1, **changes: Any) -> Envelope:
    """The signed envelope of a job of `home`."""
    assert home.trust is not None
    made = Envelope(
        job=f"{UUID.format(number)}.{home.id[:10]}",
        epoch=1,
        home=home.id,
        user="ann",
        request_hash="c" * 64,
        path=(home.id,),
    )
    made = msgspec.structs.replace(made, **changes)
    return msgspec.structs.replace(made, signature=home.trust.sign("on-behalf", codec.encode(made.on_behalf())))


async def offered(world: World, home: SimIsland, head: Envelope, **changes: Any) -> Offer:
    request = OfferRequest(envelope=head, kind="session", language="pyspark")
    return await world.jobs["there"].executor.offer(home.id, msgspec.structs.replace(request, **changes))


async def committed(
    world: World, home: SimIsland, head: Envelope, reservation: str, work: JobSpec = SESSION
) -> CommitAnswer:
    request = CommitRequest(envelope=head, reservation=reservation, work=work)
    return await world.jobs["there"].executor.commit(home.id, request)


async def two(a: Archipelago, engine: PlayedEngine | None, jobs: dict[str, Any]) -> tuple[World, SimIsland]:
    world = World(a)
    home = await world.island("home")
    await world.island("there", engine=engine, jobs=jobs)
    await world.linked()
    return world, home


UNKNOWN = InputRef(owner="a" * 64, owner_name="x", name="x", snapshot="a" * 64, views=("x",))


@pytest.mark.parametrize(
    ("engine", "jobs", "changes", "code"),
    [
        (PlayedEngine(), {}, {}, POLICY),
        (None, OPEN, {}, NO_ENGINE),
        (PlayedEngine(), OPEN, {"language": "sparkr"}, UNSUPPORTED_KIND),
        (PlayedEngine(), OPEN, {"inputs": (UNKNOWN,)}, NO_INPUT),
        (PlayedEngine(), OPEN, {}, ""),
    ],
    ids=["policy", "no engine", "kind", "input", "offered"],
)
def test_a_refused_offer_has_a_code(
    engine: PlayedEngine | None, jobs: dict[str, Any], changes: dict[str, Any], code: str
) -> None:
    async def scenario(a: Archipelago) -> None:
        world, home = await two(a, engine, jobs)
        offer = await offered(world, home, envelope(home), **changes)
        assert (offer.code, bool(offer.refusal), bool(offer.reservation)) == (code, bool(code), not code)

    simulate(1, scenario)


def test_a_refused_commit_has_a_code() -> None:
    async def scenario(a: Archipelago) -> None:
        world, home = await two(a, PlayedEngine(), {**OPEN, "max_foreign": 1})
        heads = [envelope(home, number) for number in range(6)]
        # Offers that are made at the same time do not count each other.
        places = [offer.reservation for offer in await asyncio.gather(*(offered(world, home, head) for head in heads))]
        assert (await committed(world, home, heads[0], places[0])).accepted
        assert (await committed(world, home, heads[0], places[0])).accepted, "a repetition has the same answer"
        assert (await committed(world, home, heads[1], places[1])).code == FULL
        assert (await offered(world, home, envelope(home, 7))).code == FULL
        many = msgspec.structs.replace(SESSION, resources={"driverCores": "many"})
        answer = await committed(world, home, heads[2], places[2], many)
        assert answer.code == INVALID_JOB and "driverCores = 'many' is not a whole number" in answer.reason
        unsigned = msgspec.structs.replace(heads[3], signature=b"")
        assert (await committed(world, home, unsigned, places[3])).code == INVALID_JOB
        await world.jobs["there"].executor.stop(home.id, StopRequest(job=heads[4].job, epoch=1))
        assert (await committed(world, home, heads[4], places[4])).code == STOPPED
        await a.until(lambda: a.loop.time() > RESERVATION_S + 60, within=200)
        assert (await committed(world, home, heads[5], places[5])).code == RESERVATION_EXPIRED

    simulate(2, scenario)


def test_an_island_whose_places_are_all_reserved_is_full() -> None:
    async def scenario(a: Archipelago) -> None:
        world, home = await two(a, PlayedEngine(), {**OPEN, "max_foreign": 2})
        first, second, third = (envelope(home, number) for number in range(3))
        declined = (await offered(world, home, first)).reservation
        assert (await offered(world, home, second)).reservation
        assert (await offered(world, home, third)).code == FULL
        assert (await offered(world, home, second)).reservation, "a job replaces its own reservation"
        world.jobs["there"].executor.decline(IslandId(home.id), declined)
        assert (await offered(world, home, third)).reservation

    simulate(4, scenario)


def test_a_home_that_has_reserved_too_many_places_is_refused_for_now() -> None:
    async def scenario(a: Archipelago) -> None:
        world, home = await two(a, PlayedEngine(), {**OPEN, "max_foreign": 1000})
        world.engines["there"].capacity = 1000  # type: ignore[union-attr]  # `two` was given this engine
        offers = [await offered(world, home, envelope(home, number)) for number in range(201)]
        assert all(offer.reservation for offer in offers[:200])
        assert offers[200].code == FULL and "too many places are reserved" in offers[200].refusal

    simulate(5, scenario)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EngineLost("gone"), FailureKind.LOST),
        (EngineFull("too many sessions"), FailureKind.FULL),
        (EngineRefused("no REPL"), FailureKind.REFUSED),
        (msgspec.ValidationError("Expected `int`, got `str`"), FailureKind.REFUSED),
        (EngineFailed("connection refused", code="engine_unreachable"), FailureKind.UNREACHABLE),
        (EngineFailed("the engine is starting", code="no_engine"), FailureKind.UNREACHABLE),
        (EngineFailed("Livy answered 500", code=ANSWERED), FailureKind.ERROR),
        (EngineFailed("connection reset"), FailureKind.SILENT),
        (Denied("wrong password"), FailureKind.ERROR),
        (Unreachable("far is down"), FailureKind.ERROR),
        (failed_write(), FailureKind.DATABASE),
        (OSError(errno.EIO, "Input/output error"), FailureKind.DISK),
        (ValueError("odd"), FailureKind.BUG),
    ],
)
def test_each_failure_has_one_meaning(error: Exception, kind: FailureKind) -> None:
    assert failure_kind(error) is kind


def test_an_engine_that_is_starting_counts_as_free_unless_another_one_answers() -> None:
    async def scenario(a: Archipelago) -> None:
        world, first, second = World(a), PlayedEngine(), PlayedEngine()
        first.name, second.name, first.up = "first", "second", False
        home = await world.island("home")
        await world.island("there", engine=first, jobs=OPEN, max_sessions=1)
        await world.linked()
        assert (await offered(world, home, envelope(home, 1))).wait == 0
        assert (await offered(world, home, envelope(home, 2))).wait > 0, "one place is reserved"
        world.further_engines["there"] = [second]
        await a.crash(a.islands[1])
        await a.restart(a.islands[1])
        await world.linked()
        assert (await offered(world, home, envelope(home, 3))).wait == 0
        assert (await offered(world, home, envelope(home, 4))).wait > 0, "only one of the two engines answers"

    simulate(3, scenario)
