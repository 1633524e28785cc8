"""One folder source of this island: looks at its folder, journals what is complete, gives its rows to readers."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import structlog

from island.errors import BadInput, Changed, Corrupt, IslandError, Unsupported
from island.formats import columns as column_types
from island.kernel.codec import encode
from island.kernel.db import Database
from island.kernel.loops import EXPECTED
from island.kernel.ports import Clock, Signal, Topic
from island.kernel.telemetry import counter
from island.kernel.work import Workers
from island.streams import core, folder, store, tables
from island.streams.messages import ColumnNote, SourceRecord
from island.streams.store import FileRow, SourceRow

log = structlog.get_logger("island")

Announce = Callable[[sqlite3.Connection, str, SourceRecord], None]
"""Put a source's record into the island's own log, in a transaction on state.db."""

SETTLE = 1.0
"""Seconds, at least, that a file which does not tell its own end must rest."""

GROUP_FILES, GROUP_SECONDS = 64, 0.05
"""Complete files are journaled together, but none waits long for the next."""


FILES = counter("streams_files_journaled", "Complete files that sources of this island journaled")

DECODERS = 2
"""Files that are decoded for readers at one time; others wait their turn."""


class Missing(IslandError):
    """A journaled content does not stand where it was; the next look says whether it is gone."""


class Decoded:
    """The decoded rows of small files that were read lately, for all who read along; bounded in bytes.

    What was not asked for in `IDLE` seconds gives way, nothing else: were the newest to push out the
    oldest, a reader that is a little behind would find none of what it needs next.
    """

    IDLE = 5.0

    def __init__(self, clock: Clock, budget: int = 64 * 1024 * 1024) -> None:
        self._clock, self._budget, self._bytes = clock, budget, 0
        self.turns = asyncio.Semaphore(DECODERS)
        self._files: OrderedDict[tuple[str, str], tuple[list[Any], int, float]] = OrderedDict()

    def put(self, incarnation: str, digest: str, batches: list[Any]) -> None:
        """Keep the rows of one content if there is room."""
        key, now = (incarnation, digest), self._clock.monotonic()
        size = sum(batch.nbytes for batch in batches)
        if key in self._files or size > self._budget // 4:
            return
        while self._bytes + size > self._budget:
            oldest, (_, freed, used) = next(iter(self._files.items()))
            if now - used < self.IDLE:
                return
            del self._files[oldest]
            self._bytes -= freed
        self._files[key] = (batches, size, now)
        self._bytes += size

    def get(self, incarnation: str, digest: str) -> list[Any] | None:
        """The rows of one content, if they are kept."""
        key = (incarnation, digest)
        if (found := self._files.get(key)) is None:
            return None
        batches, size, _ = found
        self._files[key] = (batches, size, self._clock.monotonic())
        self._files.move_to_end(key)
        return batches


class FolderSource:
    """A watched folder. `changed` is touched when files were journaled, `looked` after every look."""

    def __init__(
        self,
        row: SourceRow,
        state: Database,
        announce: Announce,
        decoded: Decoded,
        clock: Clock,
        *,
        poll: float,
        poke: Callable[[], None],
        workers: Workers,
    ) -> None:
        self._workers = workers
        self.name, self.incarnation, self.root = row.name, row.incarnation, Path(row.path)
        self.columns = row.columns or b""
        self.schema = tables.schema_from_bytes(row.columns) if row.columns else None
        self.changed, self.looked = Topic(), Topic()
        self.wake = Signal()
        self.problem = self.note = ""
        self.removed = False
        self._state, self._announce, self._decoded, self._clock = state, announce, decoded, clock
        self._poll, self._settle, self._poke = poll, max(poll, SETTLE), poke
        self._known: dict[str, core.Stat] | None = None
        self._resting: dict[str, core.Resting] = {}
        self._announced: bytes | None = None

    async def step(self) -> None:
        """Look, and wait for the next look. What went wrong is told in `problem` and tried again.

        Raises what nobody foresaw, once it is told: the loop that repeats this step logs it.
        """
        began = self._clock.monotonic()
        outside, fault = "", None
        try:
            await self.look()
        except EXPECTED as error:
            outside = error.message if isinstance(error, IslandError) else str(error)
            log.warning("source.look_failed", source=self.name, error=outside)
        except Exception as error:  # noqa: BLE001 - raised below
            outside, fault = f"a fault in island itself: {type(error).__name__}: {error}", error
        try:
            await self._tell(outside)
        except EXPECTED as error:
            log.warning("source.not_announced", source=self.name, error=str(error))
        self.looked.touch()
        if fault is not None:
            raise fault
        # A folder that takes long to list is not listed all the time.
        took = self._clock.monotonic() - began
        await self.wake.wait(max(self._poll, 5 * took))

    async def look(self) -> None:
        """One look: journal what is complete, forget what vanished."""
        if self._known is None:
            self._known = await self._state.read(lambda conn: store.names(conn, self.name))
        found = await self._workers.disk(folder.listing, self.root)
        plan = core.look(
            found,
            self._known,
            self._resting,
            now=self._clock.monotonic(),
            wall=self._clock.wall(),
            settle=self._settle,
            tells_its_end=folder.tells_its_end,
        )
        self._resting = dict(plan.resting)
        # New names first: a content that was renamed is never without one.
        await self._read_all(plan.read)
        if plan.vanished:
            now = self._clock.wall()
            await self._state.write(lambda conn: store.forget_names(conn, self.name, plan.vanished, now))
            for path in plan.vanished:
                self._known.pop(path, None)
            log.info("source.vanished", source=self.name, files=len(plan.vanished))
            self.changed.touch()

    async def _read_all(self, paths: tuple[str, ...]) -> None:
        group: list[folder.Reading] = []
        began = self._clock.monotonic()
        for path in paths:
            reading = await self._read(path)
            if reading is not None:
                group.append(reading)
            late = self._clock.monotonic() - began >= GROUP_SECONDS
            if group and (late or len(group) >= GROUP_FILES):
                await self._journal(group)
                group, began = [], self._clock.monotonic()
        if group:
            await self._journal(group)

    async def _read(self, path: str) -> folder.Reading | None:
        rest = self._resting[path]
        try:
            reading = await self._workers.cpu(folder.read, self.root, path, rest.stat, self.schema)
        except Changed:
            return None
        except (Corrupt, Unsupported, BadInput) as error:
            if isinstance(error, Unsupported) and not folder.is_known_name(path):
                # A README beside the data is not a problem.
                self._resting[path] = core.failed(rest, "", self._clock.monotonic(), 0.0)
                return None
            text = error.message.replace(f"{self.root}/", "")
            self._resting[path] = core.failed(rest, text, self._clock.monotonic(), self._settle)
            if self._resting[path].tried:
                log.warning("source.unreadable", source=self.name, file=path, error=text)
            return None
        except EXPECTED:
            raise
        except Exception as error:  # one odd file must not take the island down; it is logged whole, once
            log.exception("source.bug", source=self.name, file=path)
            text = f"{path} could not be read: {type(error).__name__}"
            self._resting[path] = core.failed(rest, text, self._clock.monotonic(), 0.0)
            return None
        if self.schema is None and not reading.problem:
            self.schema, self.columns = reading.schema, tables.schema_to_bytes(reading.schema)
        return reading

    async def _journal(self, group: list[folder.Reading]) -> None:
        now = self._clock.wall()

        def write(conn: sqlite3.Connection) -> list[FileRow]:
            new = []
            for one in group:
                if not one.problem:
                    store.set_columns(conn, self.name, one.format, self.columns)
                row = store.journal_file(
                    conn,
                    self.name,
                    one.path,
                    one.stat,
                    digest=one.hash,
                    format_=one.format,
                    rows=one.rows,
                    now=now,
                    problem=one.problem,
                    note=one.note,
                )
                new += [row] if row else []
            return new

        new = await self._state.write(write)
        for one in group:
            if one.kept and not one.problem:
                self._decoded.put(self.incarnation, one.hash, one.batches)
            self._resting.pop(one.path, None)
            if self._known is not None:
                self._known[one.path] = one.stat
        if new:
            FILES.inc(len(new))
            log.info("source.arrived", source=self.name, files=len(new), rows=sum(row.rows for row in new))
        self.changed.touch()

    async def _tell(self, outside: str) -> None:
        """Bring the gossiped record and `problem` up to date, where anything changed."""

        def read(conn: sqlite3.Connection) -> tuple[SourceRow | None, list[str], list[str]]:
            texts = store.file_texts(conn, self.name, "problem"), store.file_texts(conn, self.name, "note")
            return store.source(conn, self.name), *texts

        row, problems, notes = await self._state.read(read)
        if row is None:
            return
        waiting = [rest.problem for rest in self._resting.values() if rest.problem]
        self.problem = core.shorten(([outside] if outside else []) + waiting + problems)
        self.note = core.shorten(notes)
        record = self.record(row)
        key = encode(record)
        if key == self._announced:
            return
        await self._state.write(lambda conn: self._announce(conn, self.name, record))
        self._announced = key
        self._poke()

    def record(self, row: SourceRow) -> SourceRecord:
        """What the archipelago is told of this source."""
        return SourceRecord(
            kind=row.kind,
            incarnation=row.incarnation,
            format=row.format,
            columns=columns_of(self.schema) if self.schema is not None else (),
            files=row.files,
            rows=row.rows,
            bytes=row.bytes,
            added=row.added,
            updated=row.updated,
            problem=self.problem,
            note=self.note,
        )

    async def rows(self, file: FileRow, first: int) -> AsyncIterator[tuple[int, Any]]:
        """(number of its first row, batch) of a journaled file from row `first` on.

        Raises `Missing` where the content is not where the journal says: what was yielded before
        is the journaled content all the same.
        """
        kept = self._decoded.get(self.incarnation, file.hash)
        if kept is None:
            async for start, batch in self._from_disk(file, first):
                yield start, batch
            return
        start = 0
        for batch in kept:
            if start + batch.num_rows > first:
                skip = max(0, first - start)
                yield start + skip, batch.slice(skip)
            start += batch.num_rows

    async def _from_disk(self, file: FileRow, first: int) -> AsyncIterator[tuple[int, Any]]:
        path, stat = await self._locate(file)
        full, schema = self.root / path, self.schema
        try:
            table = await self._workers.disk(tables.open_table, full)
            start, size = 0, 0
            keep: list[Any] = []
            while (batch := await self._next(table, schema, path)) is not None:
                # Only what was read before anything changed is the content that was journaled.
                if folder.stat_of(full) != stat:
                    raise Missing(f"{path} changed while it was read")
                size += batch.nbytes
                keep = [*keep, batch] if size <= folder.KEEP_BYTES else []
                if start + batch.num_rows > first:
                    skip = max(0, first - start)
                    yield start + skip, batch.slice(skip)
                start += batch.num_rows
        except (Corrupt, BadInput, OSError) as error:
            raise Missing(f"{path} cannot be read any more: {error}") from error
        if start != file.rows:
            raise Missing(f"{path} has {start} rows now and had {file.rows} when it arrived")
        if keep:
            self._decoded.put(self.incarnation, file.hash, keep)

    async def _next(self, table: tables.Table, schema: Any, path: str) -> Any | None:
        async with self._decoded.turns:
            return await self._workers.cpu(_next_fitted, table, schema, path)

    async def _locate(self, file: FileRow) -> tuple[str, core.Stat]:
        for path, stat in await self._state.read(lambda conn: store.locations(conn, self.name, file.hash)):
            if folder.stat_of(self.root / path) == stat:
                return path, stat
        raise Missing(f"{file.path} is not where it was")


def _next_fitted(table: tables.Table, schema: Any, path: str) -> Any | None:
    batch = next(table.batches, None)
    return None if batch is None else tables.fit(batch, schema, path)


def columns_of(schema: Any) -> tuple[ColumnNote, ...]:
    """Names and types of columns as a record lists them, fields of records by dotted path."""
    listed = column_types.of_schema(schema)[:1000]
    return tuple(ColumnNote(name=column.name[:256], type=column.type[:256]) for column in listed)
