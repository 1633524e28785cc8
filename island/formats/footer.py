"""Reads the offsets at which the parts of a Parquet file begin from its footer.

pyarrow does not return the offsets of the column and offset indexes, so this module decodes the
footer: Thrift's compact protocol (apache/thrift, doc/specs/thrift-compact-protocol.md), with the
field numbers of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData from
apache/parquet-format, src/main/thrift/parquet.thrift.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from island.errors import Corrupt
from island.formats.files import open_binary, sniff

MAX_FOOTER = 256 * 1024 * 1024
_MAX_DEPTH = 32

_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(13)


class _Broken(Exception):
    """The footer is not well-formed Thrift."""


def parquet_borders(source: Path | str | BinaryIO) -> list[int]:
    """Byte offsets at which the parts of a Parquet file begin: sorted, distinct, inside the file.

    The parts are column chunks (including their dictionary page), bloom filters, column and
    offset indexes, and the footer. Offset 0 and the end of the file are not included. Raises
    Corrupt if the footer is missing, malformed, or points outside the data.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        sniff(path)
        with open_binary(path) as file:
            return _borders(file, str(path))
    return _borders(source, getattr(source, "name", "the file"))


def _borders(file: BinaryIO, name: str) -> list[int]:
    size = file.seek(0, 2)
    if size < 12:
        raise Corrupt(f"{name} is too short for Parquet ({size} bytes)", hint="Copy or write the file again.")
    file.seek(size - 8)
    length, magic = struct.unpack("<I4s", file.read(8))
    start = size - 8 - length
    if magic != b"PAR1" or start < 4 or length > MAX_FOOTER:
        raise Corrupt(f"{name} has no valid Parquet footer", hint="The file may be truncated: copy or write it again.")
    file.seek(start)
    try:
        offsets = _Footer(file.read(length)).offsets()
    except (_Broken, IndexError) as error:
        raise Corrupt(f"{name} has a malformed Parquet footer: {error}", hint="Write the file again.") from error
    outside = [offset for offset in offsets if not 0 < offset < start]
    if outside:
        raise Corrupt(
            f"{name} has a Parquet footer that points outside its data (offset {outside[0]} of {start})",
            hint="The file is truncated or damaged: copy or write it again.",
        )
    return sorted({*offsets, start})


class _Footer:
    """A cursor over one footer. It reads only the offsets and skips the other fields."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def offsets(self) -> list[int]:
        """All start offsets in FileMetaData."""
        found: list[int] = []
        for field, kind in self._fields():
            if field == 4 and kind == _LIST:  # row_groups
                for _ in range(self._list_of(_STRUCT)):
                    self._row_group(found)
            else:
                self._skip(kind, 0)
        return found

    def _row_group(self, found: list[int]) -> None:
        for field, kind in self._fields():
            if field == 1 and kind == _LIST:  # columns
                for _ in range(self._list_of(_STRUCT)):
                    self._column_chunk(found)
            else:
                self._skip(kind, 0)

    def _column_chunk(self, found: list[int]) -> None:
        starts: dict[int, int] = {}
        external = False
        for field, kind in self._fields():
            if field == 1 and kind == _BINARY:  # file_path: the chunk is in another file
                external = True
                self._skip(kind, 0)
            elif field == 3 and kind == _STRUCT:
                self._column_metadata(starts)
            elif field in (4, 6) and kind == _I64:  # offset index, column index
                starts[-field] = self._zigzag()
            else:
                self._skip(kind, 0)
        if external:
            return
        pages = [starts.pop(key) for key in (9, 10, 11) if key in starts]
        # Some writers put 0 for "no dictionary page".
        pages = [offset for offset in pages if offset > 0]
        found.extend(offset for offset in starts.values() if offset > 0)
        if pages:
            found.append(min(pages))

    def _column_metadata(self, starts: dict[int, int]) -> None:
        for field, kind in self._fields():
            # data, index and dictionary page offsets, bloom filter offset
            if field in (9, 10, 11, 14) and kind == _I64:
                starts[field] = self._zigzag()
            else:
                self._skip(kind, 0)

    def _fields(self) -> Iterator[tuple[int, int]]:
        """(field id, type) of one struct, up to its stop byte."""
        field = 0
        while True:
            head = self.data[self.at]
            self.at += 1
            kind = head & 0x0F
            if kind == _STOP:
                return
            delta = head >> 4
            field = field + delta if delta else self._zigzag()
            yield field, kind

    def _list_of(self, wanted: int) -> int:
        count, kind = self._list_head()
        if kind != wanted and count:
            raise _Broken(f"a list has type {kind} instead of {wanted}")
        return count

    def _list_head(self) -> tuple[int, int]:
        head = self.data[self.at]
        self.at += 1
        count, kind = head >> 4, head & 0x0F
        if count == 15:
            count = self._varint()
        if count > len(self.data):
            raise _Broken("a list is longer than the footer")
        return count, kind

    def _skip(self, kind: int, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise _Broken("nested too deeply")
        if kind in (_TRUE, _FALSE):
            return
        if kind == _BYTE:
            self.at += 1
        elif kind in (_I16, _I32, _I64):
            self._varint()
        elif kind == _DOUBLE:
            self.at += 8
        elif kind == _BINARY:
            length = self._varint()
            self.at += length
        elif kind in (_LIST, _SET):
            self._skip_list(depth)
        elif kind == _MAP:
            self._skip_map(depth)
        elif kind == _STRUCT:
            for _, inner in self._fields():
                self._skip(inner, depth + 1)
        else:
            raise _Broken(f"unknown type {kind}")
        if self.at > len(self.data):
            raise _Broken("a value runs past the end")

    def _skip_list(self, depth: int) -> None:
        count, kind = self._list_head()
        for _ in range(count):
            self._skip_element(kind, depth)

    def _skip_map(self, depth: int) -> None:
        count = self._varint()
        if count > len(self.data):
            raise _Broken("a map is longer than the footer")
        if count:
            kinds = self.data[self.at]
            self.at += 1
            for _ in range(count):
                self._skip_element(kinds >> 4, depth)
                self._skip_element(kinds & 0x0F, depth)

    def _skip_element(self, kind: int, depth: int) -> None:
        # A Boolean takes one byte in a list, and none in a struct field.
        if kind in (_TRUE, _FALSE):
            self.at += 1
        else:
            self._skip(kind, depth + 1)

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise _Broken("a number is longer than ten bytes")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
