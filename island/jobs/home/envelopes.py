"""The envelopes in which home sends a job, signed for other islands."""

from __future__ import annotations

import msgspec

from island.jobs.home.machine import JobFacts
from island.jobs.messages import MAX_HOPS, Envelope
from island.kernel import codec
from island.trust.service import Trust


def envelope(trust: Trust, job: JobFacts, epoch: int, to: str) -> Envelope:
    """The envelope of a request for an offer or of a commit under an epoch."""
    plain = Envelope(
        job=job.id,
        epoch=epoch,
        home=trust.me,
        user=job.user,
        request_hash=job.request_hash,
        path=(trust.me,),
        hops=MAX_HOPS - 1,
    )
    if to == trust.me:
        return plain
    signature = trust.sign("on-behalf", codec.encode(plain.on_behalf()))
    return msgspec.structs.replace(plain, signature=signature)
