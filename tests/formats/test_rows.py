"""Batches, atomic Parquet files, and rows over the wire from peers that may be hostile."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from island.errors import BadInput, Corrupt, PeerMisbehaved, Unsupported
from island.formats import rows
from island.formats.rows import RowLimits, from_ipc, to_ipc


def sample(count: int = 5) -> Any:
    return pa.RecordBatch.from_pydict(
        {
            "n": list(range(count)),
            "x": [None if i == 2 else i / 3 for i in range(count)],
            "s": pa.array([f"ä{i}" for i in range(count)]),
            "c": [{"ra": float(i), "tags": ["a"] * i} for i in range(count)],
            "m": pa.array([[("k", i)] for i in range(count)], pa.map_(pa.string(), pa.int32())),
            "b": [bytes([i]) for i in range(count)],
            "t": pa.array(list(range(count)), pa.timestamp("us", "UTC")),
        }
    )


def test_projection_of_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_batches([sample()]), tmp_path / "a.parquet")
    (batch,) = rows.read_batches(tmp_path / "a.parquet", ["c.ra", "s"])
    assert batch.schema.names == ["s", "c"]
    assert batch.to_pylist()[1] == {"s": "ä1", "c": {"ra": 1.0}}
    with pytest.raises(BadInput, match=r"there is no column c\.dec"):
        list(rows.read_batches(tmp_path / "a.parquet", ["c.dec"]))
    with pytest.raises(BadInput, match="there is no column nn"):
        list(rows.read_batches(tmp_path / "a.parquet", ["nn"]))


def test_a_dot_may_be_part_of_a_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a.b": [1], "c": [2]}), tmp_path / "a.parquet")
    (batch,) = rows.read_batches(tmp_path / "a.parquet", ["a.b"])
    assert batch.to_pydict() == {"a.b": [1]}


@pytest.mark.slow
def test_batches_are_bounded(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": list(range(150_000))}), tmp_path / "a.parquet")
    sizes = [batch.num_rows for batch in rows.read_batches(tmp_path / "a.parquet")]
    assert sum(sizes) == 150_000
    assert max(sizes) <= 65_536
    wide = pa.table({"b": [bytes(4 << 20)] * 40})
    pq.write_table(wide, tmp_path / "b.parquet", use_dictionary=False, compression="none")
    assert max(batch.nbytes for batch in rows.read_batches(tmp_path / "b.parquet")) <= 64 << 20


def test_written_files_hold_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    count, size = rows.write_parquet(iter([sample(), sample(3)]), path)
    assert (count, size) == (8, path.stat().st_size)
    assert pq.read_table(path).to_pylist() == sample().to_pylist() + sample(3).to_pylist()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.parquet"]
    assert pq.read_metadata(path).row_group(0).column(0).compression == "ZSTD"


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Any]:
        yield sample()
        raise Corrupt("the source broke")

    (tmp_path / "a.parquet").write_bytes(b"what was there")
    with pytest.raises(Corrupt, match="the source broke"):
        rows.write_parquet(broken(), tmp_path / "a.parquet")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.parquet"]
    assert (tmp_path / "a.parquet").read_bytes() == b"what was there"


def test_no_rows_need_a_schema(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="neither rows nor a schema"):
        rows.write_parquet([], tmp_path / "a.parquet")
    assert rows.write_parquet([], tmp_path / "a.parquet", schema=sample().schema)[0] == 0
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 0
    with pytest.raises(BadInput, match="neither rows nor a schema"):
        to_ipc([])
    assert from_ipc(to_ipc([], schema=sample().schema)) == []


# --- over the wire ---


@pytest.mark.parametrize("compress", [True, False])
def test_wire_round_trip(compress: bool) -> None:
    data = to_ipc([sample(), sample(2)], compress=compress)
    assert from_ipc(data) == [sample(), sample(2)]


def test_dictionaries_travel_as_plain_columns() -> None:
    batch = pa.RecordBatch.from_pydict({"s": pa.array(["a", "b", "a"]).dictionary_encode()})
    (found,) = from_ipc(to_ipc([batch]))
    assert found.schema.field("s").type == pa.string()
    assert found.to_pydict() == {"s": ["a", "b", "a"]}


def test_what_would_be_refused_is_not_sent() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([[None]], pa.list_(pa.null()))], ["x"])
    with pytest.raises(Unsupported, match="list of values that take no bytes"):
        to_ipc([batch])
    (found,) = from_ipc(to_ipc([pa.RecordBatch.from_arrays([pa.array([b"0" * 16], pa.uuid())], ["u"])]))
    assert found.to_pydict() == {"u": [b"0" * 16]}


def frame(body: bytes, count: int, *, length: int | None = None, compressed: bool = False) -> bytes:
    return struct.pack(">4sBQQ", b"ISR1", compressed, count, len(body) if length is None else length) + body


def stream(batch: Any, **options: Any) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def test_limits_hold_before_anything_unfolds() -> None:
    data = to_ipc([sample()])
    with pytest.raises(PeerMisbehaved, match="bytes"):
        from_ipc(data, RowLimits(wire_bytes=len(data) - 1))
    with pytest.raises(PeerMisbehaved, match="5 rows"):
        from_ipc(data, RowLimits(rows=4))
    with pytest.raises(PeerMisbehaved, match="rows in"):
        from_ipc(data, RowLimits(plain_bytes=100))
    zeros = pa.compress(bytes(100_000_000), codec="zstd", asbytes=True)
    with pytest.raises(PeerMisbehaved, match="length"):
        from_ipc(frame(zeros, 1, length=1000, compressed=True))


def test_compression_inside_the_stream_is_refused() -> None:
    batch = pa.RecordBatch.from_pydict({"n": [0] * 10_000})
    for codec in ("zstd", "lz4"):
        with pytest.raises(PeerMisbehaved, match="compressed buffers"):
            from_ipc(frame(stream(batch, compression=codec), 10_000))


def test_dictionary_messages_are_refused() -> None:
    batch = pa.RecordBatch.from_pydict({"s": pa.array(["a"]).dictionary_encode()})
    with pytest.raises(PeerMisbehaved):
        from_ipc(frame(stream(batch), 1))


def test_counts_that_lie_are_refused() -> None:
    with pytest.raises(PeerMisbehaved, match="number of rows"):
        from_ipc(frame(stream(sample()), 4))
    nulls = pa.RecordBatch.from_arrays([pa.nulls(2_000_000)], ["n"])
    with pytest.raises(PeerMisbehaved, match="too many rows"):
        from_ipc(frame(stream(nulls), 1))


@pytest.mark.parametrize(
    "array",
    [
        pa.array([[None] * 1000], pa.list_(pa.null())),
        pa.FixedSizeListArray.from_arrays(pa.nulls(100_000), 100_000),
        pa.array([1], pa.int64()).dictionary_encode(),
        pa.RunEndEncodedArray.from_arrays(pa.array([5], pa.int32()), pa.array([1])),
    ],
)
def test_types_that_hold_more_than_their_bytes_are_refused(array: Any) -> None:
    batch = pa.RecordBatch.from_arrays([array], ["x"])
    with pytest.raises(PeerMisbehaved):
        from_ipc(frame(stream(batch), batch.num_rows))


def test_text_that_is_not_utf8_is_refused() -> None:
    bad = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe"))
    with pytest.raises(PeerMisbehaved):
        from_ipc(frame(stream(pa.RecordBatch.from_arrays([bad], ["s"])), 1))


@settings(deadline=None, max_examples=400)
@given(st.integers(0, 3000), st.integers(0, 255), st.booleans())
def test_damage_never_escapes(at: int, value: int, compress: bool) -> None:
    data = bytearray(to_ipc([sample()], compress=compress))
    data[at % len(data)] = value
    try:
        for batch in from_ipc(bytes(data)):
            batch.validate(full=True)
    except PeerMisbehaved:
        pass


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_the_peers_fault(data: bytes) -> None:
    for body in (data, frame(data, 1), frame(data, 0, compressed=True)):
        with pytest.raises(PeerMisbehaved):
            from_ipc(body)
