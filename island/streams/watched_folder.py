"""A watched folder on disk: what is in it, and its files read whole or by portions.

Blocking. Folders are listed in threads; files, which others made, are read in child processes.
"""

from __future__ import annotations

import os
import traceback
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import blake3
import msgspec

from island.errors import BadInput, Corrupt, FilesChanged, OverLimit, Unsupported
from island.formats import files
from island.formats.limits import ReadLimits
from island.kernel import processes
from island.kernel.loops import EXPECTED
from island.kernel.processes import Emit
from island.streams import tables
from island.streams.core import FileStat

MAX_FILES = 200_000
KEEP_BYTES = 16 * 1024 * 1024
"""A file whose decoded rows take no more than this is kept decoded for those who read along."""

PORTION_BYTES = 8 * 1024 * 1024
"""Rows of larger files are read in portions of about this many bytes."""

MAX_PAUSED = 4
_HASH_BLOCK = 1024 * 1024


class Wanted(msgspec.Struct, frozen=True):
    """A file to be read, and the stat that it must keep."""

    path: str
    stat: FileStat


class DecodedFile(msgspec.Struct, frozen=True, tag="read"):
    """One complete file: its content's hash, its rows counted, and the rows themselves where they are few.

    `columns` is its schema as bytes; `payload` (see `tables.from_child`) is empty where the rows were not `kept`.
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
    """One file that could not be read. `why`: it `changed` meanwhile, is `foreign` (no data by name nor by content),
    is `broken`, is over a `limit`, or met a `bug`, of which `detail` is the traceback."""

    path: str
    why: Literal["changed", "foreign", "broken", "limit", "bug"]
    problem: str = ""
    detail: str = ""


class Portion(msgspec.Struct, frozen=True):
    """Some rows of a file (see `tables.from_child`), and whether they are its last."""

    payload: bytes
    ended: bool


def stat_of(path: Path) -> FileStat | None:
    """The stat of a regular file, None where there is none (any more)."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return FileStat(found.st_size, found.st_mtime_ns, found.st_ino)


def listing(root: Path) -> dict[str, FileStat]:
    """Every file below a folder that may be data, by its relative POSIX path.

    Hidden folders are skipped and links to folders are not followed. A file is data by its suffix,
    or by its first bytes where it has none that is known. Raises BadInput where the folder is not
    there or cannot be read, or holds more than MAX_FILES files: then nothing is known to be gone.
    """
    found: dict[str, FileStat] = {}

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError) or Path(error.filename) == root:
            raise BadInput(
                f"folder {error.filename} cannot be read: {error.strerror}",
                hint="Mount it or correct its permissions; nothing is lost meanwhile.",
            ) from error

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if files.is_data_name(name)]
        for name in names:
            if not files.is_data_name(name) or not _is_text(name):
                continue
            full = Path(folder, name)
            if (stat := stat_of(full)) is not None and full.is_file():
                found[full.relative_to(root).as_posix()] = stat
        if len(found) > MAX_FILES:
            raise BadInput(
                f"{root} holds more than {MAX_FILES} files", hint="Watch its subfolders as sources of their own."
            )
    return found


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def tells_its_end(path: str) -> bool:
    """Whether a half-written file of this name cannot be mistaken for a whole one."""
    return files.format_by_name(path) == "parquet"


def is_known_name(path: str) -> bool:
    """Whether the suffix promises a format; other files are data if their first bytes say so."""
    return files.format_by_name(path) is not None


def hash_file(path: Path) -> str:
    """BLAKE3 of a file's bytes."""
    hasher = blake3.blake3()
    with files.open_binary(path) as file:
        while block := file.read(_HASH_BLOCK):
            hasher.update(block)
            processes.alive()
    return hasher.hexdigest()


def read_all(
    emit: Emit[DecodedFile | Refused], root: Path, wanted: list[Wanted], columns: bytes, limits: ReadLimits
) -> None:
    """Hash and decode files to their ends, in the columns of a schema (the first file's where there is none).

    Each file is emitted in order, as what was read or as why it was refused. Raises OSError where the disk fails.
    """
    schema = tables.schema_from_bytes(columns) if columns else None
    for file in wanted:
        try:
            reading = read_file(root, file, schema, limits)
        except FilesChanged:
            emit(Refused(file.path, "changed"))
        except (Corrupt, Unsupported, BadInput) as error:
            # A README beside the data is not a problem.
            foreign = isinstance(error, Unsupported) and not is_known_name(file.path)
            why = "foreign" if foreign else "limit" if isinstance(error, OverLimit) else "broken"
            emit(Refused(file.path, why, error.message))  # type: ignore[arg-type]  # mypy takes it for a plain str
        except EXPECTED:
            raise
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - one odd file must not keep the others; the parent logs it whole
            text = f"{file.path} could not be read: {type(error).__name__}"
            emit(Refused(file.path, "bug", text, traceback.format_exc()[-4000:]))
        else:
            if schema is None and not reading.problem:
                schema = tables.schema_from_bytes(reading.columns)
            emit(reading)


def read_file(root: Path, file: Wanted, schema: Any | None, limits: ReadLimits) -> DecodedFile:
    """Hash and decode one file to its end, in the columns of `schema` (its own where that is None).

    Raises Corrupt, Unsupported or BadInput where it cannot be decoded, `FilesChanged` where it changed
    meanwhile. An incompatible schema is no exception: it is the reading's `problem`.
    """
    full = root / file.path
    limits.begin(full)
    hashed = hash_file(full)
    table = tables.open_table(full, limits)
    target = table.schema if schema is None else schema
    # The columns of a source were checked when they were new.
    columns = tables.schema_to_bytes(target) if schema is None else b""
    reading = DecodedFile(file.path, file.stat, hashed, table.format, columns)
    try:
        note = tables.check_fits(table.schema, target, file.path)
        rows, batches = _count(table, target, file.path)
    except tables.IncompatibleColumns as error:
        return msgspec.structs.replace(reading, problem=error.message)
    if stat_of(full) != file.stat:
        raise FilesChanged(f"{file.path} changed while it was read")
    payload = b"" if batches is None else tables.to_parent(batches, target)
    return msgspec.structs.replace(reading, note=note, rows=rows, kept=batches is not None, payload=payload)


def _count(table: tables.OpenTable, schema: Any, path: str) -> tuple[int, list[Any] | None]:
    """The number of rows, and the rows where they take no more than KEEP_BYTES. Raises `Incompatible`."""
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
"""Files of which a portion was read here, by where each stands: the next portion needs no reading from the start."""


def read_portion(root: Path, file: Wanted, columns: bytes, first: int, limits: ReadLimits) -> Portion:
    """The rows of a file from row `first` on, about `PORTION_BYTES` of them.

    Raises Corrupt, Unsupported or BadInput where they cannot be decoded any more.
    """
    full, schema = root / file.path, tables.schema_from_bytes(columns)
    limits.begin(full)
    at = (str(full), file.stat, columns)
    pieces = _paused.pop((*at, first), None) or _pieces(full, file.path, schema, first, limits)
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


def _pieces(full: Path, path: str, schema: Any, first: int, limits: ReadLimits) -> Iterator[Any]:
    """The rows from `first` on, in pieces that are not too large to travel."""
    start = 0
    for batch in tables.open_table(full, limits).batches:
        skip = max(0, first - start)
        start += batch.num_rows
        if skip < batch.num_rows:
            fitted = tables.fit(batch.slice(skip), schema, path)
            for _, piece in tables.slices(fitted, tables.BATCH_BYTES):
                yield piece
