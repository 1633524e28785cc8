"""The source's side of a channel: answers `stream.describe` and sends the rows of `stream.read`.

The source stores nothing about subscribers. Each request contains the subscriber's position.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from island.errors import BadInput, Full, NotFound, Unsupported
from island.formats import rows as formats_rows
from island.formats.predicate import Predicate
from island.kernel.codec import decode, encode
from island.kernel.db import Database
from island.kernel.ids import IslandId
from island.kernel.ports import BulkStream, Clock
from island.kernel.work import Workers
from island.streams import store, tables
from island.streams.core import Window
from island.streams.messages import (
    BLOCK,
    DESCRIBE,
    MAX_PAYLOAD,
    READ,
    Ack,
    Delivery,
    DescribeAnswer,
    DescribeRequest,
    EndOfStream,
    Heartbeat,
    Lag,
    ReadRequest,
    StopState,
    StreamPosition,
    StreamSchema,
    decode_position,
    encode_position,
)
from island.streams.source import FolderSource, SourceFileMissing
from island.streams.tasks import raise_first

log = structlog.get_logger("island")

STREAMS_A_PEER = 64
STREAMS = 256
HEARTBEAT = 5.0
"""Seconds between two messages to a subscriber that has received everything."""

PIECE = 1024 * 1024
"""Approximate number of bytes of the pieces in which rows are filtered and sent."""

LINGER = 30.0
"""Seconds for which the source waits for the last acknowledgements after its last message."""

SEND_EVERY = 0.5
"""Maximum number of seconds for which rows are collected before they are sent, while there is more to read."""

DECODERS, DECODERS_A_PEER = 3, 2
"""Maximum number of streams whose rows are filtered concurrently, in total and for one island. Others wait."""


@dataclass(slots=True)
class ServedStream:
    """The state of one stream that is being served, for `channel ls`."""

    peer: IslandId
    source: str
    since: float
    rows: int = 0
    bytes: int = 0
    under_way: int = 0
    behind: Lag = field(default_factory=Lag)


class SourceServer:
    """Serves the sources of this island to subscribers, including subscriptions of this island."""

    def __init__(self, state: Database, sources: Mapping[str, FolderSource], clock: Clock, workers: Workers) -> None:
        self._workers = workers
        self._state, self._sources, self._clock = state, sources, clock
        self._decoders = asyncio.Semaphore(DECODERS)
        self._turns: weakref.WeakValueDictionary[IslandId, asyncio.Semaphore] = weakref.WeakValueDictionary()
        self._per_peer: Counter[IslandId] = Counter()
        self.served: list[ServedStream] = []
        self.ready = asyncio.Event()
        """Set when the sources are loaded. Requests wait for it, so that no source is reported as missing too early."""

    def register(self, on_bulk: Callable[[str, Any], None]) -> None:
        """Register the handlers of both bulk kinds."""
        on_bulk(DESCRIBE, self.describe)
        on_bulk(READ, self.read)

    def _source(self, name: str) -> FolderSource:
        source = self._sources.get(name)
        if source is None:
            raise NotFound(
                f"this island has no source {name}", hint="`island source ls` lists the sources of all islands."
            )
        return source

    async def describe(self, peer: IslandId, body: bytes, stream: BulkStream) -> None:
        """Answer `stream.describe`: check the predicate, and send the schema and the first position.

        Raises BadInput for an invalid predicate, NotFound for an unknown source.
        """
        request = decode(body, DescribeRequest)
        await self.ready.wait()
        source = self._source(request.source)
        predicate = Predicate.parse(request.where or None, request.region or None)
        if source.schema is not None:
            predicate.bind(source.schema)
        head = await self._state.read(lambda conn: store.head(conn, source.name))
        if head is None:
            raise NotFound(
                f"this island has no source {request.source}",
                hint="`island source ls` lists the sources of all islands.",
            )
        begin = head if request.start == "now" else StreamPosition(seq=0, since=head.since)
        described = DescribeAnswer(
            incarnation=source.incarnation, position=encode_position(begin), columns=source.columns
        )
        await stream.send(encode(described))
        await stream.finish()

    async def read(self, peer: IslandId, body: bytes, stream: BulkStream) -> None:
        """Answer `stream.read`: send rows until the subscriber ends the stream, or the source cannot send more.

        Raises Full if too many streams are being served.
        """
        request = decode(body, ReadRequest)
        await self.ready.wait()
        if self._per_peer[peer] >= STREAMS_A_PEER or sum(self._per_peer.values()) >= STREAMS:
            raise Full(
                f"too many streams: this island serves {self._per_peer[peer]} to your island (limit {STREAMS_A_PEER})"
                f" and {sum(self._per_peer.values())} in total (limit {STREAMS})",
                hint="Remove subscriptions that are no longer needed.",
            )
        self._per_peer[peer] += 1
        try:
            await self._read(peer, request, stream)
        finally:
            self._per_peer[peer] -= 1

    async def _read(self, peer: IslandId, request: ReadRequest, stream: BulkStream) -> None:
        source = self._sources.get(request.source)
        if source is None:
            await _stop(stream, "stopped", f"the source {request.source} no longer exists: remove the subscription")
            return
        if source.incarnation != request.incarnation:
            reason = (
                f"the source {request.source} was removed and added again, so positions of the old one are not valid:"
                " remove the subscription and add it again"
            )
            await _stop(stream, "stopped", reason)
            return
        try:
            predicate = Predicate.parse(request.where or None, request.region or None)
        except BadInput as error:
            await _stop(stream, "error", error.line)
            return
        head = await self._state.read(lambda conn: store.head(conn, source.name))
        if head is None or decode_position(request.position).seq > head.seq:
            reason = (
                f"the database of the source {request.source} was restored from a backup older than this position,"
                " so rows could be lost without notice: remove the subscription and add it again"
            )
            await _stop(stream, "stopped", reason)
            return
        if (turns := self._turns.get(peer)) is None:
            turns = self._turns[peer] = asyncio.Semaphore(DECODERS_A_PEER)
        served = ServedStream(peer, source.name, self._clock.wall())
        self.served.append(served)
        try:
            await _Reader(
                self._state,
                source,
                request,
                predicate,
                stream,
                served,
                self._clock,
                (turns, self._decoders),
                self._workers,
            ).run()
        finally:
            self.served.remove(served)


class _Ended(Exception):
    """The subscriber has ended its side of the stream. This is not an error."""


class _Reader:
    """One stream to a subscriber: its position, the rows collected but not sent, and the window."""

    def __init__(
        self,
        state: Database,
        source: FolderSource,
        request: ReadRequest,
        predicate: Predicate,
        stream: BulkStream,
        served: ServedStream,
        clock: Clock,
        turns: tuple[asyncio.Semaphore, asyncio.Semaphore],
        workers: Workers,
    ) -> None:
        self._workers = workers
        self._state, self._source, self._predicate, self._stream = state, source, predicate, stream
        self._served, self._clock, self._turns = served, clock, turns
        self._bound: Any = None
        self._at = decode_position(request.position)
        self._sent = request.position
        self._window = Window(request.window)
        self._acknowledged = asyncio.Event()
        self._gathered: list[Any] = []
        self._gathered_bytes = 0
        self._moved_at: float | None = None
        self._lag_at = float("-inf")
        self._lag = Lag()

    async def run(self) -> None:
        """Send rows and receive acknowledgements until one of the two ends."""
        try:
            async with asyncio.TaskGroup() as group:
                acknowledgements = group.create_task(self._take_acknowledgements())
                await self._send()
                # The subscriber is still committing the last deliveries, and ends the stream afterwards.
                await asyncio.wait({acknowledgements}, timeout=LINGER)
                acknowledgements.cancel()
        except BaseExceptionGroup as several:
            raise_first(several, unless=_Ended)

    async def _take_acknowledgements(self) -> None:
        while (block := await self._stream.receive()) is not None:
            self._window.acknowledge(decode(block, Ack).position)
            self._served.under_way = self._window.size
            self._acknowledged.set()
        raise _Ended

    async def _send(self) -> None:
        if not await self._open():
            return
        attempts = 0
        while True:
            version, looked = self._source.changed.version, self._source.looked.version
            if self._source.removed:
                await self._end("stopped", f"the source {self._source.name} was removed: remove the subscription")
                return
            file = await self._state.read(lambda conn: store.next_file(conn, self._source.name, self._at))
            if file is None:
                await self._at_head(version)
                continue
            if file.gone is not None:
                reason = (
                    f"{file.path} ({file.rows} rows) was removed at the source before it was delivered: "
                    "put it back, or remove the subscription and add a new one"
                )
                await self._end("gap", reason)
                return
            if file.problem:
                await self._end("error", file.problem)
                return
            if file.seq != self._at.seq:
                self._at = StreamPosition(seq=file.seq, since=self._at.since)
            try:
                await self._send_file(file)
                attempts = 0
            except BadInput as error:
                await self._end("error", f"{file.path}: {error}")
                return
            except SourceFileMissing as error:
                attempts += 1
                if attempts > 3:
                    await self._end("error", f"{error.message}, but the source still lists it")
                    return
                # The next scan of the folder finds the content under another path, or marks it as removed.
                self._source.wake.set()
                await self._source.looked.after(looked, HEARTBEAT)

    async def _open(self) -> bool:
        """Wait for the schema and send it; returns False if the source was removed or the predicate does not fit."""
        while self._source.schema is None:
            version = self._source.changed.version
            if self._source.removed:
                await self._end("stopped", f"the source {self._source.name} was removed: remove the subscription")
                return False
            await self._stream.send(encode(Heartbeat(position=self._sent)))
            if self._source.schema is None:
                await self._source.changed.after(version, HEARTBEAT)
        try:
            self._bound = self._predicate.bind(self._source.schema)
        except BadInput as error:
            await self._stream.send(encode(StreamSchema(columns=self._source.columns)))
            await self._end("error", error.line)
            return False
        await self._stream.send(encode(StreamSchema(columns=self._source.columns)))
        return True

    async def _send_file(self, file: store.SourceFileRow) -> None:
        if self._moved_at is None:
            self._moved_at = self._clock.monotonic()
        async for first, batch in self._source.rows(file, self._at.row):
            async with self._turns[0], self._turns[1]:
                filtered = await self._workers.cpu(self._filter, batch)
            for count, kept in filtered:
                first += count
                self._at = StreamPosition(seq=file.seq, row=first, since=self._at.since)
                if kept is not None:
                    self._gathered.append(kept)
                    self._gathered_bytes += kept.nbytes
                if self._gathered_bytes >= PIECE // 2:
                    await self._flush()
            now = self._clock.monotonic()
            if self._moved_at is None:
                self._moved_at = now
            elif now - self._moved_at >= SEND_EVERY:
                await self._flush()
        self._at = StreamPosition(seq=file.seq + 1, since=self._at.since)

    def _filter(self, batch: Any) -> list[tuple[int, Any]]:
        """Pieces of about PIECE bytes: (number of rows, the rows that satisfy the predicate, None if none does)."""
        found = []
        for _, piece in tables.slices(batch, PIECE):
            try:
                kept = self._bound.filter(piece)
            except tables.WRITE_ERRORS as error:
                raise BadInput(
                    f"the condition cannot be evaluated: {str(error)[:200]}",
                    hint="Remove the subscription and add one with another condition.",
                ) from error
            found.append((piece.num_rows, kept if kept.num_rows else None))
        return found

    async def _at_head(self, version: int) -> None:
        """Send the collected rows and a heartbeat, then wait for new files."""
        self._lag, self._lag_at = Lag(), self._clock.monotonic()
        await self._flush()
        await self._stream.send(encode(Heartbeat(position=self._sent)))
        await self._source.changed.after(version, HEARTBEAT)

    async def _flush(self) -> None:
        """Send the collected rows with the position after them, as soon as the window allows."""
        to = encode_position(self._at)
        if to == self._sent:
            return
        batches, self._gathered, self._gathered_bytes = self._gathered, [], 0
        payload = await self._workers.cpu(formats_rows.to_ipc, batches) if batches else b""
        if len(payload) > MAX_PAYLOAD:
            raise Unsupported(
                f"a row has {len(payload)} bytes; the limit is {MAX_PAYLOAD}",
                hint="Store large values in separate files, and their names in the table.",
            )
        while not self._window.open():
            self._acknowledged.clear()
            await self._acknowledged.wait()
        count = sum(batch.num_rows for batch in batches)
        behind = await self._current_lag()
        self._window.send(to, len(payload))
        delivery = Delivery(frm=self._sent, to=to, rows=count, size=len(payload), behind=behind)
        await self._stream.send(encode(delivery))
        for start in range(0, len(payload), BLOCK):
            await self._stream.send(payload[start : start + BLOCK])
        self._sent, self._moved_at = to, None
        self._served.rows += count
        self._served.bytes += len(payload)
        self._served.under_way, self._served.behind = self._window.size, behind

    async def _current_lag(self) -> Lag:
        # Counting a long backlog is expensive, so it is done at most once per second.
        if self._clock.monotonic() - self._lag_at >= 1.0:
            at, now = self._at, self._clock.wall()
            self._lag = await self._state.read(lambda conn: store.lag(conn, self._source.name, at, now))
            self._lag_at = self._clock.monotonic()
        return self._lag

    async def _end(self, state: StopState, reason: str) -> None:
        await self._flush()
        await self._stream.send(encode(EndOfStream(state=state, reason=reason[:2000])))
        await self._stream.finish()


async def _stop(stream: BulkStream, state: StopState, reason: str) -> None:
    await stream.send(encode(EndOfStream(state=state, reason=reason[:2000])))
    await stream.finish()
