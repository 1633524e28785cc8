"""A folder source of this island: scans its folder, adds complete files to the source journal, returns their rows."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

import structlog

from island.errors import BadInput, Corrupt, FilesChanged, IslandError, OverLimit
from island.formats import columns as column_types
from island.formats.limits import DEFAULT_LIMITS, ReadLimits
from island.kernel.codec import encode
from island.kernel.db import Database
from island.kernel.loops import EXPECTED
from island.kernel.ports import Clock, Signal, Topic
from island.kernel.processes import ProcessDied, Processes, Stalled
from island.kernel.telemetry import counter
from island.kernel.work import Workers
from island.streams import core, store, tables, watched_folder
from island.streams.messages import ColumnSummary, SourceRecord
from island.streams.store import SourceFileRow, SourceRow

log = structlog.get_logger("island")

Announce = Callable[[sqlite3.Connection, str, SourceRecord], None]
"""Writes a source's record to the island's log, in a transaction on state.db."""

SETTLE = 1.0
"""Minimum number of seconds that a file without an end marker must be unchanged before it is read."""

HANGS_SECONDS = 300.0
"""Seconds after which a folder that is still being listed has a problem. A listing of a million files takes less."""

LONGEST_PAUSE = 600.0
"""Maximum number of seconds between two scans of a folder that takes long to list, or did not answer for a time."""

REPEAT_S = 3600.0
"""Seconds after which an error of a scan that lasts is logged again."""

GROUP_FILES, GROUP_SECONDS = 64, 0.05
"""Complete files are added in groups: at most this many files, collected for at most this many seconds."""


FILES = counter("stream_files_journaled", "Complete files that sources of this island added to their source journals")

LOOKS = 2
"""Maximum number of sources that read new files concurrently. Others wait."""

CHILDREN = LOOKS + 1
"""Child processes for streams: one more than can be busy with new files, so that one is free for subscribers."""


class SourceFileMissing(IslandError):
    """A file of the source journal is missing or changed on disk. The next scan shows whether it was removed."""


class DecodedFileCache:
    """Cache of the decoded rows of small files that were read recently, shared by all readers; bounded in bytes.

    Only entries that were not used for `IDLE` seconds are evicted. If new entries evicted old
    ones, a reader that is slightly behind would never find the entries that it needs next.
    """

    IDLE = 5.0

    def __init__(self, clock: Clock, budget: int = 64 * 1024 * 1024) -> None:
        self._clock, self._budget, self._bytes = clock, budget, 0
        self.turns = asyncio.Semaphore(LOOKS)
        self._files: OrderedDict[tuple[str, str], tuple[list[Any], int, float]] = OrderedDict()

    def put(self, incarnation: str, digest: str, batches: list[Any]) -> None:
        """Add the rows of one content, if there is space."""
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
        """The rows of one content, or None if they are not in the cache."""
        key = (incarnation, digest)
        if (found := self._files.get(key)) is None:
            return None
        batches, size, _ = found
        self._files[key] = (batches, size, self._clock.monotonic())
        self._files.move_to_end(key)
        return batches


class FolderSource:
    """A watched folder. `changed` is touched when files were added or removed, `looked` after every scan."""

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
        self._outside: list[str] = []
        """A problem for each symbolic link that leads out of the folder."""
        self._logged: dict[str, tuple[str, float]] = {}
        """The last error that was logged, and when, for each event of a scan that fails."""
        self._listing = 0.0
        """Seconds that the last listing of the folder took."""

    async def step(self) -> None:
        """Scan the folder once, publish the record, and wait until the next scan is due.

        A failure is shown in `problem`, and the next scan tries again. Unexpected exceptions are
        shown too, then raised; the loop that repeats this step logs them.
        """
        outside, fault = "", None
        try:
            await self.look()
        except EXPECTED as error:
            outside = error.message if isinstance(error, IslandError) else str(error)
            self._log_failure("source.scan_failed", outside)
        except Exception as error:  # noqa: BLE001 - raised below
            outside, fault = f"internal error: {type(error).__name__}: {error}", error
        else:
            if self._logged.pop("source.scan_failed", None) is not None:
                log.info("source.scan_works", source=self.name)
        await self._try_to_publish(outside)
        self.looked.touch()
        if fault is not None:
            raise fault
        # A folder that takes long to list is listed less often.
        await self.wake.wait(max(self._poll, min(5 * self._listing, LONGEST_PAUSE)))

    def _log_failure(self, event: str, error: str) -> None:
        """Log an error of a scan, which may occur every second, when it is new and once an hour while it lasts."""
        now = self._clock.monotonic()
        before, logged = self._logged.get(event, ("", now))
        if error != before or now - logged >= REPEAT_S:
            self._logged[event] = error, now
            log.warning(event, source=self.name, error=error)

    async def look(self) -> None:
        """Scan the folder once: add complete files to the source journal, and mark missing ones as removed."""
        if self._known is None:
            self._known = await self._state.read(lambda conn: store.names(conn, self.name))
        found = await self._list()
        self._outside = [f"{path} is a symbolic link that leads out of the folder" for path in found.outside]
        plan = core.scan_folder(
            found.files,
            self._known,
            self._resting,
            now=self._clock.monotonic(),
            wall=self._clock.wall(),
            settle=self._settle,
            tells_its_end=watched_folder.tells_its_end,
        )
        self._resting = dict(plan.resting)
        # New paths are added first, so that the content of a renamed file always has a path.
        await self._read_all(plan.read)
        if plan.vanished:
            now = self._clock.wall()
            await self._state.write(lambda conn: store.forget_names(conn, self.name, plan.vanished, now))
            for path in plan.vanished:
                self._known.pop(path, None)
            log.info("source.files_removed", source=self.name, files=len(plan.vanished))
            self.changed.touch()

    async def _list(self) -> watched_folder.FolderListing:
        """List the folder. While it does not answer, this waits, and the problem is published."""
        began = self._clock.monotonic()
        listing = self._workers.folder(str(self.root), watched_folder.listing, self.root)
        try:
            if not (await asyncio.wait([listing], timeout=HANGS_SECONDS))[0]:
                hangs = f"folder {self.root} does not answer; check its mount"
                self._log_failure("source.scan_failed", hangs)
                await self._try_to_publish(hangs)
            found = await listing
        finally:
            listing.cancel()
        self._listing = self._clock.monotonic() - began
        return found

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
        """Read files in child processes; yields the result for each file, in order.

        If a process dies or exceeds a limit, the file that it was reading is refused. Another process
        reads the remaining files.
        """
        wanted = [watched_folder.Wanted(path, self._resting[path].stat) for path in paths]
        while wanted:
            group, answered = wanted[:GROUP_FILES], 0
            try:
                async with self._decoded.turns, aclosing(self._read_group(group)) as outcomes:
                    async for outcome in outcomes:
                        answered += 1
                        yield outcome
                if answered < len(group):
                    raise ProcessDied(f"the process that read {group[answered].path} ended without a result")
            except (OverLimit, ProcessDied) as error:
                if answered == len(group):
                    raise
                yield watched_folder.Refused(group[answered].path, _why(error), error.message)
                answered += 1
            del wanted[:answered]

    def _read_group(
        self, group: list[watched_folder.Wanted]
    ) -> AsyncGenerator[watched_folder.DecodedFile | watched_folder.Refused, None]:
        return self._processes.stream(watched_folder.read_all, self.root, group, self.columns, self._limits)

    def _refuse(self, refused: watched_folder.Refused) -> None:
        """Store why a file was refused.

        It is read again when it changes, at the next scan if it has not settled, or after a pause if
        reading it failed for a reason that may not be the file's.
        """
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
        elif refused.why in ("failed", "crashed"):
            rest = self._resting[path] = core.failed_file(rest, text, now, crashed=refused.why == "crashed")
            log.warning(
                "source.read_failed",
                source=self.name,
                file=path,
                error=text,
                failures=rest.failures,
                again=not rest.tried,
            )
        elif refused.why == "limit":
            # The file is not truncated, so waiting does not help: it is not read again before it changes.
            self._resting[path] = core.undecodable_file(rest, text, now, 0.0)
            log.warning("source.over_limit", source=self.name, file=path, error=text)
        else:  # an unexpected error with one file must not stop the others; it is logged once, with its traceback
            self._resting[path] = core.undecodable_file(rest, text, now, 0.0)
            log.error("source.unexpected_error", source=self.name, file=path, traceback=refused.detail)

    def _accept(self, reading: watched_folder.DecodedFile) -> None:
        if self.schema is None and not reading.problem:
            self.schema, self.columns = tables.schema_from_bytes(reading.columns), reading.columns

    async def _journal(self, group: list[watched_folder.DecodedFile]) -> None:
        now = self._clock.wall()

        def write(conn: sqlite3.Connection) -> list[SourceFileRow]:
            new = []
            for decoded in group:
                if not decoded.problem:
                    store.set_columns(conn, self.name, decoded.format, self.columns)
                row = store.journal_file(
                    conn,
                    self.name,
                    decoded.path,
                    decoded.stat,
                    digest=decoded.hash,
                    format_=decoded.format,
                    rows=decoded.rows,
                    now=now,
                    problem=decoded.problem,
                    note=decoded.note,
                )
                new += [row] if row else []
            return new

        new = await self._state.write(write)
        for decoded in group:
            if decoded.kept and not decoded.problem:
                batches = await self._workers.cpu(tables.from_child, decoded.payload, self.schema)
                self._decoded.put(self.incarnation, decoded.hash, batches)
            self._resting.pop(decoded.path, None)
            if self._known is not None:
                self._known[decoded.path] = decoded.stat
        if new:
            FILES.inc(len(new))
            log.info("source.files_added", source=self.name, files=len(new), rows=sum(row.rows for row in new))
        self.changed.touch()

    async def _try_to_publish(self, outside: str) -> None:
        try:
            await self._publish_record(outside)
        except EXPECTED as error:
            self._log_failure("source.announce_failed", str(error))
        else:
            self._logged.pop("source.announce_failed", None)

    async def _publish_record(self, outside: str) -> None:
        """Update `problem` and `note`, and publish the gossip record if it has changed.

        `outside` is a problem of the scan as a whole, or empty.
        """

        def read(conn: sqlite3.Connection) -> tuple[SourceRow | None, list[str], list[str]]:
            texts = store.file_texts(conn, self.name, "problem"), store.file_texts(conn, self.name, "note")
            return store.source(conn, self.name), *texts

        row, problems, notes = await self._state.read(read)
        if row is None:
            return
        waiting = [rest.problem for rest in self._resting.values() if rest.problem]
        self.problem = core.shorten(([outside] if outside else []) + self._outside + waiting + problems)
        self.note = core.shorten(notes)
        record = self.record(row)
        key = encode(record)
        if key == self._announced:
            return
        await self._state.write(lambda conn: self._announce(conn, self.name, record))
        self._announced = key
        self._poke()

    def record(self, row: SourceRow) -> SourceRecord:
        """The gossip record of this source."""
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
        """The rows of a file from row `first` on: (number of the first row, batch).

        Raises `SourceFileMissing` if the file is missing or has changed. Batches that were yielded
        before the error are valid.
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
            raise SourceFileMissing(f"{path} has {start} rows, but had {file.rows} when it arrived")
        if keep and first == 0:
            self._decoded.put(self.incarnation, file.hash, keep)

    async def _portion(self, file: SourceFileRow, wanted: watched_folder.Wanted, first: int) -> tuple[list[Any], bool]:
        """Rows of a file from `first` on, about `watched_folder.PORTION_BYTES`, and whether they are the last ones.

        Raises `SourceFileMissing` if the file is missing or has changed, `OverLimit` over a limit.
        """
        try:
            portion = await self._processes.run(
                watched_folder.read_portion, self.root, wanted, self.columns, first, self._limits, near=file.hash
            )
        except OverLimit:
            raise
        except (Corrupt, BadInput, FilesChanged, ProcessDied, OSError) as error:
            raise SourceFileMissing(f"{wanted.path} can no longer be read: {error}") from error
        # The rows are valid only if the file is still unchanged after they were read.
        if await self._stat(wanted.path) != wanted.stat:
            raise SourceFileMissing(f"{wanted.path} changed while it was read")
        batches = await self._workers.cpu(tables.from_child, portion.payload, self.schema)
        if not batches and not portion.ended:
            raise SourceFileMissing(f"{wanted.path} returned no rows at row {first}, before its end")
        return batches, portion.ended

    async def _locate(self, file: SourceFileRow) -> tuple[str, core.FileStat]:
        for path, stat in await self._state.read(lambda conn: store.locations(conn, self.name, file.hash)):
            if await self._stat(path) == stat:
                return path, stat
        raise SourceFileMissing(f"{file.path} is missing or was changed")

    async def _stat(self, path: str) -> core.FileStat | None:
        return await self._workers.folder(str(self.root), watched_folder.stat_of, self.root / path)


def _why(error: OverLimit | ProcessDied) -> Literal["crashed", "failed"]:
    """Whether the file is probably the reason why the process that read it ended, or this machine."""
    crashed = error.crashed if isinstance(error, ProcessDied) else not isinstance(error, Stalled)
    return "crashed" if crashed else "failed"


def columns_of(schema: Any) -> tuple[ColumnSummary, ...]:
    """Names and types of the columns of a schema for a gossip record. Record fields have dotted paths."""
    listed = column_types.of_schema(schema)[:1000]
    return tuple(ColumnSummary(name=column.name[:256], type=column.type[:256]) for column in listed)
