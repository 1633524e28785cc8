"""Fetches missing chunks from the holder that is expected to deliver them first.

Each missing chunk is requested once, even if several readers wait for it. A transfer requests
runs of chunks of one or more files. Every chunk is verified before it is written or returned.
Chunks that a holder did not deliver are requested from another one, or from the same when it
is reachable again. A transfer fails if no chunk arrived for `FetchTimeouts.nothing` seconds;
the error lists the holders and since when each of them is down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from island.catalog.manifest import FileHashes
from island.errors import FilesChanged, IslandError, PeerMisbehaved, PeerRefused, Unreachable
from island.kernel import codec, telemetry
from island.kernel.ids import IslandId
from island.kernel.loops import DISK_FAILED, Tasks, is_transient
from island.kernel.ports import BulkStream, Clock, Peers, Topic
from island.membership.service import Membership
from island.replicas import core
from island.replicas.chunk_store import ChunkStore, ReplicaFile, ReplicaSnapshot, absent, edges_of
from island.replicas.core import ChunkBorders, ChunkRange
from island.replicas.messages import KIND, MAX_BYTES, ChunkRequest, FileRanges
from island.replicas.space import DiskQuota, SpaceClaim

log = structlog.get_logger("island")

_RECEIVED = telemetry.BoundedCounter(
    "replica_received_bytes", "Bytes of chunks received from other islands", "dataset", 100
)
_BAD = telemetry.BoundedCounter(
    "replica_bad_answers", "Answers with wrong bytes, by the island that sent them", "holder", 50
)

REQUEST_BYTES = 4 * 2**20
"""Maximum number of bytes of one request, so that several holders and streams share the work."""
REQUEST_RUNS = 48
"""Maximum number of runs of chunks in one request."""
STREAMS = 8
"""Maximum number of transfers in progress."""
STREAMS_A_HOLDER = 4
"""Maximum number of streams from one holder; a slow holder gets one."""
_SLOW = 2**20
"""Bytes per second below which a holder is slow: several streams would only compete with each other."""
_BLOCK = 2**20
"""Maximum number of bytes that are verified and written in one call."""
_PENALTY_S = 120.0
"""Seconds for which a holder that sent wrong bytes is asked only if no other holder can be asked."""


@dataclass(frozen=True, slots=True)
class MissingChunks:
    """Chunks of one file that a reader waits for, and the hashes that verify them."""

    file: ReplicaFile
    hashes: FileHashes
    run: ChunkRange


@dataclass(slots=True)
class _Attempts:
    """The attempts of one transfer to fetch from one holder."""

    rest_until: float = 0.0
    """Monotonic time before which the holder is not asked again."""
    failures: int = 0
    """Failures in a row; the wait doubles with each."""
    failed_at: float = 0.0
    reason: str = ""
    final: bool = False
    """Whether this transfer does not ask the holder again: it refused, or sent wrong bytes."""
    error: IslandError | None = None


@dataclass(slots=True)
class _Holding:
    """The state of a holder across transfers."""

    queued: int = 0
    """Bytes in the requests that are in progress."""
    streams: int = 0
    strikes: list[float] = field(default_factory=list)
    """Monotonic times at which it sent wrong bytes."""


@dataclass(frozen=True, slots=True)
class FetchTimeouts:
    """Timeouts of transfers, in seconds."""

    nothing: float = 20.0
    """Maximum time without a new verified chunk before a transfer fails."""
    block: float = 10.0
    """Timeout for the next block of a stream, after which the holder counts as unreachable."""
    open: float = 6.0
    """Timeout for opening a stream."""


class Fetcher:
    """Fetches missing chunks into the chunk store.

    `holders(replica)` returns the other islands that have the snapshot. `fault(holder, text)` is
    called when a holder sent wrong bytes.
    """

    def __init__(
        self,
        chunk_store: ChunkStore,
        space: DiskQuota,
        peers: Peers,
        membership: Membership,
        clock: Clock,
        *,
        holders: Callable[[ReplicaSnapshot], Sequence[IslandId]],
        fault: Callable[[IslandId, str], None],
        patience: FetchTimeouts,
    ) -> None:
        self._chunk_store, self._space, self._peers, self._membership, self._clock = (
            chunk_store,
            space,
            peers,
            membership,
            clock,
        )
        self._holders, self._fault, self._patience = holders, fault, patience
        self._known: dict[IslandId, _Holding] = {}
        self._slots = asyncio.Semaphore(STREAMS)
        self._tasks: Tasks | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.changed = Topic()
        """Touched when a session begins or ends and when an attempt ends: a holder may be available again."""
        self._linked_at: dict[IslandId, float] = {}
        peers.on_link(self._on_link)

    def _on_link(self, island: IslandId, up: bool) -> None:
        if up:
            self._linked_at[island] = self._clock.monotonic()
        self.changed.touch()

    def start(self, tasks: Tasks) -> None:
        """Run transfers in `tasks`: a transfer continues for other readers if the one that began it is cancelled."""
        self._tasks = tasks

    async def ensure(self, replica: ReplicaSnapshot, wants: Sequence[MissingChunks]) -> None:
        """Fetch the wanted chunks and wait until all of them are stored.

        Raises `Unreachable`, `FilesChanged`, `PeerMisbehaved` or `PeerRefused` if no holder
        delivered them, and `Full` if they do not fit.
        """
        while True:
            self.begin(replica, wants)
            waiting = [
                future
                for want in wants
                for index in range(*want.run)
                if (future := want.file.arriving.get(index)) is not None
            ]
            if not waiting:
                return
            await asyncio.wait(waiting)
            for future in waiting:
                if future.cancelled():
                    raise IslandError("the island is stopping", hint="Try again when it has restarted.")
                if error := future.exception():
                    raise error

    def begin(self, replica: ReplicaSnapshot, wants: Sequence[MissingChunks]) -> None:
        """Request those of the wanted chunks that are neither stored nor being fetched; does not wait for them."""
        parts = [(want, edges_of(want.hashes), run) for want in wants for run in absent(want.file, want.run)]
        for batch in core.group_requests(parts, min(REQUEST_BYTES, MAX_BYTES), REQUEST_RUNS):
            self._begin(replica, batch)

    def _begin(self, replica: ReplicaSnapshot, batch: list[tuple[MissingChunks, ChunkBorders, ChunkRange]]) -> None:
        if self._tasks is None or self._stopping:
            raise IslandError("the island is stopping", hint="Try again when it has restarted.")
        loop = asyncio.get_running_loop()
        for want, _, run in batch:
            want.file.arriving.update((index, loop.create_future()) for index in range(*run))
        task = self._tasks.spawn("replicas.transfer", self._transfer(replica, batch))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def stop(self) -> None:
        """Cancel all transfers and wait until they have ended."""
        self._stopping = True
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)

    async def _transfer(
        self, replica: ReplicaSnapshot, batch: list[tuple[MissingChunks, ChunkBorders, ChunkRange]]
    ) -> None:
        failure: BaseException | None = None
        try:
            async with self._slots:
                with replica:
                    size = sum(edges.size(run) for _, edges, run in batch)
                    async with self._space.claim(size, f"{replica.name!r}") as claim:
                        for want, _, _ in batch:
                            await self._chunk_store.make(replica, want.file)
                        await self._deliver(replica, batch, claim)
        except BaseException as error:
            failure = error
            if not isinstance(error, IslandError):
                raise
        finally:
            for want, _, run in batch:
                _arrived(want.file, run, failure)

    async def _deliver(
        self, replica: ReplicaSnapshot, batch: list[tuple[MissingChunks, ChunkBorders, ChunkRange]], claim: SpaceClaim
    ) -> None:
        attempts: dict[IslandId, _Attempts] = {}
        quiet_since = self._clock.monotonic()
        while True:
            rest = [(want, edges, run) for want, edges, part in batch for run in core.missing(want.file.present, part)]
            if not rest:
                return
            version, now = self.changed.version, self._clock.monotonic()
            size = sum(edges.size(run) for _, edges, run in rest)
            holders = list(self._holders(replica))
            holder = core.choose_holder([self._candidate(island, attempts, now) for island in holders], size, now)
            if holder is None:
                tried = [attempts.get(island) for island in holders]
                if any(self._is_busy(island) for island in holders):
                    quiet_since = now  # a holder is busy with other transfers of this island: wait for it
                left = quiet_since + self._patience.nothing - now
                if left <= 0 or (tried and all(attempt and attempt.final for attempt in tried)):
                    raise self._failure(replica, batch, holders, attempts)
                wakes = [attempt.rest_until - now for attempt in tried if attempt and not attempt.final]
                await self.changed.after(version, max(0.01, min([left, 1.0, *wakes])))
                continue
            if await self._attempt(replica, holder, rest, attempts.setdefault(holder, _Attempts()), claim):
                quiet_since = self._clock.monotonic()

    def _is_busy(self, island: IslandId) -> bool:
        """Whether a holder has its maximum number of streams: one if it is slow, else `STREAMS_A_HOLDER`."""
        link, known = self._peers.link(island), self._known.get(island)
        slow = link is not None and link.bandwidth is not None and link.bandwidth < _SLOW
        return known is not None and known.streams >= (1 if slow else STREAMS_A_HOLDER)

    def _candidate(self, island: IslandId, attempts: dict[IslandId, _Attempts], now: float) -> core.HolderLoad:
        link = self._peers.link(island)
        known = self._known.setdefault(island, _Holding())
        known.strikes = [at for at in known.strikes if now - at < _PENALTY_S]
        attempt = attempts.get(island)
        rest_until = 0.0
        if attempt and attempt.final:
            rest_until = float("inf")
        elif attempt and self._linked_at.get(island, 0.0) <= attempt.failed_at:
            rest_until = attempt.rest_until
        if self._is_busy(island):
            rest_until = max(rest_until, now + 0.05)
        return core.HolderLoad(
            island=island,
            linked=link is not None,
            bandwidth=link.bandwidth if link else None,
            rtt=link.rtt if link else None,
            queued=known.queued,
            strikes=len(known.strikes),
            rest_until=rest_until,
        )

    async def _attempt(
        self,
        replica: ReplicaSnapshot,
        holder: IslandId,
        rest: list[tuple[MissingChunks, ChunkBorders, ChunkRange]],
        attempt: _Attempts,
        claim: SpaceClaim,
    ) -> bool:
        """Ask one holder once; returns whether it delivered anything. A failure is stored in `attempt`."""
        known = self._known.setdefault(holder, _Holding())
        size = sum(edges.size(run) for _, edges, run in rest)
        before = claim.left
        known.queued += size
        known.streams += 1
        try:
            await self._ask(replica, holder, rest, claim)
            attempt.failures, attempt.reason = 0, ""
        except PeerMisbehaved as error:
            self._blame(replica, holder, attempt, error)
        except PeerRefused as error:
            attempt.final, attempt.error, attempt.reason = True, error, f"answered: {error.message}"
            log.warning(
                "replicas.refused", holder=self._membership.display(holder), dataset=replica.name, error=str(error)
            )
        except (Unreachable, TimeoutError, ConnectionError) as error:
            attempt.failures += 1
            attempt.failed_at = self._clock.monotonic()
            attempt.rest_until = attempt.failed_at + min(0.2 * 2**attempt.failures, 5.0)
            log.info(
                "replicas.interrupted", holder=self._membership.display(holder), dataset=replica.name, error=str(error)
            )
        finally:
            known.queued -= size
            known.streams -= 1
            self.changed.touch()
        return claim.left < before

    def _blame(self, replica: ReplicaSnapshot, holder: IslandId, attempt: _Attempts, error: PeerMisbehaved) -> None:
        name = self._membership.display(holder)
        attempt.final, attempt.error, attempt.reason = True, error, error.message
        self._known[holder].strikes.append(self._clock.monotonic())
        _BAD.labels(name).inc()
        self._fault(holder, f"{replica.name}@{replica.snapshot[:12]}: {error.message}")
        log.warning("replicas.hash_mismatch", holder=name, key=holder, dataset=replica.name, error=error.message)

    def _failure(
        self,
        replica: ReplicaSnapshot,
        batch: list[tuple[MissingChunks, ChunkBorders, ChunkRange]],
        holders: Sequence[IslandId],
        attempts: dict[IslandId, _Attempts],
    ) -> IslandError:
        path = batch[0][0].file.entry.path
        what = f"{self._membership.display(replica.owner)}/{replica.name}: {path}"
        reasons = {island: attempt.reason for island, attempt in attempts.items()}
        text = f"{what} cannot be read: {self.who_holds(holders, reasons)}"
        errors = [attempt.error for attempt in attempts.values() if attempt.error]
        cause = next(iter(errors), None)
        if any(isinstance(error, PeerMisbehaved) for error in errors):
            failure: IslandError = PeerMisbehaved(
                text,
                hint="The wrong bytes were discarded. Ask the holder's administrator to check disk and memory.",
            )
        elif cause and cause.code == FilesChanged.code:
            failure = FilesChanged(text, hint=cause.hint or "Ask the owner to publish the files again.")
        elif errors and len(errors) == len(holders):
            failure = PeerRefused(text, hint=cause.hint if cause else "")
        else:
            failure = Unreachable(text, hint="Try again when a holder is up. Data that were fetched are kept.")
        failure.__cause__ = cause
        return failure

    def who_holds(self, holders: Sequence[IslandId], reasons: Mapping[IslandId, str]) -> str:
        """Text for an error: each holder with its answer, or with its state and since when."""
        views = {view.island: view for view in self._membership.views()}
        shown = []
        for island in holders:
            view = views.get(island)
            name, reason = self._membership.display(island), reasons.get(island, "")
            shown.append(
                core.FailedHolder(name, view.state if view else "unknown", view.since if view else 0.0, reason)
            )
        return core.explain_absence(shown)

    # --- one stream ---------------------------------------------------------------------------

    async def _ask(
        self,
        replica: ReplicaSnapshot,
        holder: IslandId,
        rest: list[tuple[MissingChunks, ChunkBorders, ChunkRange]],
        claim: SpaceClaim,
    ) -> None:
        request = ChunkRequest(owner=replica.owner, name=replica.name, snapshot=replica.snapshot, pieces=_pieces(rest))
        body = codec.encode(request)
        async with self._peers.bulk(holder, KIND, body, timeout=self._patience.open) as stream:
            answer = _Answer(stream, request.size(), self._patience.block, self._membership.display(holder))
            try:
                for want, edges, run in rest:
                    for portion in edges.portions(run, _BLOCK):
                        await self._receive(replica, want, edges, portion, answer, claim)
                await answer.end()
            finally:
                self._chunk_store.count(replica.key, received=answer.received)
                dataset = f"{self._membership.display(replica.owner)}/{replica.name}"
                _RECEIVED.labels(dataset).inc(answer.received)

    async def _receive(
        self,
        replica: ReplicaSnapshot,
        want: MissingChunks,
        edges: ChunkBorders,
        run: ChunkRange,
        answer: _Answer,
        claim: SpaceClaim,
    ) -> None:
        first, last = run
        data: list[bytes] = []
        try:
            for index in range(first, last):
                data.append(await answer.take(edges.size((index, index + 1))))
        finally:
            # If the stream is interrupted, the chunks that arrived before are still written.
            good = await self._chunk_store.put(replica, want.file, want.hashes, first, data) if data else 0
            claim.spend(edges.size((first, first + good)))
            _arrived(want.file, (first, first + good), None)
        if good < len(data):
            chunk = want.hashes.chunk(first + good)
            raise PeerMisbehaved(
                f"sent bytes that do not match their hash ({want.file.entry.path}, {chunk.start} to {chunk.end})"
            )


def _arrived(file: ReplicaFile, run: ChunkRange, failure: BaseException | None) -> None:
    """Resolve the futures of the chunks of `run`: with None if they are stored, else with `failure`."""
    for index in range(*run):
        future = file.arriving.pop(index, None)
        if future is None or future.done():
            continue
        if failure is None:
            future.set_result(None)
        elif isinstance(failure, Exception):
            future.set_exception(failure if isinstance(failure, IslandError) else _not_kept(failure))
            future.exception()  # marks it as retrieved: there may be no reader left
        else:
            future.cancel()


def _not_kept(failure: Exception) -> IslandError:
    """The error for readers of a transfer that failed at this island, not at a holder."""
    error = IslandError(
        f"fetched data cannot be stored: {type(failure).__name__}: {failure}",
        hint="Check the disk of this island's home folder, and see the log of the daemon.",
        code=DISK_FAILED if is_transient(failure) else "",
    )
    error.__cause__ = failure
    return error


class _Answer:
    """The bytes of one stream. Counts them, and raises `PeerMisbehaved` if there are more than were requested."""

    def __init__(self, stream: BulkStream, size: int, block_s: float, holder: str) -> None:
        self._stream, self._left, self._block_s, self._holder = stream, size, block_s, holder
        self._buffer = bytearray()
        self.received = 0

    async def take(self, size: int) -> bytes:
        """The next `size` bytes. Raises `PeerMisbehaved` for an answer that is too short or too long."""
        while len(self._buffer) < size:
            block = await self._next()
            if block is None:
                raise PeerMisbehaved("sent less than was requested")
            self._buffer += block
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return data

    async def end(self) -> None:
        """Wait for the end of the stream. Raises `PeerMisbehaved` if more bytes arrive before it."""
        if self._buffer or await self._next() is not None:
            raise PeerMisbehaved("sent more than was requested")

    async def _next(self) -> bytes | None:
        try:
            async with asyncio.timeout(self._block_s):
                block = await self._stream.receive()
        except TimeoutError as error:
            raise Unreachable(f"{self._holder} sent nothing for {self._block_s:g} s") from error
        if block is None:
            return None
        self.received += len(block)
        self._left -= len(block)
        if self._left < 0 or not block:
            raise PeerMisbehaved("sent more than was requested" if block else "sent an empty block")
        return block


def _pieces(rest: list[tuple[MissingChunks, ChunkBorders, ChunkRange]]) -> tuple[FileRanges, ...]:
    """The runs as byte ranges, in the same order; neighbouring runs of the same file are combined."""
    pieces: list[tuple[str, list[tuple[int, int]]]] = []
    for want, edges, run in rest:
        span = (edges.offset(run[0]), edges.offset(run[1]))
        if pieces and pieces[-1][0] == want.file.entry.path:
            pieces[-1][1].append(span)
        else:
            pieces.append((want.file.entry.path, [span]))
    return tuple(FileRanges(path=path, ranges=tuple(ranges)) for path, ranges in pieces)
