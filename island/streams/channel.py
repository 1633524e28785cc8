"""The subscriber's side of a channel: receives deliveries, commits them, then acknowledges them.

A commit writes the complete file to disk; then the segment, the position and the snapshot in one
transaction on state.db; then it sends the acknowledgement. After a failure at any point, the next
attempt begins at the committed position and deletes files that do not belong to a commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import structlog

from island.errors import PeerMisbehaved, PeerRefused, Unreachable
from island.kernel.codec import encode
from island.kernel.db import Database
from island.kernel.ids import IslandId
from island.kernel.loops import ENDED, EXPECTED
from island.kernel.ports import BulkStream, Clock, Rng, Signal
from island.kernel.telemetry import counter, histogram
from island.kernel.work import Workers
from island.streams import core, store, tables
from island.streams.messages import READ, Ack, Delivery, Heartbeat, Lag, ReadRequest, StreamSchema, decode_down
from island.streams.segments import SegmentFolder
from island.streams.store import SubscriptionRow
from island.streams.tasks import raise_first

log = structlog.get_logger("island")

ROWS = counter("stream_rows_committed", "Rows that subscriptions committed")
COMMIT_SECONDS = histogram(
    "stream_commit_duration_seconds",
    "Duration of a commit of rows: writing the file, and its transaction",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)

SILENCE = 30.0
"""Seconds without a message after which the source counts as unreachable. It sends one every five seconds."""

PLAIN = 64 * 1024 * 1024
"""Bytes of uncommitted rows, decompressed, above which no further delivery is received before a commit.

The window limits only the compressed bytes, which may be a thousand times smaller."""

Checkpoint = Callable[[str], None]
"""Called with the name of each step of a commit. Tests use it to simulate crashes."""

OpenBulk = Callable[[IslandId, str, bytes], contextlib.AbstractAsyncContextManager[BulkStream]]


class DatasetPublisher(Protocol):
    """The part of the catalog that a channel uses. `commit` runs in the caller's transaction, `prepare` outside."""

    async def prepare(self, path: Path, name: str, *, title: str, description: str) -> Any:
        """Describe the files of the folder. Only new files are read."""

    def commit(self, conn: sqlite3.Connection, prepared: Any, who: str, now: float, *, journaled: bool = True) -> str:
        """Make the prepared snapshot the newest of the dataset; returns its hash."""

    def committed(self) -> None:
        """Called after the transaction was committed: inform other islands."""


class _Halted(Exception):
    """The source has ended the stream, with a state and a reason."""

    def __init__(self, state: core.ChannelState, reason: str) -> None:
        super().__init__(reason)
        self.state, self.reason = state, reason


@dataclass(slots=True)
class ChannelStatus:
    """The state of a channel that is not stored, for `channel ls`."""

    state: core.ChannelState = "starting"
    since: float = 0.0
    reason: str = ""
    behind: Lag = Lag()  # noqa: RUF009  # frozen
    behind_at: float = 0.0


@dataclass(slots=True)
class _Pending:
    """Rows that were received and not committed. `bytes` is their size on the wire, `plain` in memory."""

    to: bytes
    batches: list[Any]
    rows: int = 0
    bytes: int = 0
    plain: int = 0


class Channel:
    """Receives the rows of one subscription, and reconnects with backoff until the subscription stops."""

    def __init__(
        self,
        row: SubscriptionRow,
        *,
        state: Database,
        publisher: DatasetPublisher,
        open_bulk: OpenBulk,
        segments: SegmentFolder,
        who: str,
        window: int,
        clock: Clock,
        rng: Rng,
        workers: Workers,
        checkpoint: Checkpoint = lambda _: None,
    ) -> None:
        self._workers = workers
        self.row = row
        self.status = ChannelStatus(since=clock.wall())
        self.meter = core.RateMeter()
        self.redial = Signal()
        self._state, self._publisher, self._open_bulk, self._segments = state, publisher, open_bulk, segments
        self._who, self._window, self._clock, self._rng, self._checkpoint = who, window, clock, rng, checkpoint
        self._schema = tables.schema_from_bytes(row.columns) if row.columns else None
        self._attempt = self._failures = 0
        self._expected = row.position
        self._pending: _Pending | None = None
        self._wake, self._taken = Signal(), Signal()
        self._last_commit = float("-inf")
        self._committing = asyncio.Lock()

    async def step(self) -> object:
        """Receive rows until the stream ends or fails, then wait for the next attempt.

        Returns `ENDED` if the subscription has stopped for good. Unexpected exceptions are shown
        in the state of the channel, then raised; the loop that repeats this step logs them.
        """
        if self.row.halted:
            self._set("stopped", self.row.reason)
            return ENDED
        before = self.row.position
        try:
            await self._flow_or_halt()
        except Unreachable as error:
            self._set("waiting", f"{self.row.owner_name} cannot be reached: {error.message}")
        except PeerRefused as error:
            self._set("error", str(error))
        except EXPECTED as error:
            self._set("error", str(error))
            log.warning("channel.failed", subscription=self.row.id, error=str(error))
        except Exception as error:
            self._set("error", f"internal error: {type(error).__name__}: {error}")
            self._end_if_cancelled()
            raise
        self._end_if_cancelled()
        self._failures = 0 if self.row.position != before else self._failures + 1
        if not self.row.halted:
            wait = core.retry_after(self.status.state, self._failures) * (0.5 + 0.5 * self._rng.random())
            await self.redial.wait(wait)
        return None

    async def _flow_or_halt(self) -> None:
        try:
            await self._flow()
        except _Halted as halted:
            await self._halt(halted)

    @staticmethod
    def _end_if_cancelled() -> None:
        # A task group that ends with an error does not raise the cancellation of its task.
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise asyncio.CancelledError

    # --- one attempt ---------------------------------------------------------------------------

    async def _flow(self) -> None:
        if not await self._resume():
            return
        request = ReadRequest(
            source=self.row.source,
            incarnation=self.row.incarnation,
            position=self.row.position,
            where=self.row.predicate,
            region=self.row.region,
            window=self._window,
        )
        halted: _Halted | None = None
        async with self._open_bulk(self.row.owner, READ, encode(request)) as stream:
            try:
                async with asyncio.TaskGroup() as group:
                    committer = group.create_task(self._commit_all(stream))
                    halted = await self._receive(stream)
                    async with self._committing:  # wait for the end of a commit that has begun
                        committer.cancel()
            except BaseExceptionGroup as several:
                raise_first(several, unless=asyncio.CancelledError)
            await self._commit(stream)
        raise halted or Unreachable(f"{self.row.owner_name} ended the stream")

    async def _resume(self) -> bool:
        """Load the committed state and delete uncommitted files; returns False if the subscription was removed."""
        # In a write transaction, so that a commit of the previous attempt is done or will not happen.
        row, named = await self._state.write(
            lambda conn: (store.subscription(conn, self.row.id), store.segment_files(conn, self.row.id))
        )
        if row is None:
            return False
        self.row = row
        self._schema = tables.schema_from_bytes(row.columns) if row.columns else None
        self._attempt, swept = await self._workers.disk(self._segments.sweep, named)
        if swept:
            log.info("channel.swept", subscription=row.id, files=len(swept))
        self._expected, self._pending = row.position, None
        return True

    async def _receive(self, stream: BulkStream) -> _Halted | None:
        """Receive messages until the stream ends; returns the reason that the source gave, or None."""
        opened = False
        while (block := await self._next(stream)) is not None:
            message = decode_down(block)
            if isinstance(message, StreamSchema):
                await self._agree(message.columns)
                opened = True
            elif isinstance(message, Delivery):
                if not opened:
                    raise PeerMisbehaved(f"{self.row.owner_name} sent rows before the schema")
                await self._take(stream, message)
            elif isinstance(message, Heartbeat):
                self._follow(message.behind)
            else:
                return _Halted(message.state, message.reason)
        return None

    async def _next(self, stream: BulkStream) -> bytes | None:
        try:
            async with asyncio.timeout(SILENCE):
                return await stream.receive()
        except TimeoutError as error:
            raise Unreachable(f"{self.row.owner_name} sent nothing for {SILENCE:.0f} s") from error

    async def _agree(self, columns: bytes) -> None:
        """Check that the columns of the stream are those of the dataset; create the dataset if there is none."""
        schema = tables.schema_from_bytes(columns)
        if self._schema is None:
            self._schema = schema
            self.row = await begin(
                self._state,
                self._publisher,
                self._segments,
                self._attempt,
                self.row,
                columns,
                self._who,
                self._clock,
                workers=self._workers,
            )
        elif not self._schema.equals(schema, check_metadata=False):
            raise PeerMisbehaved(f"the columns of {self.row.owner_name}/{self.row.source} have changed")

    async def _take(self, stream: BulkStream, delivery: Delivery) -> None:
        while self._pending is not None and self._pending.plain > PLAIN:
            await self._taken.wait()
        if delivery.frm != self._expected:
            raise PeerMisbehaved(f"{self.row.owner_name} sent a delivery that does not begin at the expected position")
        payload = bytearray()
        while len(payload) < delivery.size:
            block = await self._next(stream)
            if block is None or len(payload) + len(block) > delivery.size:
                raise PeerMisbehaved(
                    f"{self.row.owner_name} sent a delivery whose size differs from that in its header"
                )
            payload += block
        batches: list[Any] = []
        if delivery.size:
            data, schema = bytes(payload), self._schema
            batches = await self._workers.cpu(tables.rows_from_bytes, data, schema, delivery.rows)
        elif delivery.rows:
            raise PeerMisbehaved(f"{self.row.owner_name} sent a delivery without its rows")
        self._gather(delivery, batches)

    def _gather(self, delivery: Delivery, batches: list[Any]) -> None:
        pending = self._pending or _Pending(delivery.to, [])
        pending.to = delivery.to
        pending.batches += batches
        pending.rows += delivery.rows
        pending.bytes += delivery.size
        pending.plain += sum(batch.nbytes for batch in batches)
        if pending.bytes > 2 * self._window + delivery.size:
            raise PeerMisbehaved(f"{self.row.owner_name} sent more than the window allows")
        self._pending, self._expected = pending, delivery.to
        self._follow(delivery.behind)
        self._wake.set()

    def _follow(self, behind: Lag) -> None:
        self.status.behind, self.status.behind_at = behind, self._clock.monotonic()
        self._set("live" if behind.files == 0 or behind.seconds < 5.0 else "backfill")

    # --- commits -------------------------------------------------------------------------------

    async def _commit_all(self, stream: BulkStream) -> None:
        while True:
            await self._wake.wait()
            while self._pending is not None and (wait := self._commit_in()) > 0:
                await self._wake.wait(wait)
            async with self._committing:
                await self._commit(stream)

    def _commit_in(self) -> float:
        size = self._pending.bytes if self._pending else 0
        if self._pending is not None and self._pending.plain > PLAIN:
            return 0.0
        now = self._clock.monotonic()
        every = core.commit_every(self.row.segments)
        return core.commit_in(now=now, last=self._last_commit, pending_bytes=size, window=self._window, every=every)

    async def _commit(self, stream: BulkStream) -> None:
        """Commit the pending rows: write the file, run the transaction, send the acknowledgement."""
        pending, self._pending = self._pending, None
        self._taken.set()
        if pending is None:
            return
        self._last_commit = self._clock.monotonic()
        segment: tuple[str, int, int] | None = None
        prepared: Any = None
        if pending.rows:
            self._checkpoint("received")
            number = self.row.segments
            segment = await self._workers.disk(
                self._segments.write, self._attempt, number, pending.batches, self._schema
            )
            self._checkpoint("written")
            prepared = await self._publisher.prepare(self._segments.folder, self.row.name, **about(self.row))
            self._checkpoint("prepared")
        frm, now = self.row.position, self._clock.wall()

        def write(conn: sqlite3.Connection) -> None:
            if not store.advance(conn, self.row.id, frm, pending.to, now):
                raise Unreachable("the committed position was changed by another attempt")
            if segment is not None:
                file, rows, size = segment
                store.add_segment(conn, self.row.id, self.row.segments, file, rows, size, now)
                # The journal has a row for the subscription. Rows for its many snapshots would hide other rows.
                self._publisher.commit(conn, prepared, self._who, now, journaled=False)

        def committed(_: None) -> None:
            self.row = replace(self.row, position=pending.to, updated=now)
            if segment is not None:
                self._count(segment)

        await self._state.write(write, then=committed)
        self._checkpoint("committed")
        with contextlib.suppress(Unreachable):  # the rows are committed; the receiver reports the lost stream
            await stream.send(encode(Ack(position=pending.to)))
        self._checkpoint("acknowledged")

    def _count(self, segment: tuple[str, int, int]) -> None:
        _, rows, size = segment
        self.row = replace(
            self.row, segments=self.row.segments + 1, rows=self.row.rows + rows, bytes=self.row.bytes + size
        )
        self._publisher.committed()
        self.meter.add(self._clock.monotonic(), rows, size)
        ROWS.inc(rows)
        COMMIT_SECONDS.observe(max(0.0, self._clock.monotonic() - self._last_commit))

    # --- state ---------------------------------------------------------------------------------

    def _set(self, state: core.ChannelState, reason: str = "") -> None:
        if self.status.state != state:
            log.info("channel.state_changed", subscription=self.row.id, into=self.row.name, state=state, reason=reason)
            self.status.since = self._clock.wall()
        self.status.state, self.status.reason = state, reason

    async def _halt(self, halted: _Halted) -> None:
        self._set(halted.state, halted.reason)
        if halted.state in core.FINAL:
            now = self._clock.wall()
            await self._state.write(lambda conn: store.halt(conn, self.row.id, "stopped", halted.reason, now))
            self.row = replace(self.row, halted="stopped", reason=halted.reason)


def about(row: SubscriptionRow) -> dict[str, str]:
    """Title and description of the dataset of a subscription."""
    which = " and ".join(part for part in (row.predicate, row.region) if part)
    title = f"{row.owner_name}/{row.source}" + (f" where {which}" if which else "")
    return {
        "title": title[:200],
        "description": f"Rows of the source {row.owner_name}/{row.source}"
        + (f" where {which}" if which else "")
        + f", {'from its beginning' if row.start == 'beginning' else 'since the subscription was added'}.",
    }


async def begin(
    state: Database,
    publisher: DatasetPublisher,
    segments: SegmentFolder,
    attempt: int,
    row: SubscriptionRow,
    columns: bytes,
    who: str,
    clock: Clock,
    also: Callable[[sqlite3.Connection], object] = lambda _: None,
    *,
    workers: Workers,
    then: Callable[[SubscriptionRow], None] = lambda _: None,
) -> SubscriptionRow:
    """Publish the dataset of a subscription, without rows, in one transaction with `also`.

    Returns the updated row. `then(row)` is called after the commit, as in `Database.write`.
    """
    schema = tables.schema_from_bytes(columns)
    file, _, size = await workers.disk(segments.write, attempt, 0, [], schema)
    prepared = await publisher.prepare(segments.folder, row.name, **about(row))
    now = clock.wall()

    def write(conn: sqlite3.Connection) -> None:
        also(conn)
        store.set_subscription_columns(conn, row.id, columns)
        store.add_segment(conn, row.id, 0, file, 0, size, now)
        publisher.commit(conn, prepared, who, now)

    made = replace(row, columns=columns, segments=row.segments + 1, bytes=row.bytes + size, updated=now)

    def committed(_: None) -> None:
        publisher.committed()
        then(made)

    await state.write(write, then=committed)
    return made
