"""One folder source of this island: scans its folder, registers complete files, gives its rows to readers."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

import structlog

from island.errors import BadInput, Corrupt, IslandError, OverLimit
from island.formats import columns as column_types
from island.formats.limits import DEFAULT_LIMITS, ReadLimits
from island.kernel.codec import encode
from island.kernel.db import Database
from island.kernel.loops import EXPECTED
from island.kernel.ports import Clock, Signal, Topic
from island.kernel.processes import ProcessDied, Processes
from island.kernel.telemetry import counter
from island.kernel.work import Workers
from island.streams import core, store, tables, watched_folder
from island.streams.messages import ColumnSummary, SourceRecord
from island.streams.store import SourceFileRow, SourceRow

log = structlog.get_logger("island")

Announce = Callable[[sqlite3.Connection, str, SourceRecord], None]
"""Put a source's record into the island's own log, in a transaction on state.db."""

SETTLE = 1.0
"""Seconds, at least, that a file which does not tell its own end must rest."""

GROUP_FILES, GROUP_SECONDS = 64, 0.05
"""Complete files are journaled together, but none waits long for the next."""


FILES = counter("streams_files_journaled", "Complete files that sources of this island journaled")

LOOKS = 2
"""Sources that read new files at one time; others wait their turn."""

CHILDREN = LOOKS + 1
"""Child processes for streams: one more than sources can fill with new files, for who reads what is there."""


class SourceFileMissing(IslandError):
    """A journaled content does not stand where it was; the next look says whether it is gone."""


class DecodedFileCache:
    """The decoded rows of small files that were read lately, for all who read along; bounded in bytes.

    What was not asked for in `IDLE` seconds gives way, nothing else: were the newest to push out the
    oldest, a reader that is a little behind would find none of what it needs next.
    """

    IDLE = 5.0

    def __init__(self, clock: Clock, budget: int = 64 * 1024 * 1024) -> None:
        self._clock, self._budget, self._bytes = clock, budget, 0
        self.turns = asyncio.Semaphore(LOOKS)
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
        decoded: DecodedFileCache,
        clock: Clock,
        *,
        poll: float,
        poke: Callable[[], None],
        workers: Workers,
        processes: Processes,
        limits: ReadLimits = DEFAULT_LIMITS,
    ) -> None:
        self._workers, self._processes, self._limits = workers, processes, limits
        self.name, self.incarnation, self.root = row.name, row.incarnation, Path(row.path)
        self.columns = row.columns or b""
        self.schema = tables.schema_from_bytes(row.columns) if row.columns else None
        self.changed, self.looked = Topic(), Topic()
        self.wake = Signal()
        self.problem = self.note = ""
        self.removed = False
        self._state, self._announce, self._decoded, self._clock = state, announce, decoded, clock
        self._poll, self._settle, self._poke = poll, max(poll, SETTLE), poke
        self._known: dict[str, core.FileStat] | None = None
        self._resting: dict[str, core.UnsettledFile] = {}
        self._announced: bytes | None = None
        self._listing = 0.0
        """Seconds that the last listing of the folder took."""

    async def step(self) -> None:
        """Look, and wait for the next look. What went wrong is told in `problem` and tried again.

        Raises what nobody foresaw, once it is told: the loop that repeats this step logs it.
        """
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
        await self.wake.wait(max(self._poll, 5 * self._listing))

    async def look(self) -> None:
        """One look: journal what is complete, forget what vanished."""
        if self._known is None:
            self._known = await self._state.read(lambda conn: store.names(conn, self.name))
        began = self._clock.monotonic()
        found = await self._workers.disk(watched_folder.listing, self.root)
        self._listing = self._clock.monotonic() - began
        plan = core.scan_folder(
            found,
            self._known,
            self._resting,
            now=self._clock.monotonic(),
            wall=self._clock.wall(),
            settle=self._settle,
            tells_its_end=watched_folder.tells_its_end,
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
        group: list[watched_folder.DecodedFile] = []
        began = self._clock.monotonic()
        async with aclosing(self._outcomes(paths)) as outcomes:
            async for outcome in outcomes:
                if isinstance(outcome, watched_folder.Refused):
                    self._refuse(outcome)
                else:
                    self._accept(outcome)
                    group.append(outcome)
                late = self._clock.monotonic() - began >= GROUP_SECONDS
                if group and (late or len(group) >= GROUP_FILES):
                    await self._journal(group)
                    group, began = [], self._clock.monotonic()
        if group:
            await self._journal(group)

    async def _outcomes(
        self, paths: tuple[str, ...]
    ) -> AsyncGenerator[watched_folder.DecodedFile | watched_folder.Refused, None]:
        """What becomes of each file, in order. One that ends the process that reads it is refused; the others
        are read by another process."""
        wanted = [watched_folder.Wanted(path, self._resting[path].stat) for path in paths]
        while wanted:
            group, answered = wanted[:GROUP_FILES], 0
            try:
                async with self._decoded.turns, aclosing(self._read_group(group)) as outcomes:
                    async for outcome in outcomes:
                        answered += 1
                        yield outcome
                if answered < len(group):
                    raise ProcessDied(f"the process that read {group[answered].path} ended without an answer")
            except (OverLimit, ProcessDied) as error:
                if answered == len(group):
                    raise
                why: Literal["limit", "broken"] = "limit" if isinstance(error, OverLimit) else "broken"
                yield watched_folder.Refused(group[answered].path, why, error.message)
                answered += 1
            del wanted[:answered]

    def _read_group(
        self, group: list[watched_folder.Wanted]
    ) -> AsyncGenerator[watched_folder.DecodedFile | watched_folder.Refused, None]:
        return self._processes.stream(watched_folder.read_all, self.root, group, self.columns, self._limits)

    def _refuse(self, refused: watched_folder.Refused) -> None:
        """Remember why a file was not read: it waits until it changes, or, while it is young, for the next look."""
        path, now = refused.path, self._clock.monotonic()
        rest = self._resting[path]
        if refused.why == "changed":
            return
        text = refused.problem.replace(f"{self.root}/", "")
        if refused.why == "foreign":
            self._resting[path] = core.undecodable_file(rest, "", now, 0.0)
        elif refused.why == "broken":
            self._resting[path] = core.undecodable_file(rest, text, now, self._settle)
            if self._resting[path].tried:
                log.warning("source.unreadable", source=self.name, file=path, error=text)
        elif refused.why == "limit":
            # It was not cut short, so that waiting would help: it is not read twice.
            self._resting[path] = core.undecodable_file(rest, text, now, 0.0)
            log.warning("source.over_limit", source=self.name, file=path, error=text)
        else:  # one odd file must not take the island down; it is logged whole, once
            self._resting[path] = core.undecodable_file(rest, text, now, 0.0)
            log.error("source.bug", source=self.name, file=path, traceback=refused.detail)

    def _accept(self, reading: watched_folder.DecodedFile) -> None:
        if self.schema is None and not reading.problem:
            self.schema, self.columns = tables.schema_from_bytes(reading.columns), reading.columns

    async def _journal(self, group: list[watched_folder.DecodedFile]) -> None:
        now = self._clock.wall()

        def write(conn: sqlite3.Connection) -> list[SourceFileRow]:
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
                self._decoded.put(
                    self.incarnation, one.hash, await self._workers.cpu(tables.from_child, one.payload, self.schema)
                )
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

    async def rows(self, file: SourceFileRow, first: int) -> AsyncIterator[tuple[int, Any]]:
        """(number of its first row, batch) of a journaled file from row `first` on.

        Raises `SourceFileMissing` where the content is not where the journal says: what was yielded before
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

    async def _from_disk(self, file: SourceFileRow, first: int) -> AsyncIterator[tuple[int, Any]]:
        path, stat = await self._locate(file)
        start, size = first, 0
        keep: list[Any] = []
        ended = False
        while not ended:
            batches, ended = await self._portion(file, watched_folder.Wanted(path, stat), start)
            for batch in batches:
                size += batch.nbytes
                keep = [*keep, batch] if size <= watched_folder.KEEP_BYTES else []
                yield start, batch
                start += batch.num_rows
        if start != file.rows:
            raise SourceFileMissing(f"{path} has {start} rows now and had {file.rows} when it arrived")
        if keep and first == 0:
            self._decoded.put(self.incarnation, file.hash, keep)

    async def _portion(self, file: SourceFileRow, wanted: watched_folder.Wanted, first: int) -> tuple[list[Any], bool]:
        """Some rows from `first` on, and whether they are the last.

        Raises `SourceFileMissing` where they are not the journaled ones.
        """
        try:
            portion = await self._processes.run(
                watched_folder.read_portion, self.root, wanted, self.columns, first, self._limits, near=file.hash
            )
        except OverLimit:
            raise
        except (Corrupt, BadInput, ProcessDied, OSError) as error:
            raise SourceFileMissing(f"{wanted.path} cannot be read any more: {error}") from error
        # Only what was read before anything changed is the content that was journaled.
        if watched_folder.stat_of(self.root / wanted.path) != wanted.stat:
            raise SourceFileMissing(f"{wanted.path} changed while it was read")
        batches = await self._workers.cpu(tables.from_child, portion.payload, self.schema)
        if not batches and not portion.ended:
            raise SourceFileMissing(f"{wanted.path} gives no more rows at row {first}")
        return batches, portion.ended

    async def _locate(self, file: SourceFileRow) -> tuple[str, core.FileStat]:
        for path, stat in await self._state.read(lambda conn: store.locations(conn, self.name, file.hash)):
            if watched_folder.stat_of(self.root / path) == stat:
                return path, stat
        raise SourceFileMissing(f"{file.path} is not where it was")


def columns_of(schema: Any) -> tuple[ColumnSummary, ...]:
    """Names and types of columns as a record lists them, fields of records by dotted path."""
    listed = column_types.of_schema(schema)[:1000]
    return tuple(ColumnSummary(name=column.name[:256], type=column.type[:256]) for column in listed)
