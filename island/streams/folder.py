"""A watched folder on disk: what is in it, and one file read whole. Blocking; called in threads."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blake3

from island.errors import BadInput, Changed
from island.formats import files
from island.streams import tables
from island.streams.core import Stat

MAX_FILES = 200_000
KEEP_BYTES = 16 * 1024 * 1024
"""A file whose decoded rows take no more than this is kept decoded for those who read along."""

_HASH_BLOCK = 1024 * 1024


@dataclass(slots=True)
class Reading:
    """One complete file: its content's hash, its rows counted, and the rows themselves where they are few."""

    path: str
    stat: Stat
    hash: str
    format: str
    schema: Any
    rows: int
    note: str = ""
    problem: str = ""
    batches: list[Any] = field(default_factory=list)
    kept: bool = True


def stat_of(path: Path) -> Stat | None:
    """The stat of a regular file, None where there is none (any more)."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Stat(found.st_size, found.st_mtime_ns, found.st_ino)


def listing(root: Path) -> dict[str, Stat]:
    """Every file below a folder that may be data, by its relative POSIX path.

    Hidden folders are skipped and links to folders are not followed. A file is data by its suffix,
    or by its first bytes where it has none that is known. Raises BadInput where the folder is not
    there or cannot be read, or holds more than MAX_FILES files: then nothing is known to be gone.
    """
    found: dict[str, Stat] = {}

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


def digest(path: Path) -> str:
    """BLAKE3 of a file's bytes."""
    hasher = blake3.blake3()
    with files.open_binary(path) as file:
        while block := file.read(_HASH_BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def read(root: Path, path: str, stat: Stat, schema: Any | None) -> Reading:
    """Hash and decode one file to its end, in the columns of `schema` (its own where that is None).

    Raises Corrupt, Unsupported or BadInput where it cannot be decoded, `Changed` where it changed
    meanwhile. An incompatible schema is no exception: it is the reading's `problem`.
    """
    full = root / path
    hashed = digest(full)
    table = tables.open_table(full)
    target = table.schema if schema is None else schema
    tables.schema_to_bytes(target)
    reading = Reading(path, stat, hashed, table.format, target, 0)
    try:
        reading.note = tables.check_fits(table.schema, target, path)
    except tables.Incompatible as error:
        reading.problem = error.message
        return reading
    _count(reading, table)
    if stat_of(full) != stat:
        raise Changed(f"{path} changed while it was read")
    return reading


def _count(reading: Reading, table: tables.Table) -> None:
    size = 0
    for batch in table.batches:
        reading.rows += batch.num_rows
        try:
            fitted = tables.fit(batch, reading.schema, reading.path)
        except tables.Incompatible as error:
            reading.problem, reading.batches, reading.kept, reading.rows = error.message, [], False, 0
            return
        size += fitted.nbytes
        if size > KEEP_BYTES:
            reading.kept, reading.batches = False, []
        if reading.kept:
            reading.batches.append(fitted)
