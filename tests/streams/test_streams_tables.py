"""Columns that fit, rows on the wire, and messages: what is accepted and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from island.errors import PeerMisbehaved
from island.formats import rows
from island.kernel.codec import Malformed, decode, encode
from island.streams import tables
from island.streams.messages import (
    Ack,
    ColumnSummary,
    Delivery,
    DescribeRequest,
    EndOfStream,
    ReadRequest,
    SourceRecord,
    StreamPosition,
    StreamSchema,
    decode_down,
    decode_position,
    encode_position,
    fit_record,
)
from island.streams.tables import IncompatibleColumns

TARGET = pa.schema(
    [
        ("id", pa.int64()),
        ("mag", pa.float64()),
        ("name", pa.string()),
        ("candidate", pa.struct([("jd", pa.float64()), ("fid", pa.int32())])),
        ("history", pa.list_(pa.struct([("jd", pa.float64())]))),
    ]
)


def fit(table: pa.Table) -> tuple[list[dict[str, Any]], str]:
    schema = tables.relaxed(table.schema)
    note = tables.check_fits(schema, TARGET, "f.avro")
    batch = tables.fit(table.combine_chunks().to_batches()[0], TARGET, "f.avro")
    assert batch.schema.equals(TARGET)
    return batch.to_pylist(), note


def test_a_file_may_lack_columns_widen_and_differ_in_order() -> None:
    candidate = pa.struct([("fid", pa.int8()), ("new", pa.string())])
    epoch = pa.struct([pa.field("jd", pa.float32(), nullable=False)])
    table = pa.table(
        {
            "mag": pa.array([1.5, None], pa.float32()),
            "id": pa.array([1, 2], pa.int16()),
            "candidate": pa.array([{"fid": 1, "new": "x"}, None], candidate),
            "history": pa.array([[{"jd": 1.0}], None], pa.list_(epoch)),
            "extra": ["a", "b"],
        }
    )  # fmt: skip
    found, note = fit(table)
    assert found[0] == {
        "id": 1, "mag": 1.5, "name": None, "candidate": {"jd": None, "fid": 1}, "history": [{"jd": 1.0}],
    }  # fmt: skip
    assert found[1]["candidate"] is None
    assert note.startswith("f.avro: these columns are ignored, because the first file lacks them: ")
    assert "extra" in note and "candidate.new" in note


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("id", pa.array(["1"])),
        ("id", pa.array([1.0])),
        ("id", pa.array([1], pa.uint64())),
        ("mag", pa.array([1], pa.int64())),
        ("name", pa.array([1])),
        ("candidate", pa.array([1])),
        ("candidate", pa.array([{"jd": "x"}])),
        ("history", pa.array([[{"jd": "x"}]])),
        ("history", pa.array([1])),
    ],
)
def test_what_would_lose_values_is_named(column: str, values: Any) -> None:
    with pytest.raises(IncompatibleColumns, match=rf"f\.avro: column {column}"):
        fit(pa.table({column: values}))


@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_slices_hold_every_row_once(count: int) -> None:
    batch = pa.record_batch({"id": pa.array(range(count), pa.int64())})
    pieces = list(tables.slices(batch, 100))
    assert [value for _, piece in pieces for value in piece.column(0).to_pylist()] == list(range(count))
    assert all(piece.column(0)[0].as_py() == first for first, piece in pieces)


def test_rows_of_another_schema_or_number_are_misbehaviour() -> None:
    batch = pa.record_batch({"id": pa.array([1, 2], pa.int64())})
    data = rows.to_ipc([batch])
    assert tables.rows_from_bytes(data, batch.schema, 2)[0].equals(batch)
    for schema, count in ((batch.schema, 3), (pa.schema([("id", pa.int32())]), 2)):
        with pytest.raises(PeerMisbehaved):
            tables.rows_from_bytes(data, schema, count)
    with pytest.raises(PeerMisbehaved):
        tables.rows_from_bytes(data[:-5], batch.schema, 2)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_schema_and_no_message(data: bytes) -> None:
    with pytest.raises(PeerMisbehaved):
        tables.schema_from_bytes(data)
    try:
        decode_down(data)
    except Malformed:
        pass


def test_a_schema_with_columns_that_must_not_be_null_is_refused() -> None:
    with pytest.raises(PeerMisbehaved):
        tables.schema_from_bytes(pa.schema([pa.field("a", pa.int64(), nullable=False)]).serialize().to_pybytes())
    assert tables.schema_from_bytes(tables.schema_to_bytes(TARGET)).equals(TARGET)


MESSAGES = [
    StreamSchema(columns=b"x"),
    Delivery(frm=b"", to=b"1", rows=3, size=10),
    EndOfStream(state="gap", reason="why"),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_come_back(message: Any) -> None:
    assert decode_down(encode(message)) == message


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (ReadRequest, {"source": "a/b", "incarnation": "0" * 16, "position": b""}),
        (ReadRequest, {"source": "a", "incarnation": "zz", "position": b""}),
        (ReadRequest, {"source": "a", "incarnation": "0" * 16, "position": b"x" * 4097}),
        (ReadRequest, {"source": "a", "incarnation": "0" * 16, "position": b"", "window": 1}),
        (ReadRequest, {"source": "a", "incarnation": "0" * 16, "position": b"", "where": "x" * 5000}),
        (DescribeRequest, {"source": "a", "start": "yesterday"}),
        (Ack, {"position": 5}),
        (StreamPosition, {"seq": -1}),
    ],
)
def test_requests_over_their_limits_are_malformed(kind: Any, value: Any) -> None:
    with pytest.raises(Malformed):
        decode(msgspec.msgpack.encode(value), kind)


def test_a_delivery_of_a_gigabyte_is_malformed() -> None:
    with pytest.raises(Malformed):
        decode_down(msgspec.msgpack.encode({"t": "delivery", "frm": b"", "to": b"", "rows": 1, "size": 1 << 30}))


def test_positions_come_back_and_nothing_means_the_beginning() -> None:
    assert decode_position(encode_position(StreamPosition(seq=7, row=9, since=3))) == StreamPosition(
        seq=7, row=9, since=3
    )
    assert decode_position(b"") == StreamPosition(seq=0)
    with pytest.raises(Malformed):
        decode_position(b"nonsense")


@given(st.lists(st.text(min_size=1, max_size=256), max_size=300))
def test_a_record_fits_with_as_many_columns_as_possible(names: list[str]) -> None:
    columns = tuple(ColumnSummary(name=name, type="float64") for name in names)
    record = SourceRecord(kind="folder", incarnation="0" * 16, columns=columns, problem="p" * 480, note="n" * 480)
    data = fit_record(record)
    assert len(data) <= 4096
    back = decode(data, SourceRecord)
    assert len(back.columns) + back.more == len(columns)
    assert back.columns == columns[: len(back.columns)]
