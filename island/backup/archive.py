"""Writes and reads the file of a backup: a tar of regular files, whose first is the manifest. Blocking.

The reader does not use `tarfile.open`, which follows extended headers of any size. It accepts only
plain headers, in the order of the manifest, and checks every byte against it.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from island.backup import core
from island.backup.messages import FORMAT, ArchivedFile, BackupManifest
from island.errors import IslandError
from island.regular_file import open_regular

MANIFEST = "manifest.json"
MANIFEST_LIMIT = 32 * 1024 * 1024
BLOCK = tarfile.BLOCKSIZE
PIECE = 1024 * 1024
"""Bytes that are read or written at once."""

COMPRESSED = (".gz", ".tgz")
"""Suffixes of a file that is compressed with gzip."""

Sink = Callable[[bytes], object]


class SourceChanged(Exception):
    """A file of the home folder is gone or has another content than when it was listed."""


def describe(name: str, path: Path) -> ArchivedFile:
    """Read a file, and return its line of the manifest. Raises `OSError`."""
    digest, size = hashlib.sha256(), 0
    with open_regular(path) as file:
        modified = os.fstat(file.fileno()).st_mtime_ns
        while piece := file.read(PIECE):
            digest.update(piece)
            size += len(piece)
    return ArchivedFile(name, size, digest.hexdigest(), max(0, modified))


def write(out: IO[bytes], manifest: BackupManifest, paths: Sequence[Path], *, compress: bool, done: Sink) -> None:
    """Write a backup with the files of `manifest`, whose contents are at `paths`. `done` is called with each piece.

    Raises `SourceChanged` if a file does not agree with the manifest any more, and `OSError`.
    """
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    packed = gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=out, mtime=0) if compress else None
    with packed or contextlib.nullcontext():
        target: IO[bytes] = packed or out  # type: ignore[assignment]  # a GzipFile is a file of bytes
        target.write(_header(MANIFEST, len(text), 0) + text + _padding(len(text)))
        for file, path in zip(manifest.files, paths, strict=True):
            target.write(_header(file.name, file.size, file.modified_ns))
            _copy(path, file, target, done)
            target.write(_padding(file.size))
        target.write(bytes(2 * BLOCK))


def _header(name: str, size: int, modified_ns: int) -> bytes:
    header = tarfile.TarInfo(name)
    header.size, header.mode, header.mtime = size, 0o600, modified_ns // 10**9
    encoded = header.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")
    assert len(encoded) == BLOCK, "the name is too long for a plain header"
    return encoded


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def _copy(path: Path, file: ArchivedFile, target: IO[bytes], done: Sink) -> None:
    digest, left = hashlib.sha256(), file.size
    with open_regular(path) as source:
        while left and (piece := source.read(min(PIECE, left))):
            digest.update(piece)
            target.write(piece)
            done(piece)
            left -= len(piece)
    if left or digest.hexdigest() != file.sha256:
        raise SourceChanged(file.name)


class BackupReader:
    """Reads a backup from its start to its end. Every method raises `Corrupt` for a file that is not a valid backup."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._what = name
        with self._readable():
            file.seek(0)
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
        self._file: IO[bytes] = gzip.GzipFile(fileobj=file) if zipped else file  # type: ignore[assignment]  # as above
        self.manifest = self._manifest()

    def files(self, sink: Callable[[ArchivedFile], contextlib.AbstractContextManager[Sink]]) -> None:
        """Pass the content of every file to `sink(file)`, and check that there is nothing else.

        The checksum of a file is compared after its content was passed, and before the next file.
        """
        for file in self.manifest.files:
            if self._entry() != (file.name, file.size):
                raise self._damaged(f"its content does not agree with its manifest at {file.name}")
            digest = hashlib.sha256()
            with sink(file) as write:
                for piece in self._pieces(file.size):
                    digest.update(piece)
                    write(piece)
            if digest.hexdigest() != file.sha256:
                raise self._damaged(f"the checksum of {file.name} does not match")
        if self._read(2 * BLOCK) != bytes(2 * BLOCK):
            raise self._damaged("it has a file that its manifest does not list")
        if self._rest().strip(b"\0"):
            raise self._damaged("there is something behind its end")

    def _manifest(self) -> BackupManifest:
        name, size = self._entry()
        if name != MANIFEST or size > MANIFEST_LIMIT:
            raise self._damaged("it does not begin with a manifest")
        text = io.BytesIO()
        for piece in self._pieces(size):
            text.write(piece)
        try:
            version = msgspec.json.decode(text.getvalue(), type=_FormatOnly).format
            if version > FORMAT:
                raise IslandError(
                    f"{self._what} has format {version}; this version of island reads formats up to {FORMAT}",
                    hint="Nothing was changed. Restore it with the version of island that wrote it, or a newer one.",
                )
            manifest = msgspec.json.decode(text.getvalue(), type=BackupManifest)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise self._damaged(f"its manifest is not valid: {str(error)[:200]}") from error
        core.check(manifest, self._what)
        return manifest

    def _entry(self) -> tuple[str, int]:
        """Read a header: (name, size). Anything but a regular file is refused."""
        block = self._read(BLOCK)
        try:
            header = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise self._damaged("it is not a tar file, or ends too early") from error
        if header.type != tarfile.REGTYPE or header.size < 0:
            raise self._damaged(f"{header.name[:100]!r} is not a regular file")
        return header.name, header.size

    def _pieces(self, size: int) -> Iterator[bytes]:
        left = size
        while left:
            piece = self._read(min(PIECE, left))
            left -= len(piece)
            yield piece
        self._read(-size % BLOCK)

    def _read(self, count: int) -> bytes:
        """Read exactly `count` bytes."""
        with self._readable():
            data = self._file.read(count)
        if len(data) != count:
            raise self._damaged("it ends too early")
        return data

    def _rest(self) -> bytes:
        """Read beyond the end. Other programs fill a tar with zeros to 10 KiB, and gzip has its checksum there."""
        with self._readable():
            return self._file.read(tarfile.RECORDSIZE)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, zlib.error) as error:
            raise self._damaged(f"it cannot be read: {error}") from error

    def _damaged(self, problem: str) -> IslandError:
        return core.damaged(self._what, problem)


class _FormatOnly(msgspec.Struct):
    format: int
