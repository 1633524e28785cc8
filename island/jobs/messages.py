"""What islands say to each other about jobs, and what is kept of a job on disk.

`protocols/jobs-v1.md` is the specification. Requests travel on the control session when
they fit, and through a bulk stream of kind `job` when they do not; both carry the same
bytes. Every request may be repeated: the answer is the same and nothing happens twice.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from island.kernel.codec import Message

MAX_CODE = 1024 * 1024
"""Bytes of one statement's code."""

MAX_FILE = 1024 * 1024
"""Bytes of a batch's file that travels with its commit."""

MAX_OUTPUT = 2 * 1024 * 1024
"""Bytes of one statement's output as JSON; what is longer is cut with a notice."""

MAX_MESSAGE = 4 * 1024 * 1024
"""Bytes of the largest request or answer about jobs, through a bulk stream."""

MAX_SHORT_MESSAGE = 512 * 1024
"""Bytes of the largest offer, or request for one: they name inputs, and carry no code and no results."""

MAX_HOPS = 4
"""Islands that a job may pass through."""

LOG_LINES = 200
"""Lines of log that are kept of a job, as Livy does."""

RESERVATION_S = 30.0
"""Seconds that an offered place is held."""

LEASE_S = 600.0
"""Seconds after which an executor ends a job whose home is silent, unless the commit says otherwise."""

Hex = Annotated[str, Meta(max_length=64, pattern=r"^[0-9a-f]{64}\Z")]
JobId = Annotated[str, Meta(max_length=64, min_length=40)]
Short = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=4096)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]


class InputRef(Message, frozen=True, kw_only=True):
    """One input: a dataset at one snapshot, and the names of its views in the session."""

    owner: Hex
    owner_name: Short
    name: Short
    snapshot: Hex
    views: Annotated[tuple[Short, ...], Meta(max_length=4)] = ()

    def __str__(self) -> str:
        return f"{self.owner_name}/{self.name}"


class JobSpec(Message, frozen=True, kw_only=True):
    """What is to be run, as it was checked by home."""

    MAX_BYTES = MAX_MESSAGE

    kind: Annotated[str, Meta(max_length=7, pattern=r"^(session|batch)\Z")]
    language: Short = ""
    """The session's kind, `batch` for a batch."""
    inputs: Annotated[tuple[InputRef, ...], Meta(max_length=64)] = ()
    conf: Annotated[dict[Short, Text], Meta(max_length=200)] = msgspec.field(default_factory=dict)
    resources: Annotated[dict[Short, Short | int], Meta(max_length=16)] = msgspec.field(default_factory=dict)
    """Livy's `driverMemory`, `executorCores`, ... as the client gave them."""
    file_name: Short = ""
    file_hash: Annotated[str, Meta(max_length=64)] = ""
    args: Annotated[tuple[Text, ...], Meta(max_length=1000)] = ()


class OnBehalf(Message, frozen=True, kw_only=True):
    """For whom home asks: signed by home, so that an executor can show it later."""

    job: JobId
    home: Hex
    user: Short
    request_hash: Hex
    delegation: Short = ""
    """Reserved: a user's own key for this job."""


class Envelope(Message, frozen=True, kw_only=True):
    """What goes with every job that is offered or committed."""

    job: JobId
    epoch: Count
    home: Hex
    user: Short
    request_hash: Hex
    path: Annotated[tuple[Hex, ...], Meta(max_length=MAX_HOPS)]
    """The islands that the job passed through, home first; no island may be there twice."""
    hops: Annotated[int, Meta(ge=0, le=MAX_HOPS)] = MAX_HOPS
    """How many more islands it may pass through."""
    signature: Annotated[bytes, Meta(max_length=64)] = b""
    """Home's signature (kind `on-behalf`) over the encoded `OnBehalf`; empty when home runs the job itself."""

    def on_behalf(self) -> OnBehalf:
        return OnBehalf(job=self.job, home=self.home, user=self.user, request_hash=self.request_hash)


class OfferRequest(Message, frozen=True, kw_only=True):
    """May this job run at yours, and what would it cost? Holds a place for `RESERVATION_S`."""

    MAX_BYTES = MAX_SHORT_MESSAGE

    envelope: Envelope
    kind: Short
    language: Short
    inputs: Annotated[tuple[InputRef, ...], Meta(max_length=64)] = ()


class OfferedInput(Message, frozen=True, kw_only=True):
    """How one input would reach the candidate, as the candidate measures it."""

    dataset: Short
    bytes: Count
    missing: Count
    files: Count = 1
    source: Short = ""
    rtt: Seconds | None = None
    bandwidth: Annotated[float, Meta(ge=1e-3, le=1e15)] | None = None


class Offer(Message, frozen=True, kw_only=True):
    """The answer: a reservation with the candidate's own terms, or a refusal with its reason."""

    MAX_BYTES = MAX_SHORT_MESSAGE

    refusal: Text = ""
    reservation: Short = ""
    wait: Seconds = 0.0
    languages: Annotated[tuple[Short, ...], Meta(max_length=16)] = ()
    parts: Annotated[tuple[OfferedInput, ...], Meta(max_length=64)] = ()


class CommitRequest(Message, frozen=True, kw_only=True):
    """The only permission to start. Durable at home before it is sent."""

    MAX_BYTES = MAX_MESSAGE

    envelope: Envelope
    reservation: Short
    work: JobSpec
    file: Annotated[bytes, Meta(max_length=MAX_FILE)] = b""
    lease: Annotated[float, Meta(ge=1, le=7 * 86400)] = LEASE_S


class CommitAnswer(Message, frozen=True, kw_only=True):
    """Accepted (durably), or refused for good under this epoch."""

    accepted: bool
    reason: Text = ""


class RunStatementRequest(Message, frozen=True, kw_only=True):
    """Run this statement. One at a time; `number` is home's id of it."""

    MAX_BYTES = MAX_MESSAGE

    job: JobId
    epoch: Count
    number: Count
    code: Annotated[str, Meta(max_length=MAX_CODE)]
    language: Short = ""


class StatusRequest(Message, frozen=True, kw_only=True):
    """How is it? Also renews the lease, and acknowledges results that are durable at home."""

    MAX_BYTES = 4096

    job: JobId
    epoch: Count
    acknowledged: Count = 0
    """Results of statements with smaller numbers may be forgotten."""
    seen: Count = 0
    """Version of the last report that home has stored: its log and results are not sent again."""


class StatementReport(Message, frozen=True, kw_only=True):
    """One statement as the executor knows it."""

    number: Count
    state: Short
    """Livy's: waiting, running, available, error, cancelling, cancelled."""
    output: Annotated[str, Meta(max_length=MAX_OUTPUT + 4096)] = ""
    """Livy's output object as JSON, or "" for none."""
    progress: float = 0.0
    started: Count = 0
    completed: Count = 0


class JobReport(Message, frozen=True, kw_only=True):
    """A job as its executor knows it."""

    MAX_BYTES = MAX_MESSAGE

    job: JobId
    epoch: Count
    version: Count
    state: Short
    """Livy's state of the session or batch."""
    ended: bool = False
    reason: Text = ""
    app_id: Text = ""
    app_info: Annotated[dict[Short, Text], Meta(max_length=8)] = msgspec.field(default_factory=dict)
    notes: Annotated[tuple[Text, ...], Meta(max_length=LOG_LINES)] = ()
    """What the executor did, line by line, from the first."""
    log: Annotated[tuple[Text, ...], Meta(max_length=LOG_LINES + 50)] | None = None
    """The engine's log; None when it has not changed since `seen`."""
    statements: Annotated[tuple[StatementReport, ...], Meta(max_length=200)] = ()
    moved: Count = 0
    """Bytes of inputs that were fetched for this job."""


class StopRequest(Message, frozen=True, kw_only=True):
    """Cancel statement `number`, or end the whole job when `number` is None."""

    MAX_BYTES = 4096

    job: JobId
    epoch: Count
    number: Count | None = None


class ReleaseRequest(Message, frozen=True, kw_only=True):
    """Home has stored everything of an ended job; the executor may forget all but its id."""

    MAX_BYTES = 4096

    job: JobId
    epoch: Count


class Decline(Message, frozen=True, kw_only=True):
    """Pushed to a candidate that was not chosen: its reservation is free again."""

    MAX_BYTES = 4096

    reservation: Short


class CodeCompletionRequest(Message, frozen=True, kw_only=True):
    """Livy's code completion."""

    MAX_BYTES = MAX_MESSAGE

    job: JobId
    epoch: Count
    code: Annotated[str, Meta(max_length=MAX_CODE)]
    language: Short = ""
    cursor: int = 0


class CodeCompletionAnswer(Message, frozen=True, kw_only=True):
    """The candidates."""

    MAX_BYTES = MAX_MESSAGE

    candidates: Annotated[tuple[Text, ...], Meta(max_length=1000)] = ()


class EmptyAnswer(Message, frozen=True, kw_only=True):
    """An answer that says no more than that it was done."""

    MAX_BYTES = 4096


class JobChanged(Message, frozen=True, kw_only=True):
    """Pushed to home: there is something new to ask for."""

    MAX_BYTES = 4096

    job: JobId
    epoch: Count


class ReattachRequest(Message, frozen=True, kw_only=True):
    """Asked of home by an island where the job's owner sits now; `key` proves the owner."""

    MAX_BYTES = 4096

    job: JobId
    key: Annotated[str, Meta(max_length=64)]
    what: Annotated[str, Meta(max_length=10, pattern=r"^(show|explain|logs|statements|cancel)\Z")]


class ReattachAnswer(Message, frozen=True, kw_only=True):
    """JSON as home's own operator API would give it."""

    MAX_BYTES = MAX_MESSAGE

    body: Annotated[str, Meta(max_length=MAX_MESSAGE)]


class AnswerTooLarge(Message, frozen=True, kw_only=True):
    """The answer is too long for the control session: ask again through a bulk stream."""

    MAX_BYTES = 4096

    large: Count


class JobBulkRequest(Message, frozen=True, kw_only=True):
    """Request of a bulk stream of kind `job`: the request's kind and the size of its bytes, which follow."""

    MAX_BYTES = 4096

    kind: Short
    size: Annotated[int, Meta(ge=0, le=MAX_MESSAGE)]
