"""A watched folder on disk: lists its files, and reads them completely or in portions.

All functions block. Folders are listed in threads. Files are not trusted, and are read in child
processes. Other accounts may write to the folder, so no file outside of it is read.
"""

from __future__ import annotations

import os
import traceback
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import blake3
import msgspec

from island.errors import BadInput, Corrupt, FilesChanged, IslandError, OverLimit, Unreadable, Unsupported
from island.formats import confined, files
from island.formats.limits import ReadLimits
from island.kernel import process_messages
from island.kernel.process_messages import Emit
from island.streams import tables
from island.streams.core import FileStat

MAX_FILES = 200_000
KEEP_BYTES = 16 * 1024 * 1024
"""Maximum size of the decoded rows of a file that are kept in memory for its readers."""

PORTION_BYTES = 8 * 1024 * 1024
"""Approximate size of the portions in which larger files are read."""

MAX_PAUSED = 4
"""Maximum number of files that a child process keeps open between two portions."""
_HASH_BLOCK = 1024 * 1024


class Wanted(msgspec.Struct, frozen=True):
    """A file to be read, and its FileStat, which must not change while it is read."""

    path: str
    stat: FileStat


class DecodedFile(msgspec.Struct, frozen=True, tag="read"):
    """A complete file: the hash of its content, its number of rows, and the rows themselves if they are few.

    `columns` is its schema as bytes if the source has no schema yet, else empty. `payload` (see
    `tables.from_child`) has the rows if `kept` is true. `problem` is set if its schema does not fit
    that of the source.
    """

    path: str
    stat: FileStat
    hash: str
    format: str
    columns: bytes
    rows: int = 0
    note: str = ""
    problem: str = ""
    kept: bool = False
    payload: bytes = b""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """A file that could not be read.

    `why`: it `changed` while it was read; is `foreign` (neither its name nor its content is that of a
    data file); is `broken`; exceeds a `limit`; caused an unexpected error (`bug`), with the traceback in
    `detail`; the process that read it `crashed` or exceeded a limit; or reading it `failed` because of
    this machine: the process was killed, or the system cannot read the file.
    """

    path: str
    why: Literal["changed", "foreign", "broken", "limit", "bug", "crashed", "failed"]
    problem: str = ""
    detail: str = ""


class Portion(msgspec.Struct, frozen=True):
    """Consecutive rows of a file (see `tables.from_child`), and whether the file ends after them."""

    payload: bytes
    ended: bool


def stat_of(path: Path) -> FileStat | None:
    """The FileStat of a file, or None if it does not exist."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return FileStat(found.st_size, found.st_mtime_ns, found.st_ino)


class FolderListing(NamedTuple):
    """The files of a folder, and the symbolic links that lead out of it, both by relative POSIX path."""

    files: dict[str, FileStat]
    outside: list[str]


def listing(root: Path) -> FolderListing:
    """All files below a folder that may be data.

    Hidden and temporary files and folders are skipped, and symbolic links to folders are not
    followed. Raises BadInput if the folder does not exist, cannot be read, or contains more than
    MAX_FILES files; in these cases no file counts as removed.
    """
    found: dict[str, FileStat] = {}
    outside: list[str] = []

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError) or Path(error.filename) == root:
            raise BadInput(
                f"folder {error.filename} cannot be read: {error.strerror}",
                hint="Mount it or correct its permissions. No data are lost.",
            ) from error

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if files.is_data_name(name)]
        for name in names:
            if not files.is_data_name(name) or not _is_text(name):
                continue
            full = Path(folder, name)
            if full.is_symlink() and confined.leads_outside(full, root):
                outside.append(full.relative_to(root).as_posix())
            elif (stat := stat_of(full)) is not None and full.is_file():
                found[full.relative_to(root).as_posix()] = stat
        if len(found) + len(outside) > MAX_FILES:
            raise BadInput(
                f"{root} contains more than {MAX_FILES} files", hint="Watch its subfolders as separate sources."
            )
    return FolderListing(found, outside)


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def tells_its_end(path: str) -> bool:
    """Whether the format of a file with this name has an end marker, so that an incomplete file is detected."""
    return files.format_by_name(path) == "parquet"


def is_known_name(path: str) -> bool:
    """Whether the suffix of a path is that of a format. Other files are data if their first bytes are."""
    return files.format_by_name(path) is not None


def hash_file(path: Path) -> str:
    """The BLAKE3 hash of a file's content."""
    hasher = blake3.blake3()
    with files.open_binary(path) as file:
        while block := file.read(_HASH_BLOCK):
            hasher.update(block)
            process_messages.alive()
    return hasher.hexdigest()


def read_all(
    emit: Emit[DecodedFile | Refused], root: Path, wanted: list[Wanted], columns: bytes, limits: ReadLimits
) -> None:
    """Hash and decode files completely. Their rows are converted to the schema `columns`, or to that of the first file.

    For each file, in order, a DecodedFile or Refused is emitted.
    """
    schema = tables.schema_from_bytes(columns) if columns else None
    for file in wanted:
        try:
            reading = read_file(root, file, schema, limits)
        except FilesChanged:
            emit(Refused(file.path, "changed"))
        except Unreadable as error:
            emit(Refused(file.path, "failed", error.message))
        except OSError as error:
            emit(Refused(file.path, "failed", f"{file.path} cannot be read: {error.strerror or error}"))
        except (Corrupt, Unsupported, BadInput) as error:
            # Other files in the folder, such as a README, are not a problem.
            foreign = isinstance(error, Unsupported) and not is_known_name(file.path)
            why = "foreign" if foreign else "limit" if isinstance(error, OverLimit) else "broken"
            emit(Refused(file.path, why, error.message))  # type: ignore[arg-type]  # mypy takes it for a plain str
        except (IslandError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - the other files must still be read; the parent logs the traceback
            text = f"{file.path} could not be read: {type(error).__name__}"
            emit(Refused(file.path, "bug", text, traceback.format_exc()[-4000:]))
        else:
            if schema is None and not reading.problem:
                schema = tables.schema_from_bytes(reading.columns)
            emit(reading)


def read_file(root: Path, file: Wanted, schema: Any | None, limits: ReadLimits) -> DecodedFile:
    """Hash and decode one file completely, and convert its rows to `schema`, if it is not None.

    Raises Corrupt, Unsupported or BadInput if it cannot be decoded, `FilesChanged` if it changed
    while it was read. An incompatible schema does not raise; it is the `problem` of the result.
    """
    with _opened(root, file) as full:
        limits.begin(full)
        hashed = hash_file(full)
        table = tables.open_table(full, limits)
        target = table.schema if schema is None else schema
        # The columns of a source were checked when its first file was read.
        columns = tables.schema_to_bytes(target) if schema is None else b""
        reading = DecodedFile(file.path, file.stat, hashed, table.format, columns)
        try:
            note = tables.check_fits(table.schema, target, file.path)
            rows, batches = _count(table, target, file.path)
        except tables.IncompatibleColumns as error:
            return msgspec.structs.replace(reading, problem=error.message)
    if stat_of(root / file.path) != file.stat:
        raise FilesChanged(f"{file.path} changed while it was read")
    payload = b"" if batches is None else tables.to_parent(batches, target)
    return msgspec.structs.replace(reading, note=note, rows=rows, kept=batches is not None, payload=payload)


@contextmanager
def _opened(root: Path, file: Wanted) -> Iterator[Path]:
    """Open the file that was listed, and no other. Raises as `confined.opened_below` does."""
    with confined.opened_below(root, file.path) as opened:
        if stat_of(opened) != file.stat:
            raise FilesChanged(f"{file.path} changed before it was read")
        yield opened


def _count(table: tables.OpenTable, schema: Any, path: str) -> tuple[int, list[Any] | None]:
    """The number of rows, and the rows if they take at most KEEP_BYTES. Raises `IncompatibleColumns`."""
    rows = size = 0
    batches: list[Any] | None = []
    for batch in table.batches:
        rows += batch.num_rows
        fitted = tables.fit(batch, schema, path)
        size += fitted.nbytes
        if size > KEEP_BYTES:
            batches = None
        if batches is not None:
            batches.append(fitted)
    return rows, batches


_paused: OrderedDict[tuple[str, FileStat, bytes, int], Iterator[Any]] = OrderedDict()
"""Open files in this process, by position, so that the next portion need not be read from the start of the file."""


def read_portion(root: Path, file: Wanted, columns: bytes, first: int, limits: ReadLimits) -> Portion:
    """The rows of a file from row `first` on, about `PORTION_BYTES` of them.

    Raises Corrupt, Unsupported or BadInput if they cannot be decoded, `FilesChanged` if it changed.
    """
    full, schema = root / file.path, tables.schema_from_bytes(columns)
    limits.begin(full)
    at = (str(full), file.stat, columns)
    pieces = _paused.pop((*at, first), None) or _pieces(root, file, schema, first, limits)
    found: list[Any] = []
    size, ended = 0, False
    while size < PORTION_BYTES and not ended:
        piece = next(pieces, None)
        if piece is None:
            ended = True
        else:
            found.append(piece)
            size += piece.nbytes
    if not ended:
        _paused[(*at, first + sum(piece.num_rows for piece in found))] = pieces
        if len(_paused) > MAX_PAUSED:
            _paused.popitem(last=False)
    return Portion(tables.to_parent(found, schema), ended)


def _pieces(root: Path, file: Wanted, schema: Any, first: int, limits: ReadLimits) -> Iterator[Any]:
    """The rows from `first` on, in pieces of about `tables.BATCH_BYTES`. The file stays open until the last one."""
    start = 0
    with _opened(root, file) as full:
        for batch in tables.open_table(full, limits).batches:
            skip = max(0, first - start)
            start += batch.num_rows
            if skip < batch.num_rows:
                fitted = tables.fit(batch.slice(skip), schema, file.path)
                for _, piece in tables.slices(fitted, tables.BATCH_BYTES):
                    yield piece
