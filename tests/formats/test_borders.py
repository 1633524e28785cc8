"""Where the parts of a Parquet file begin, against what pyarrow tells."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from island.errors import Corrupt, IslandError
from island.formats.parquet import parquet_borders


def told_by_pyarrow(path: Path) -> set[int]:
    metadata = pq.read_metadata(path)
    found = {path.stat().st_size - 8 - metadata.serialized_size}
    for group in range(metadata.num_row_groups):
        for index in range(metadata.row_group(group).num_columns):
            column = metadata.row_group(group).column(index)
            starts = [column.data_page_offset]
            if column.dictionary_page_offset:
                starts.append(column.dictionary_page_offset)
            found.add(min(starts))
            if column.bloom_filter_offset:
                found.add(column.bloom_filter_offset)
    return found


def test_real_files(shared_data: Path) -> None:
    paths = [*sorted((shared_data / "hats").rglob("*.parquet")), *sorted((shared_data / "parquet").glob("*.parquet"))]
    assert len(paths) > 30
    for path in paths:
        found = parquet_borders(path)
        assert found == sorted(set(found))
        size = path.stat().st_size
        assert all(0 < offset < size for offset in found)
        assert told_by_pyarrow(path) <= set(found)


def test_indexes_and_row_groups(tmp_path: Path) -> None:
    table = pa.table({"a": list(range(10_000)), "b": [f"x{i % 7}" for i in range(10_000)]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=2_500, write_page_index=True)
    found = parquet_borders(path)
    # Four row groups of two chunks; the chunks are followed by their indexes (a column and an
    # offset index for each), then the footer. The first chunk begins at byte 4.
    assert len(found) == 8 + 16 + 1
    assert found[0] == 4
    assert told_by_pyarrow(path) <= set(found)
    data = path.read_bytes()
    assert parquet_borders(io.BytesIO(data)) == found


def test_file_without_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "a.parquet")
    assert parquet_borders(tmp_path / "a.parquet")[-1] == max(told_by_pyarrow(tmp_path / "a.parquet"))


def test_damaged_footers(shared_data: Path, tmp_path: Path) -> None:
    data = (shared_data / "parquet" / "alltypes_plain.parquet").read_bytes()
    for cut in (1, 4, 9, 100, len(data) // 2):
        path = tmp_path / "cut.parquet"
        path.write_bytes(data[:-cut])
        with pytest.raises(Corrupt):
            parquet_borders(path)
    start = parquet_borders(io.BytesIO(data))[-1]
    for at in range(start, len(data)):
        for value in (0x00, 0xFF, 0x7C):
            damaged = bytearray(data)
            damaged[at] = value
            try:
                parquet_borders(io.BytesIO(bytes(damaged)))
            except IslandError as error:
                assert error.code == "corrupt"
