"""A member that sends invalid requests about jobs as their home."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from island.errors import PeerRefused, Unreachable
from island.jobs.messages import (
    FULL,
    CodeCompletionRequest,
    CommitAnswer,
    CommitRequest,
    Envelope,
    InputRef,
    JobReport,
    JobSpec,
    Offer,
    OfferRequest,
    ReattachRequest,
    ReleaseRequest,
    RunStatementRequest,
    StatusRequest,
    StopRequest,
)
from island.kernel import codec
from tests.standins.member import Member, get, logged, member, packed, until, victim, well

OPEN: dict[str, dict[str, Any]] = {
    "jobs": {"accept_from": ["members"], "foreign_code": "any", "same_user": True},
    "livy": {"url": "http://127.0.0.1:9"},  # it does not answer: jobs are accepted and wait
}


def job_of(home: str, job: str = "01890a5d-ac96-774b-bcce-b302099a8057") -> str:
    return f"{job}.{home[:10]}"


def envelope(mallory: Member, job: str = "", **changes: Any) -> Envelope:
    made = Envelope(
        job=job or job_of(mallory.id), epoch=1, home=mallory.id, user="user", request_hash="c" * 64, path=(mallory.id,)
    )
    made = msgspec.structs.replace(made, **changes)
    return msgspec.structs.replace(made, signature=mallory.trust.sign("on-behalf", codec.encode(made.on_behalf())))


async def reserved(mallory: Member, head: Envelope, language: str = "batch") -> str:
    """Reserve a place for a job. Fails if it is refused."""
    asked = OfferRequest(envelope=head, kind="batch" if language == "batch" else "session", language=language)
    offer = codec.decode(await mallory.ask("job.offer", codec.encode(asked)), Offer)
    assert offer.reservation, offer.refusal
    return offer.reservation


async def committed(mallory: Member, head: Envelope, work: JobSpec, file: bytes, **changes: Any) -> CommitAnswer:
    place = await reserved(mallory, head, "batch")
    request = CommitRequest(envelope=head, reservation=place, work=work, file=file, **changes)
    return codec.decode(await mallory.ask("job.commit", codec.encode(request)), CommitAnswer)


SCRIPT = b"print(1)\n"
BATCH = JobSpec(kind="batch", language="batch", file_name="job.py", file_hash=hashlib.sha256(SCRIPT).hexdigest())
SESSION = JobSpec(kind="session", language="sql")


def ref(*views: str) -> InputRef:
    return InputRef(owner="a" * 64, owner_name="x", name="x", snapshot="a" * 64, views=views)


WORKS: dict[str, JobSpec] = {
    "a file above its folder": msgspec.structs.replace(BATCH, file_name="../../owned.py"),
    "a file elsewhere": msgspec.structs.replace(BATCH, file_name="/tmp/owned.py"),
    "a file with a NUL": msgspec.structs.replace(BATCH, file_name="x\0.py"),
    "a file that is no script": msgspec.structs.replace(BATCH, file_name="key"),
    "no file": JobSpec(kind="batch", language="batch"),
    "a user of its choice": msgspec.structs.replace(SESSION, resources={"proxyUser": "root"}),
    "another kind by resources": msgspec.structs.replace(SESSION, resources={"kind": "spark"}),
    "another file by resources": msgspec.structs.replace(BATCH, resources={"file": "/etc/passwd"}),
    "a jar by resources": msgspec.structs.replace(BATCH, resources={"className": "Evil"}),
    "cores that are no number": msgspec.structs.replace(SESSION, resources={"driverCores": "many"}),
    "no executors": msgspec.structs.replace(SESSION, resources={"numExecutors": 0}),
    "more memory than there is": msgspec.structs.replace(SESSION, resources={"executorMemory": "99999t"}),
    "a number for memory": msgspec.structs.replace(SESSION, resources={"driverMemory": 1}),
    "an endless time": msgspec.structs.replace(SESSION, resources={"ttl": "forever"}),
    "Java's options": msgspec.structs.replace(SESSION, conf={"spark.driver.extraJavaOptions": "-javaagent:x"}),
    "Python's files": msgspec.structs.replace(SESSION, conf={"spark.submit.pyFiles": "/x.py"}),
    "Hadoop's file systems": msgspec.structs.replace(SESSION, conf={"spark.hadoop.fs.defaultFS": "file:///"}),
    "another's path": msgspec.structs.replace(SESSION, conf={"spark.island.path.x": "/etc"}),
    "a class by conf": msgspec.structs.replace(SESSION, conf={"spark.sql.adaptive.customCostEvaluatorClass": "Evil"}),
    "a setting of two lines": msgspec.structs.replace(SESSION, conf={"spark.app.name": "x\nspark.jars=/evil.jar"}),
    "SQL in the name of a view": msgspec.structs.replace(SESSION, inputs=(ref("x` AS SELECT 1; DROP TABLE y --"),)),
    "no view": msgspec.structs.replace(SESSION, inputs=(ref(),)),
    "a view of no name": msgspec.structs.replace(SESSION, inputs=(ref("x", ""),)),
    "a file for a session": msgspec.structs.replace(BATCH, kind="session", language="sql"),
    "another language than was offered": msgspec.structs.replace(SESSION, language="brainfuck"),
}


async def test_work_that_no_honest_home_sends_is_refused(tmp_path: Path) -> None:
    with logged():
        async with victim(tmp_path, OPEN) as daemon, member(daemon, tmp_path) as mallory:
            for what, work in WORKS.items():
                head, file = envelope(mallory), SCRIPT if work.file_hash else b""
                place = daemon.jobs.executor._reserve(head.job, mallory.id).id
                request = CommitRequest(envelope=head, reservation=place, work=work, file=file)
                answer = codec.decode(await mallory.ask("job.commit", codec.encode(request)), CommitAnswer)
                assert not answer.accepted and answer.reason and "expired" not in answer.reason, what
            assert not await get(daemon, "/api/v1/jobs")
    assert not list(tmp_path.rglob("owned*"))


@pytest.mark.parametrize(
    "job",
    [
        "/tmp/owned/aaaaaaaaaaaaaaaaaaaaaaaaa.{}",
        "01890a5d-ac96-774b-bcce-b30209/../../x.{}",
        "01890a5d-ac96-774b-bcce-b302099a8057\n.{}",
        "01890a5d-ac96-774b-bcce-b302099a8057.0123456789",
    ],
)
async def test_an_id_of_another_home_is_refused(tmp_path: Path, job: str) -> None:
    async with victim(tmp_path, OPEN) as daemon, member(daemon, tmp_path) as mallory:
        head = envelope(mallory, job.format(mallory.id[:10]))
        asked = OfferRequest(envelope=head, kind="batch", language="batch")
        offer = codec.decode(await mallory.ask("job.offer", codec.encode(asked)), Offer)
        assert not offer.reservation and "does not belong to that home" in offer.refusal
        with pytest.raises(PeerRefused):
            await mallory.ask("job.stop", codec.encode(StopRequest(job=head.job, epoch=1)))


async def test_a_user_whose_name_names_another_island_is_refused(tmp_path: Path) -> None:
    """`administrator@victim` as a user would be `administrator@victim@mallory` in the journal."""
    async with victim(tmp_path, OPEN) as daemon, member(daemon, tmp_path) as mallory:
        for user in ("administrator@victim", "eve\nadministrator", ""):
            asked = OfferRequest(envelope=envelope(mallory, user=user), kind="batch", language="batch")
            offer = codec.decode(await mallory.ask("job.offer", codec.encode(asked)), Offer)
            assert not offer.reservation and "name of its user" in offer.refusal
            answer = CommitRequest(envelope=asked.envelope, reservation="x", work=BATCH, file=SCRIPT)
            told = codec.decode(await mallory.ask("job.commit", codec.encode(answer)), CommitAnswer)
            assert not told.accepted and "name of its user" in told.reason
        assert not await get(daemon, "/api/v1/jobs")


@pytest.mark.parametrize("lease", [math.inf, math.nan, -1.0, 1e9])
async def test_a_lease_without_limit_ends_the_peer_session(tmp_path: Path, lease: float) -> None:
    with logged() as logs:
        async with victim(tmp_path, OPEN) as daemon, member(daemon, tmp_path) as mallory:
            with pytest.raises((PeerRefused, Unreachable)):
                await committed(mallory, envelope(mallory), SESSION, b"", lease=lease)
            await until(lambda: bool(logs.of("peer.misbehaved")))
    assert logs.of("peer.misbehaved")[0]["key"] == mallory.id


async def test_only_the_home_of_a_job_may_send_requests_about_it(tmp_path: Path) -> None:
    with logged():
        async with (
            victim(tmp_path, OPEN) as daemon,
            member(daemon, tmp_path, "home") as home,
            member(daemon, tmp_path) as mallory,
        ):
            job = job_of(home.id)
            # The member knows the id before the executor does, and tries to have the job refused there.
            with pytest.raises(PeerRefused, match="only its home"):
                await mallory.ask("job.stop", codec.encode(StopRequest(job=job, epoch=1)))
            assert (await committed(home, envelope(home), SESSION, b"")).accepted
            for kind, request in {
                "stop": StopRequest(job=job, epoch=1),
                "status": StatusRequest(job=job, epoch=1),
                "statement": RunStatementRequest(job=job, epoch=1, number=0, code="SELECT 1"),
                "release": ReleaseRequest(job=job, epoch=1),
                "complete": CodeCompletionRequest(job=job, epoch=1, code="x"),
                "reattach": ReattachRequest(job=job, key="0" * 32, what="statements"),
                "commit": CommitRequest(envelope=envelope(home), reservation="", work=SESSION),
            }.items():
                with pytest.raises(PeerRefused):
                    answer = codec.decode(await mallory.ask(f"job.{kind}", codec.encode(request)), CommitAnswer)
                    if not answer.accepted:
                        raise PeerRefused(answer.reason)
            report = codec.decode(
                await home.ask("job.status", codec.encode(StatusRequest(job=job, epoch=1))), JobReport
            )
            assert not report.ended
            await well(daemon)


@pytest.mark.parametrize(
    "jobs",
    [
        {"accept_from": ["members"], "foreign_code": "any"},
        {"accept_from": ["members"], "same_user": True},
        {"accept_from": ["somebody"], "foreign_code": "any", "same_user": True},
        {},
    ],
)
async def test_refused_requests_leave_no_rows(tmp_path: Path, jobs: dict[str, Any]) -> None:
    async with victim(tmp_path, {"jobs": jobs}) as daemon, member(daemon, tmp_path) as mallory:
        head = envelope(mallory)
        asked = OfferRequest(envelope=head, kind="batch", language="batch")
        assert codec.decode(await mallory.ask("job.offer", codec.encode(asked)), Offer).refusal
        request = CommitRequest(envelope=head, reservation="x", work=BATCH, file=SCRIPT)
        assert not codec.decode(await mallory.ask("job.commit", codec.encode(request)), CommitAnswer).accepted
        for epoch in range(200):
            await mallory.ask("job.stop", codec.encode(StopRequest(job=head.job, epoch=epoch)))
        assert await daemon.state.read(lambda conn: conn.execute("SELECT count(*) FROM run").fetchone()[0]) == 0
        # A member cannot get access by taking an unused name: the policy compares keys.
        await mallory.told(("island/self", packed(name="mallory")))
        assert codec.decode(await mallory.ask("job.offer", codec.encode(asked)), Offer).refusal


async def test_reservations_of_one_home_are_limited(tmp_path: Path) -> None:
    async with (
        victim(tmp_path, OPEN) as daemon,
        member(daemon, tmp_path, "honest") as honest,
        member(daemon, tmp_path) as mallory,
    ):
        for number in range(200):
            daemon.jobs.executor._reserve(f"job {number}", mallory.id)
        asked = OfferRequest(envelope=envelope(mallory), kind="session", language="sql")
        assert codec.decode(await mallory.ask("job.offer", codec.encode(asked)), Offer).code == FULL
        assert await reserved(honest, envelope(honest))
