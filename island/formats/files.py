"""Which files of a folder are data, and what a file is by its first and last bytes."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO, Literal

from island.errors import BadInput, Corrupt, Unsupported

FileFormat = Literal["parquet", "avro"]

MAX_FILES = 1_000_000
SUFFIXES: dict[str, FileFormat] = {".parquet": "parquet", ".parq": "parquet", ".pq": "parquet", ".avro": "avro"}
PARQUET_SIDECARS = ("_metadata", "_common_metadata")

_PARQUET_MAGIC = b"PAR1"
_PARQUET_ENCRYPTED = b"PARE"
_AVRO_MAGIC = b"Obj\x01"
# Magic, an empty page area, a four-byte footer length and the magic again.
_SMALLEST_PARQUET = 12


def is_data_name(name: str) -> bool:
    """Whether a file of this name may be data: not hidden, not a sidecar, not half written."""
    return not name.startswith((".", "_")) and not name.endswith((".tmp", ".part"))


def is_published_name(name: str) -> bool:
    """Whether a file of this name belongs to what is published: data, or Parquet's own sidecars."""
    return name in PARQUET_SIDECARS or is_data_name(name)


def format_by_name(name: str) -> FileFormat | None:
    """The format that the suffix of a file name promises, or None."""
    return SUFFIXES.get(os.path.splitext(name)[1].lower())


def sniff(path: Path) -> FileFormat:
    """The format of one file by its magic bytes.

    Raises BadInput where there is no such regular file, Corrupt where it is empty or cut
    short, Unsupported where it is neither Parquet nor Avro, or is encrypted Parquet.
    """
    size = regular_size(path)
    if size == 0:
        raise Corrupt(f"{path} is empty", hint="Write the file again; an empty file is neither Parquet nor Avro.")
    with open_binary(path) as file:
        head = file.read(4)
        file.seek(max(0, size - 4))
        tail = file.read(4)
    if head == _AVRO_MAGIC:
        return "avro"
    if head == _PARQUET_ENCRYPTED or (head == _PARQUET_MAGIC and tail == _PARQUET_ENCRYPTED):
        raise Unsupported(f"{path} is encrypted Parquet", hint="Publish a decrypted copy.")
    if head == _PARQUET_MAGIC:
        if size < _SMALLEST_PARQUET or tail != _PARQUET_MAGIC:
            raise Corrupt(
                f"{path} is cut short: it begins as Parquet and ends without a Parquet footer ({size} bytes)",
                hint="Copy or write the file again; programs write the footer last.",
            )
        return "parquet"
    promised = format_by_name(path.name)
    if promised is not None:
        raise Corrupt(
            f"{path} has the suffix of {promised}, but its content does not begin like {promised}",
            hint="Write the file again, or give it the suffix of what it is.",
        )
    raise Unsupported(
        f"{path} is neither Parquet nor Avro",
        hint="Parquet files, Avro object containers, folders of either, and HATS catalogs can be published.",
    )


def regular_size(path: Path) -> int:
    """Size in bytes of a regular file; BadInput where there is none or it cannot be read."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise BadInput(
            f"there is no file {path}", hint="Check the path; it is read on the island's machine."
        ) from error
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {error}", hint="Check its permissions.") from error
    if not stat.S_ISREG(status.st_mode):
        raise BadInput(f"{path} is not a regular file", hint="Name a file, or a folder of files.")
    return status.st_size


def open_binary(path: Path) -> BinaryIO:
    """Open for reading; BadInput says why where the operating system refuses."""
    try:
        return path.open("rb")
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}", hint="Check its permissions.") from error


def walk(root: Path) -> list[str]:
    """Every published file below a folder as relative POSIX paths, sorted.

    Folders that are hidden are skipped, links to folders are not followed (they may loop).
    Raises BadInput over MAX_FILES, for names that are not UTF-8, and for folders that cannot be read.
    """
    found: list[str] = []

    def refuse(error: OSError) -> None:
        raise BadInput(f"folder {error.filename} cannot be read: {error.strerror}", hint="Check its permissions.")

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "_")))
        for name in names:
            full = Path(folder) / name
            if not is_published_name(name) or not full.is_file():
                continue
            relative = full.relative_to(root).as_posix()
            try:
                relative.encode("utf-8")
            except UnicodeEncodeError as error:
                raise BadInput(f"a file name below {root} is not UTF-8: {relative!r}", hint="Rename it.") from error
            found.append(relative)
            if len(found) > MAX_FILES:
                raise BadInput(f"{root} holds more than {MAX_FILES} files", hint="Publish its parts one by one.")
    return sorted(found)


def data_files(root: Path, published: list[str]) -> tuple[FileFormat, list[str]]:
    """The format of a plain folder and its data files among the published ones.

    Raises BadInput where there are none, or files of both formats.
    """
    by_format: dict[FileFormat, list[str]] = {"parquet": [], "avro": []}
    for relative in published:
        name = relative.rsplit("/", 1)[-1]
        kind = format_by_name(name)
        if kind is not None and is_data_name(name):
            by_format[kind].append(relative)
    parquet, avro = by_format["parquet"], by_format["avro"]
    if parquet and avro:
        raise BadInput(
            f"{root} holds both Parquet ({parquet[0]}) and Avro ({avro[0]}) files",
            hint="One dataset has one format: publish them as two datasets.",
        )
    if not parquet and not avro:
        raise BadInput(
            f"{root} holds no data: no *.parquet or *.avro file below it",
            hint="Names that begin with '.' or '_' or end with .tmp or .part are not data.",
        )
    return ("parquet", parquet) if parquet else ("avro", avro)
