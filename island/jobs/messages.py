"""Messages between islands about jobs. Some of them are also stored in the database.

`protocols/jobs-v1.md` is the specification. Requests are sent on the control session if they
fit, else through a bulk stream of kind `job`; the bytes are the same. Every request is
idempotent: a repetition gives the same answer and has no further effect.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from island.kernel.codec import Message

MAX_CODE = 1024 * 1024
"""Maximum size of the code of one statement, in bytes."""

MAX_FILE = 1024 * 1024
"""Maximum size of the file of a batch, in bytes. It is sent with the commit."""

MAX_INLINE = 256 * 1024
"""Maximum size of an output as JSON, in bytes, that is part of a report. Home fetches a longer one by its hash."""

MAX_OUTPUT = 2 * 1024 * 1024
"""The same for a home of an earlier version, which cannot fetch outputs. A longer one is an error for it."""

MAX_MESSAGE = 4 * 1024 * 1024
"""Maximum size of a request or answer about jobs through a bulk stream, in bytes."""

MAX_SHORT_MESSAGE = 512 * 1024
"""Maximum size of an offer or a request for an offer, in bytes. They have no code and no results."""

MAX_HOPS = 4
"""Maximum number of islands that a job may pass through."""

LOG_LINES = 200
"""Maximum number of log lines that are kept of a job, as in Livy."""

RESERVATION_S = 30.0
"""Seconds for which an offered place is reserved."""

LEASE_S = 600.0
"""Default lease: seconds after which an executor ends a job whose home is silent."""

DIVERGED = "diverged"
"""Code of the refusal of a statement whose number another statement has."""

RESERVATION_EXPIRED = "reservation_expired"
"""Code of a refused commit: the reservation is unknown or too old. The same island may be asked for another offer."""

FULL = "full"
"""Code of a refusal: too many jobs run or wait there now. A later attempt at the same island may succeed."""

POLICY = "policy"
"""Code of a refusal: the administrator of the executor does not accept such a job. The reason names the key."""

UNSUPPORTED_KIND = "unsupported_kind"
"""Code of a refused offer: no engine of the executor runs this kind of session or batch."""

NO_ENGINE = "no_engine"
"""Code of a refused offer: the executor has no engine, or none that answers."""

NO_INPUT = "no_input"
"""Code of a refused offer: the executor does not know an input, or cannot fetch it now."""

INVALID_JOB = "invalid_job"
"""Code of a refusal: the job itself is wrong, in its envelope, its settings, its resources or its file."""

STOPPED = "stopped"
"""Code of a refused commit: home had stopped the job under this epoch, or has committed it under a later one."""

NOT_STARTED = "not_started"
"""Code of a report on an ended run that no engine has accepted. None of its code has run: it may be tried elsewhere."""

Hex = Annotated[str, Meta(max_length=64, pattern=r"^[0-9a-f]{64}\Z")]
JobId = Annotated[str, Meta(max_length=64, min_length=40)]
Short = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=4096)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]


class InputRef(Message, frozen=True, kw_only=True):
    """One input: a dataset at a snapshot, and the names of its views in the session."""

    owner: Hex
    owner_name: Short
    name: Short
    snapshot: Hex
    views: Annotated[tuple[Short, ...], Meta(max_length=4)] = ()

    def __str__(self) -> str:
        return f"{self.owner_name}/{self.name}"


class JobSpec(Message, frozen=True, kw_only=True):
    """What to run, as checked by home."""

    MAX_BYTES = MAX_MESSAGE

    kind: Annotated[str, Meta(max_length=7, pattern=r"^(session|batch)\Z")]
    language: Short = ""
    """The kind of the session; `batch` for a batch."""
    inputs: Annotated[tuple[InputRef, ...], Meta(max_length=64)] = ()
    conf: Annotated[dict[Short, Text], Meta(max_length=200)] = msgspec.field(default_factory=dict)
    resources: Annotated[dict[Short, Short | int], Meta(max_length=16)] = msgspec.field(default_factory=dict)
    """Livy's `driverMemory`, `executorCores`, ... as the client gave them."""
    file_name: Short = ""
    file_hash: Annotated[str, Meta(max_length=64)] = ""
    args: Annotated[tuple[Text, ...], Meta(max_length=1000)] = ()


class OnBehalf(Message, frozen=True, kw_only=True):
    """The statement that home requests a job for a user. Home signs it as evidence for the executor."""

    job: JobId
    home: Hex
    user: Short
    request_hash: Hex
    delegation: Short = ""
    """Reserved for a user's own key for this job."""


class Envelope(Message, frozen=True, kw_only=True):
    """Data that identify a job in every request for an offer and every commit."""

    job: JobId
    epoch: Count
    home: Hex
    user: Short
    request_hash: Hex
    path: Annotated[tuple[Hex, ...], Meta(max_length=MAX_HOPS)]
    """Keys of the islands that the job passed through, home first, without duplicates."""
    hops: Annotated[int, Meta(ge=0, le=MAX_HOPS)] = MAX_HOPS
    """Number of further islands that the job may pass through."""
    signature: Annotated[bytes, Meta(max_length=64)] = b""
    """Home's signature (kind `on-behalf`) of the encoded `OnBehalf`; empty if home runs the job itself."""

    def on_behalf(self) -> OnBehalf:
        """The message that home signs."""
        return OnBehalf(job=self.job, home=self.home, user=self.user, request_hash=self.request_hash)


class OfferRequest(Message, frozen=True, kw_only=True):
    """Request for an offer: may this job run at the candidate, and at what cost? Reserves a place if it may."""

    MAX_BYTES = MAX_SHORT_MESSAGE

    envelope: Envelope
    kind: Short
    language: Short
    inputs: Annotated[tuple[InputRef, ...], Meta(max_length=64)] = ()


class OfferedInput(Message, frozen=True, kw_only=True):
    """How the candidate would get one input: sizes in bytes, and its own measurements.

    `rtt` is in seconds and `bandwidth` in bytes per second, both to `source`; None if not measured.
    """

    dataset: Short
    bytes: Count
    missing: Count
    files: Count = 1
    source: Short = ""
    rtt: Seconds | None = None
    bandwidth: Annotated[float, Meta(ge=1e-3, le=1e15)] | None = None


class Offer(Message, frozen=True, kw_only=True):
    """Answer to `OfferRequest`: a reservation with the candidate's own estimates, or a refusal with its reason.

    `wait` is the number of seconds until a place is free.
    """

    MAX_BYTES = MAX_SHORT_MESSAGE

    refusal: Text = ""
    code: Short = ""
    """Which refusal it is: one of the codes above; "" for a reservation, and from an island of an earlier version."""
    reservation: Short = ""
    wait: Seconds = 0.0
    languages: Annotated[tuple[Short, ...], Meta(max_length=16)] = ()
    parts: Annotated[tuple[OfferedInput, ...], Meta(max_length=64)] = ()


class CommitRequest(Message, frozen=True, kw_only=True):
    """Permission for an executor to start a job. Home stores it before it sends it."""

    MAX_BYTES = MAX_MESSAGE

    envelope: Envelope
    reservation: Short
    work: JobSpec
    file: Annotated[bytes, Meta(max_length=MAX_FILE)] = b""
    lease: Annotated[float, Meta(ge=1, le=7 * 86400)] = LEASE_S


class CommitAnswer(Message, frozen=True, kw_only=True):
    """Whether the executor has accepted and stored the job, or refuses it for this epoch."""

    accepted: bool
    reason: Text = ""
    code: Short = ""
    """Which refusal it is: one of the codes above; "" if accepted, and from an island of an earlier version."""


class RunStatementRequest(Message, frozen=True, kw_only=True):
    """Request to run a statement. Only one may be unfinished at a time. `number` is its id at home."""

    MAX_BYTES = MAX_MESSAGE

    job: JobId
    epoch: Count
    number: Count
    code: Annotated[str, Meta(max_length=MAX_CODE)]
    language: Short = ""


class StatusRequest(Message, frozen=True, kw_only=True):
    """Request for a `JobReport`. It also renews the lease, and acknowledges results that home has stored."""

    MAX_BYTES = 4096

    job: JobId
    epoch: Count
    acknowledged: Count = 0
    """Results of statements with smaller numbers may be deleted."""
    seen: Count = 0
    """Version of the last report that home has stored. If it is the current one, the log is not sent again."""
    references: bool = False
    """Home fetches long outputs by their hashes. False from a home of an earlier version."""


class ResultRef(Message, frozen=True, kw_only=True):
    """An output of a statement, kept as a file: Livy's output object as JSON."""

    hash: Hex
    """SHA-256 of the JSON."""
    size: Count
    """Its size in bytes."""


class StatementReport(Message, frozen=True, kw_only=True):
    """The state of one statement at the executor. Times are milliseconds since 1970; 0 if not reached."""

    number: Count
    state: Short
    """Livy's state: waiting, running, available, error, cancelling, cancelled."""
    output: Annotated[str, Meta(max_length=MAX_OUTPUT + 4096)] = ""
    """Livy's output object as JSON, or "" if there is none, or if it is in `result`."""
    result: ResultRef | None = None
    """The output, if it is longer than `MAX_INLINE`."""
    progress: float = 0.0
    started: Count = 0
    completed: Count = 0
    code_hash: Annotated[str, Meta(max_length=64)] = ""
    """SHA-256 of the statement (`core.statement_hash`); "" from an executor of an earlier version."""


class RunTimes(Message, frozen=True, kw_only=True):
    """Seconds that the parts of a run took, by its executor's monotonic clock; None if not over or not measured."""

    wait: Seconds | None = None
    """In line for a place."""
    fetch: Seconds | None = None
    """Bringing the inputs."""
    start: Seconds | None = None
    """From the submission until the session was idle or the batch ran."""
    compute: Seconds | None = None
    """The run of a batch that succeeded, or the first statement of a session if it had no error."""


class JobReport(Message, frozen=True, kw_only=True):
    """The state of a run at its executor."""

    MAX_BYTES = MAX_MESSAGE

    job: JobId
    epoch: Count
    version: Count
    state: Short
    """Livy's state of the session or batch."""
    ended: bool = False
    reason: Text = ""
    code: Short = ""
    """`NOT_STARTED`, or "" if an engine has accepted the job, or may have."""
    app_id: Text = ""
    app_info: Annotated[dict[Short, Text], Meta(max_length=8)] = msgspec.field(default_factory=dict)
    notes: Annotated[tuple[Text, ...], Meta(max_length=LOG_LINES)] = ()
    """Log lines about the actions of the executor, from the first."""
    log: Annotated[tuple[Text, ...], Meta(max_length=LOG_LINES + 50)] | None = None
    """The engine's log; None if it has not changed since the version `seen`."""
    statements: Annotated[tuple[StatementReport, ...], Meta(max_length=200)] = ()
    moved: Count = 0
    """Number of bytes of inputs that were fetched for this run."""
    times: RunTimes | None = None
    """None from an executor of an earlier version."""


class StopRequest(Message, frozen=True, kw_only=True):
    """Request to cancel the statement `number`, or to end the whole job if `number` is None."""

    MAX_BYTES = 4096

    job: JobId
    epoch: Count
    number: Count | None = None


class ReleaseRequest(Message, frozen=True, kw_only=True):
    """Home has stored all results of an ended job; the executor may delete them and keeps only the row of the run."""

    MAX_BYTES = 4096

    job: JobId
    epoch: Count


class Decline(Message, frozen=True, kw_only=True):
    """Push to a candidate that was not chosen: it may release the reservation."""

    MAX_BYTES = 4096

    reservation: Short


class CodeCompletionRequest(Message, frozen=True, kw_only=True):
    """Request for code completion, as in Livy."""

    MAX_BYTES = MAX_MESSAGE

    job: JobId
    epoch: Count
    code: Annotated[str, Meta(max_length=MAX_CODE)]
    language: Short = ""
    cursor: int = 0


class CodeCompletionAnswer(Message, frozen=True, kw_only=True):
    """Answer to `CodeCompletionRequest`: the candidates."""

    MAX_BYTES = MAX_MESSAGE

    candidates: Annotated[tuple[Text, ...], Meta(max_length=1000)] = ()


class EmptyAnswer(Message, frozen=True, kw_only=True):
    """Answer without content: the request was carried out."""

    MAX_BYTES = 4096


class JobChanged(Message, frozen=True, kw_only=True):
    """Push to home: the report on a run has changed."""

    MAX_BYTES = 4096

    job: JobId
    epoch: Count


class ReattachRequest(Message, frozen=True, kw_only=True):
    """Request to home by another island, at which the owner of the job works now. `key` is the job's key."""

    MAX_BYTES = 4096

    job: JobId
    key: Annotated[str, Meta(max_length=64)]
    what: Annotated[str, Meta(max_length=10, pattern=r"^(show|explain|logs|statements|cancel)\Z")]


class ReattachAnswer(Message, frozen=True, kw_only=True):
    """Answer to `ReattachRequest`: the same JSON as home's operator API returns."""

    MAX_BYTES = MAX_MESSAGE

    body: Annotated[str, Meta(max_length=MAX_MESSAGE)]


class AnswerTooLarge(Message, frozen=True, kw_only=True):
    """The answer has `large` bytes, too many for the control session: repeat the request through a bulk stream."""

    MAX_BYTES = 4096

    large: Count


class ResultRequest(Message, frozen=True, kw_only=True):
    """Opening of a bulk stream of kind `job-result`: the bytes of a result, which a report refers to, from `offset`."""

    MAX_BYTES = 4096

    job: JobId
    epoch: Count
    hash: Hex
    offset: Count = 0


class JobBulkRequest(Message, frozen=True, kw_only=True):
    """Opening of a bulk stream of kind `job`: kind of the request, and size in bytes of its body, which follows."""

    MAX_BYTES = 4096

    kind: Short
    size: Annotated[int, Meta(ge=0, le=MAX_MESSAGE)]
