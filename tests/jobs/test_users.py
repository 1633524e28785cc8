"""Users across islands: whoever submits travels with the job, and is what the executor's policy and journal see."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from island.config import JobsSection
from island.jobs.executor import policy
from island.jobs.executor.service import JobRefusal
from island.jobs.messages import CommitRequest
from island.kernel import codec
from island.livy.messages import SessionRequest
from island.trust import journal
from island.trust.signing import verify
from island.trust.users import Principal
from tests.jobs.test_core import HOME, ME, envelope
from tests.sim.archipelago import Archipelago, SimIsland, simulate
from tests.sim.jobs import ADMINISTRATOR, OPEN, PlayedEngine, World

ALICE, BOB = Principal("user", "alice"), Principal("user", "bob")
LIVY = "http://livy.example.org:8998"


@pytest.mark.parametrize(
    ("entries", "user", "accepted"),
    [
        (["virgo"], "alice", True),
        (["virgo"], None, True),
        (["members"], "alice", True),
        (["virgo:alice"], "alice", True),
        (["virgo:alice"], None, True),
        (["virgo:alice"], "bob", False),
        (["virgo:alice"], "", False),
        (["virgo:alice"], "alic", False),
        (["virgo:alice", "virgo:bob"], "bob", True),
        (["lick", "lick:alice"], "alice", False),
        ([], None, False),
    ],
)
def test_who_is_accepted(entries: list[str], user: str | None, accepted: bool) -> None:
    section = JobsSection(accept_from=entries, foreign_code="any", same_user=True)
    refusal = policy.policy_refusal(section, "virgo", user, is_home=False, means=lambda text: text == "virgo")
    assert (refusal == "") == accepted
    if not accepted:
        assert "jobs.accept_from" in refusal and (user or "virgo") in refusal


@pytest.mark.parametrize("user", ["", "a b", "eve\nadministrator@lick", "eve@lick", "virgo:alice", "é", "a" * 65])
def test_a_user_whose_name_could_be_mistaken_is_refused(user: str) -> None:
    assert "name of its user" in policy.envelope_problem(envelope(user=user), HOME, ME)


ACCOUNTS = {"alice": "aliceunix", "virgo:alice": "guest1", "lick:bob": "bobunix"}


@pytest.mark.parametrize(
    ("user", "home", "account"),
    [
        ("alice", "lick", "aliceunix"),
        ("bob", "lick", "bobunix"),
        ("carol", "lick", None),
        ("alice", "virgo", "guest1"),
        ("bob", "virgo", None),
        ("virgo:alice", "lick", None),
    ],
)
def test_the_account_of_a_user(user: str, home: str, account: str | None) -> None:
    """At lick, the name of a user alone means a user of lick."""
    found = policy.account_of(ACCOUNTS, user, is_home=home == "lick", means=lambda text: text == home)
    assert found == account


async def _two(a: Archipelago, entries: list[str], **more: Any) -> tuple[World, SimIsland, SimIsland, PlayedEngine]:
    world, engine = World(a), PlayedEngine("")
    virgo = await world.island("virgo")
    lick = await world.island("lick", engine=engine, jobs={**OPEN, "accept_from": entries, **more}, url=LIVY)
    await world.linked()
    return world, virgo, lick, engine


def test_one_user_of_another_island_is_accepted_and_the_others_are_not() -> None:
    async def scenario(a: Archipelago) -> None:
        world, virgo, lick, engine = await _two(a, ["virgo:alice"])
        job = await world.settled(virgo, await world.open(virgo, who=ALICE))
        assert job.state == "idle" and "did it" in (await world.run(virgo, job, "it")).output
        refused = await world.ended(virgo, await world.open(virgo, who=BOB))
        [row] = [r for r in await world.jobs["virgo"].explain(refused) if r["island"] == "lick"]
        assert "jobs.accept_from" in row["reason"] and "bob" in row["reason"]
        assert len(engine.created) == 1
        # The executor's journal and listing have the user; the home has signed it.
        rows = await lick.state.read(journal.entries)
        assert {row.who for row in rows if row.act == "job.run"} == {"alice@virgo"}
        assert [r["owner"] for r in await world.jobs["lick"].listing(ADMINISTRATOR, 10)] == ["alice@virgo"]
        assert await world.jobs["lick"].listing(ALICE, 10) == [], "alice of lick is another person"

    simulate(1, scenario)


def test_the_home_signs_who_submits() -> None:
    async def scenario(a: Archipelago) -> None:
        world, virgo, lick, _ = await _two(a, ["virgo:alice"])
        sent: list[CommitRequest] = []
        executor = world.jobs["lick"].executor
        commit = executor._commit_refusal

        def watched(sender: Any, request: CommitRequest) -> JobRefusal | None:
            sent.append(request)
            return commit(sender, request)

        executor._commit_refusal = watched  # type: ignore[method-assign]  # only looks at what arrives
        await world.settled(virgo, await world.open(virgo, who=ALICE))
        head = sent[0].envelope
        assert head.user == "alice" and lick.trust is not None and (network := lick.trust.network) is not None
        assert verify(virgo.id, "on-behalf", network, codec.encode(head.on_behalf()), head.signature)
        other = msgspec.structs.replace(head, user="bob")
        assert not verify(virgo.id, "on-behalf", network, codec.encode(other.on_behalf()), head.signature)
        forged = msgspec.structs.replace(sent[0], envelope=msgspec.structs.replace(head, request_hash="d" * 64))
        refused = commit(virgo.id, forged)
        assert refused is not None and "signature" in refused.reason

    simulate(2, scenario)


def test_a_user_who_is_no_longer_accepted_loses_her_run_and_another_keeps_his() -> None:
    async def scenario(a: Archipelago) -> None:
        world, virgo, lick, engine = await _two(a, ["virgo"])
        hers = await world.settled(virgo, await world.open(virgo, who=ALICE))
        his = await world.settled(virgo, await world.open(virgo, who=BOB))
        await world.a.crash(lick)
        world.configs["lick"]["jobs"]["accept_from"] = ["virgo:bob"]
        await world.a.restart(lick)
        ended = await world.ended(virgo, hers)
        assert ended.state == "killed" and "jobs.accept_from" in ended.reason and "alice" in ended.reason
        assert "did it" in (await world.run(virgo, his, "it")).output
        await a.until(lambda: len(engine.alive()) == 1, within=30)

    simulate(3, scenario)


def test_proxy_user_comes_from_the_map_and_never_from_a_client() -> None:
    async def scenario(a: Archipelago) -> None:
        accounts = {"alice": "aliceunix", "virgo:alice": "guest1"}
        world, virgo, lick, engine = await _two(a, ["virgo"], accounts=accounts, max_foreign=4)
        for home, who in ((lick, ALICE), (virgo, ALICE), (lick, BOB), (virgo, BOB)):
            request = SessionRequest(kind="sql", proxy_user="root", queue="island:lick")
            job = await world.jobs[home.name].open_session(who, request)
            assert (await world.settled(home, job)).state == "idle"
            assert "root" not in json.dumps(job.request)
        bodies = [session.body for session in engine.jobs.values()]
        assert [body.get("proxyUser") for body in bodies] == ["aliceunix", "guest1", None, None]

    simulate(4, scenario)


def test_the_embedded_engine_gets_no_proxy_user() -> None:
    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), PlayedEngine()
        home = await world.island("home", engine=engine, jobs={"accounts": {"alice": "aliceunix"}})
        await world.settled(home, await world.open(home, who=ALICE))
        assert ["proxyUser" in session.body for session in engine.jobs.values()] == [False]

    simulate(5, scenario)
