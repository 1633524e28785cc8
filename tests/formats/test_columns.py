"""What metadata say about columns, and which columns are positions and times."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from island.errors import BadInput
from island.formats import columns
from island.formats.describe import describe
from island.formats.stats import unix_seconds

VOTABLE = b"""<?xml version="1.0"?>
<v:VOTABLE xmlns:v="http://www.ivoa.net/xml/VOTable/v1.3"><v:RESOURCE><v:TABLE>
<v:FIELD name="ra" datatype="double" unit="deg" ucd="pos.eq.ra;meta.main">
  <v:DESCRIPTION>Right
  ascension</v:DESCRIPTION></v:FIELD>
<v:FIELD name="mag" datatype="float" unit="mag" ucd="phot.mag"/>
</v:TABLE></v:RESOURCE></v:VOTABLE>"""


def test_votable_header_in_parquet(tmp_path: Path) -> None:
    table = pa.table({"ra": [1.0], "dec": [1.0], "mag": [2.0]})
    table = table.replace_schema_metadata({"IVOA.VOTable-Parquet.content": VOTABLE})
    pq.write_table(table, tmp_path / "a.parquet")
    found = {column.name: column for column in describe(tmp_path / "a.parquet").columns}
    assert (found["ra"].unit, found["ra"].ucd) == ("deg", "pos.eq.ra;meta.main")
    assert found["ra"].description == "Right ascension"
    assert found["mag"].unit == "mag"
    assert found["dec"].unit == ""


@pytest.mark.parametrize(
    "content",
    [
        b"<VOTABLE><FIELD name='a'",
        b'<!DOCTYPE x [<!ENTITY a "b"><!ENTITY c "&a;&a;&a;">]><VOTABLE><FIELD name="&c;" unit="x"/></VOTABLE>',
        '<!DOCTYPE x [<!ENTITY a "b">]><VOTABLE><FIELD name="&a;"/></VOTABLE>'.encode("utf-16"),
        b"<VOTABLE>" + b" " * (5 << 20) + b"<FIELD name='a' unit='m'/></VOTABLE>",
        b"\xff\xfe\x00",
        b"",
    ],
)
def test_votable_that_is_not_read(content: bytes) -> None:
    assert columns.votable_notes(content) == {}


def test_astropy_header() -> None:
    """As astropy's Table.write(format='parquet') leaves it."""
    header = (
        "datatype:\n- {name: ra, unit: deg, datatype: float64, description: Right ascension}\n"
        "- {name: n, datatype: int64}\n- {name: flux, unit: !astropy.units.Unit {unit: mJy}, datatype: float32}\n"
    )
    notes = columns.file_notes({b"table_meta_yaml": header.encode()})
    assert {name: note.unit for name, note in notes.items()} == {"ra": "deg", "flux": "mJy"}


def test_field_metadata_in_any_case() -> None:
    notes = columns.field_notes({b"Unit": b"deg", b"UCD": b"pos.eq.ra", b"DESCRIPTION": b" where ", b"other": b"x"})
    assert notes == columns.ColumnMetadata("deg", "pos.eq.ra", "where")


def schema_columns(*fields: tuple[str, Any] | tuple[str, Any, dict[str, str]]) -> tuple[columns.Column, ...]:
    return columns.of_schema(pa.schema([pa.field(f[0], f[1], metadata=f[2] if len(f) > 2 else None) for f in fields]))


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (("ra", "dec"), ("ra", "dec")),
        (("RA", "DEC"), ("RA", "DEC")),
        (("RAJ2000", "DEJ2000"), ("RAJ2000", "DEJ2000")),
        (("RA_ICRS", "DE_ICRS", "RAJ2000", "DEJ2000"), ("RA_ICRS", "DE_ICRS")),
        (("raMean", "decMean"), ("raMean", "decMean")),
        (("coord_ra", "coord_dec"), ("coord_ra", "coord_dec")),
        (("ra", "mag"), None),
        (("source_ra", "source_dec"), None),
        (("l", "b"), None),
    ],
)
def test_customary_names(names: tuple[str, ...], pair: tuple[str, str] | None) -> None:
    found, doubts = columns.find_position(schema_columns(*((name, pa.float64()) for name in names)))
    assert (None if found is None else (found.ra, found.dec)) == pair
    assert doubts == []


def test_text_coordinates_are_not_taken() -> None:
    assert columns.find_position(schema_columns(("ra", pa.string()), ("dec", pa.string()))) == (None, [])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([("mjd", pa.float64())], ("mjd", "mjd")),
        ([("jd", pa.float64())], ("jd", "jd")),
        ([("time", pa.int64())], None),
        ([("epoch", pa.float64())], None),
        ([("time", pa.timestamp("ns"))], ("time", "timestamp")),
        ([("created", pa.timestamp("ns"))], None),
        ([("t", pa.float64(), {"ucd": "time.epoch", "unit": "d"})], ("t", "days")),
        ([("t", pa.float64(), {"ucd": "time.epoch", "unit": "yr"})], ("t", "julian_year")),
        ([("t", pa.float64(), {"ucd": "time.duration", "unit": "d"})], None),
        ([("t", pa.float64(), {"ucd": "time.epoch"})], None),
        ([("timestamp", pa.timestamp("us")), ("candidate", pa.struct([("jd", pa.float64())]))], ("candidate.jd", "jd")),
        ([("mjd", pa.string())], None),
    ],
)
def test_time_columns(fields: list[Any], expected: tuple[str, str] | None) -> None:
    found = columns.find_time(schema_columns(*fields))
    assert (None if found is None else (found.name, found.kind)) == expected


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("mjd", 51544.0, "2000-01-01T00:00:00+00:00"),
        ("jd", 2451544.5, "2000-01-01T00:00:00+00:00"),
        ("days", 2451544.5, "2000-01-01T00:00:00+00:00"),
        ("days", 51544.0, "2000-01-01T00:00:00+00:00"),
        ("mjd_tai", 51544.0, "1999-12-31T23:59:28+00:00"),
        ("mjd_tai", 61000.0, "2025-11-20T23:59:23+00:00"),
        ("julian_year", 2000.0, "2000-01-01T11:58:55.816000+00:00"),
    ],
)
def test_times_mean_what_they_say(kind: str, value: float, expected: str) -> None:
    (seconds,) = unix_seconds(pa.array([value]), kind)
    assert abs(seconds - datetime.datetime.fromisoformat(expected).timestamp()) < 1e-3


def test_dates_and_zones() -> None:
    moment = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC).timestamp()
    for array in (
        pa.array([datetime.date(2026, 1, 2)]),
        pa.array([datetime.date(2026, 1, 2)]).cast(pa.timestamp("ns", "Europe/Paris")),
        pa.array([datetime.datetime(2026, 1, 2)], pa.timestamp("s")),
    ):
        assert unix_seconds(array, "timestamp")[0] == moment
    assert np.isnan(unix_seconds(pa.array([None], pa.timestamp("s")), "timestamp")[0])


def test_implausible_times_are_left_out_and_told(tmp_path: Path) -> None:
    pq.write_table(pa.table({"mjd": [59000.0, -99.0e9, None], "x": [1, 2, 3]}), tmp_path / "a.parquet")
    said = describe(tmp_path / "a.parquet")
    assert said.time_range == ("2020-05-31T00:00:00.000Z", "2020-05-31T00:00:00.000Z")
    assert any("2 rows have no plausible time" in warning for warning in said.warnings)


def test_names_that_people_type() -> None:
    assert columns.find("RA", ["ra", "dec"]) == "ra"
    assert columns.find("ra", ["ra", "RA"]) == "ra"
    with pytest.raises(BadInput, match="ambiguous"):
        columns.find("Ra", ["ra", "RA"])
    with pytest.raises(BadInput) as caught:
        columns.find("magspf", ["candidate.magpsf", "candidate.sigmapsf", "objectId", "magpsf"])
    assert "magpsf" in caught.value.hint
    with pytest.raises(BadInput) as caught:
        columns.find("magpsf", ["objectId", "candidate.magpsf"])
    assert "candidate.magpsf" in caught.value.hint


def test_duplicate_and_nested_limits() -> None:
    with pytest.raises(BadInput, match="two columns are named a"):
        schema_columns(("a", pa.int64()), ("a", pa.int64()))
    kind: Any = pa.int64()
    for _ in range(60):
        kind = pa.struct([("x", kind)])
    with pytest.raises(BadInput, match="is nested deeper"):
        schema_columns(("a", kind))


def test_stats_keep_what_pruning_needs(tmp_path: Path) -> None:
    pq.write_table(
        pa.table(
            {
                "x": [1.0, float("nan"), None, -2.0],
                "n": pa.array([2**64 - 1, 0, None, 5], pa.uint64()),
                "all": pa.array([None] * 4, pa.float32()),
                "c": [{"m": 3}, None, {"m": -7}, {"m": None}],
            }
        ),
        tmp_path / "a.parquet",
    )
    found = {item.name: item for item in describe(tmp_path / "a.parquet").files[0].stats}
    assert (found["x"].low, found["x"].high, found["x"].nulls, found["x"].nans) == (-2.0, 1.0, 1, True)
    assert (found["n"].low, found["n"].high) == (0, 2**64 - 1)
    assert (found["all"].low, found["all"].nulls) == (None, 4)
    assert (found["c.m"].low, found["c.m"].high, found["c.m"].nulls) == (-7, 3, 2)


@pytest.mark.parametrize("typed", ["magpsf", "MAGPSF", "magsf", "cand.magpsf", "candidate.magspf"])
def test_a_nested_column_is_suggested_for_its_mistyped_field(typed: str) -> None:
    known = ["objectId", "candid", "candidate.jd", "candidate.magpsf", "candidate.diffmaglim", "cutout.stampData"]
    with pytest.raises(BadInput) as error:
        columns.find(typed, known)
    assert error.value.hint.startswith("Did you mean candidate.magpsf")


def test_a_long_list_of_columns_is_shortened() -> None:
    with pytest.raises(BadInput) as error:
        columns.find("zzz", [f"column{number}" for number in range(10)])
    assert error.value.hint.endswith("column7 and 2 more.")
