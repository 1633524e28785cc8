"""Finds the data files of a folder, and detects the format of a file by its first and last bytes."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO, Literal

from island.errors import BadInput, Corrupt, Unreadable, Unsupported
from island.regular_file import open_regular

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
    """Whether a file of this name may be data: not hidden, not a sidecar, not a temporary file."""
    return not name.startswith((".", "_")) and not name.endswith((".tmp", ".part"))


def is_published_name(name: str) -> bool:
    """Whether a file of this name is published: data, or a sidecar of Parquet."""
    return name in PARQUET_SIDECARS or is_data_name(name)


def format_by_name(name: str) -> FileFormat | None:
    """The format that belongs to the suffix of a file name, or None."""
    return SUFFIXES.get(os.path.splitext(name)[1].lower())


def sniff(path: Path) -> FileFormat:
    """Detect the format of a file by its magic bytes.

    Raises BadInput if it is not a readable regular file, Corrupt if it is empty or truncated,
    and Unsupported if it is neither Parquet nor Avro, or is encrypted Parquet.
    """
    size = regular_size(path)
    if size == 0:
        raise Corrupt(f"{path} is empty", hint="Write the file again. An empty file is neither Parquet nor Avro.")
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
                f"{path} is truncated: it begins as Parquet but does not end with a Parquet footer ({size} bytes)",
                hint="Copy or write the file again. The footer is written last.",
            )
        return "parquet"
    expected = format_by_name(path.name)
    if expected is not None:
        raise Corrupt(
            f"{path} has the suffix of {expected}, but its content does not begin like {expected}",
            hint="Write the file again, or rename it to the suffix of its format.",
        )
    raise Unsupported(
        f"{path} is neither Parquet nor Avro",
        hint="Parquet files, Avro object containers, folders of either, and HATS catalogs can be published.",
    )


def regular_size(path: Path) -> int:
    """Size in bytes of a regular file. Raises BadInput if it does not exist, is not regular or cannot be read."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise BadInput(
            f"there is no file {path}", hint="Check the path. It must be a path on the island's machine."
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise BadInput(f"{path} cannot be read: {error}", hint="Check the path.") from error
    if not stat.S_ISREG(status.st_mode):
        raise BadInput(f"{path} is not a regular file", hint="Give the path of a file, or of a folder of files.")
    return status.st_size


def open_binary(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises BadInput with the reason of the operating system."""
    try:
        return open_regular(path)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> Unreadable:
    """The island error for an error of the operating system with a file."""
    return Unreadable(f"{path} cannot be read: {error.strerror or error}", hint="Check permissions and disk.")


def walk(root: Path) -> list[str]:
    """The relative POSIX paths of all published files below a folder, sorted.

    Folders whose names begin with `.` or `_` are skipped. Symbolic links to folders are not
    followed, because they may form a loop. Raises BadInput for more than MAX_FILES files, for
    names that are not UTF-8, and for folders that cannot be read.
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
                raise BadInput(
                    f"{root} contains more than {MAX_FILES} files", hint="Publish its subfolders as separate datasets."
                )
    return sorted(found)


def data_files(root: Path, published: list[str]) -> tuple[FileFormat, list[str]]:
    """The format of a folder that is not HATS, and those of its published files that are data.

    Raises BadInput if there are no data files, or files of both formats.
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
            f"{root} contains both Parquet ({parquet[0]}) and Avro ({avro[0]}) files",
            hint="A dataset has one format: publish them as two datasets.",
        )
    if not parquet and not avro:
        raise BadInput(
            f"{root} contains no data: there is no *.parquet or *.avro file below it",
            hint="Files whose names begin with '.' or '_' or end with .tmp or .part are ignored.",
        )
    return ("parquet", parquet) if parquet else ("avro", avro)
