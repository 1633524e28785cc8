"""Describing files and folders: what is said must be true of the real files, and of ones made to trap."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from island.errors import BadInput, Corrupt, IslandError, Unsupported
from island.formats import rows
from island.formats.coverage import from_bitmap, moc_flags
from island.formats.describe import DatasetDescription, data_paths, describe, detect
from island.formats.parquet import parquet_borders


def write(path: Path, columns: dict[str, Any], units: dict[str, dict[str, str]] | None = None) -> Path:
    table = pa.table(columns)
    for index, field in enumerate(table.schema):
        said = (units or {}).get(field.name)
        if said:
            table = table.set_column(index, field.with_metadata(said), table.column(index))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def expected_cells(ra: Any, dec: Any, order: int = 5) -> set[int]:
    import mocpy  # an independent implementation of the grid's interface
    from astropy import units as u
    from astropy.coordinates import Latitude, Longitude

    moc = mocpy.MOC.from_lonlat(Longitude(ra * u.deg), Latitude(dec * u.deg), max_norder=order)
    return {int(cell) for cell in moc.flatten()}


# --- the real files ---


def test_hats_source_catalog(shared_data: Path) -> None:
    folder = shared_data / "hats" / "small_sky_source"
    said = describe(folder)
    assert (said.format, said.rows) == ("hats", 17161)
    assert said.partitioning is not None
    assert said.partitioning.main.partitions == 14
    assert said.partitioning.main.orders == (0, 1, 2)
    assert said.position is not None
    assert (said.position.ra, said.position.dec, said.position.how) == (
        "source_ra",
        "source_dec",
        "by HATS properties",
    )
    assert said.problems == ()
    assert said.warnings == ()
    data = [file for file in said.files if file.role == "data"]
    assert len(data) == 14
    assert sum(file.rows for file in data) == 17161
    others = {file.path for file in said.files} - {file.path for file in data}
    assert {"properties", "dataset/_metadata", "partition_info.csv", "skymap.fits"} <= others
    table = pa.concat_tables([pq.ParquetFile(folder / file.path).read() for file in data])
    ra, dec = (table.column(name).to_numpy() for name in ("source_ra", "source_dec"))
    assert said.coverage is not None
    assert len(said.coverage) == 1536
    assert set(from_bitmap(said.coverage)) == expected_cells(ra, dec)
    assert said.moc is not None
    import mocpy

    assert mocpy.MOC.from_string(said.moc, format="ascii") == mocpy.MOC.from_string(
        "10/" + " ".join(str(cell) for cell in sorted(expected_cells(ra, dec, 10))), format="ascii"
    )
    mjd = table.column("mjd").to_numpy()
    assert said.time_range == ("2018-09-02T06:52:21.171Z", "2021-12-14T20:41:47.132Z")
    assert 58363.2863 < mjd.min() < 58363.2865
    assert 59562.8623 < mjd.max() < 59562.8625
    first = data[0]
    stats = {item.name: item for item in first.stats}
    own = pq.ParquetFile(folder / first.path).read()
    assert stats["mag"].low == own.column("mag").to_numpy().min()
    assert stats["mag"].high == own.column("mag").to_numpy().max()
    assert "band" not in stats


def test_hats_collection_is_its_main_catalog(shared_data: Path) -> None:
    said = describe(shared_data / "hats" / "small_sky_o1_collection")
    assert said.partitioning is not None
    assert said.partitioning.is_collection
    parts = {part.name: part for part in said.partitioning.parts}
    assert said.partitioning.main.name == "small_sky_order1"
    assert (said.rows, parts["small_sky_order1"].rows, parts["small_sky_order1"].partitions) == (131, 131, 4)
    margin = parts["small_sky_order1_margin"]
    assert (margin.role, margin.rows, margin.margin_arcsec, margin.is_default) == ("margin", 47, 7200.0, True)
    empty = parts["small_sky_order1_margin_10arcs"]
    assert (empty.rows, empty.margin_arcsec, empty.is_default) == (0, 10.0, False)
    index = parts["small_sky_order1_id_index"]
    assert (index.role, index.rows, index.index_column) == ("index", 131, "id")
    assert said.problems == ()
    assert {file.role for file in said.files} == {"data", "margin", "index", "metadata"}
    main = describe(shared_data / "hats" / "small_sky_o1_collection" / "small_sky_order1")
    assert said.coverage == main.coverage
    assert len(data_paths(shared_data / "hats" / "small_sky_o1_collection")) == 4


def test_hats_with_a_folder_per_pixel(shared_data: Path) -> None:
    said = describe(shared_data / "hats" / "small_sky_npix_as_dir")
    assert (said.rows, said.problems) == (131, ())
    assert [file.path for file in said.files if file.role == "data"] == ["dataset/Norder=0/Dir=0/Npix=11/part0.parquet"]


def test_hats_margin_without_rows_keeps_its_schema(shared_data: Path) -> None:
    said = describe(shared_data / "hats" / "small_sky_o1_collection" / "small_sky_order1_margin_10arcs")
    assert said.rows == 0
    assert [column.name for column in said.columns][:3] == ["_healpix_29", "id", "ra"]
    assert said.coverage == bytes(1536)


@pytest.mark.parametrize(
    ("name", "rows", "cells", "times"),
    [
        ("alerts/ztf/ZTF19acihgng.avro", 1, 1, "2019-11-27"),
        ("alerts/ztf/avro_multi_alerts.avro", 11, 10, "2019-11-01"),
        ("alerts/ztf/part-3-305711.avro", 31, 20, "2026-03-22"),
        ("alerts/lsst/part-2-918301.avro", 7, 3, "2026-03-06"),
    ],
)
def test_alerts(shared_data: Path, name: str, rows: int, cells: int, times: str) -> None:
    said = describe(shared_data / name)
    assert (said.format, said.rows) == ("avro", rows)
    assert said.position is not None
    assert said.coverage is not None
    assert len(from_bitmap(said.coverage)) >= min(cells, rows)
    assert said.time_range is not None
    assert said.time_range[0].startswith(times)
    assert said.time_column is not None
    assert said.time_column.name in ("candidate.jd", "diaSource.midpointMjdTai")


def test_alert_columns_are_dotted_and_documented(shared_data: Path) -> None:
    said = describe(shared_data / "alerts" / "ztf" / "ZTF19acihgng.avro")
    columns = {column.name: column for column in said.columns}
    assert columns["candidate.magpsf"].type == "float"
    assert columns["candidate.magpsf"].description.startswith("Magnitude from PSF-fit photometry")
    assert columns["prv_candidates"].type.startswith("list<struct<jd: double")
    assert columns["cutoutScience.stampData"].type == "binary"


def test_lsst_time_is_tai(shared_data: Path) -> None:
    said = describe(shared_data / "alerts" / "lsst" / "part-2-918301.avro")
    assert said.time_column is not None
    assert said.time_column.kind == "mjd_tai"
    assert said.time_range == ("2026-03-06T02:14:13.797Z", "2026-03-06T02:17:20.181Z")


def test_syncinmeta_is_a_valid_file(shared_data: Path) -> None:
    """Its header has values that are not text; fastavro's own reader refuses it."""
    assert describe(shared_data / "avro" / "syncInMeta.avro").rows == 6001


@pytest.mark.parametrize("codec", ["", "-deflate", "-snappy", "-zstd", "-sorted"])
def test_weather_under_every_codec(shared_data: Path, codec: str) -> None:
    said = describe(shared_data / "avro" / f"weather{codec}.avro")
    assert said.rows == 5
    assert [column.name for column in said.columns] == ["station", "time", "temp"]
    # A plain number called `time` has no zero and no unit: no time range is guessed from it.
    assert said.time_range is None


def test_parquet_corner_cases(shared_data: Path) -> None:
    folder = shared_data / "parquet"
    rows = {
        "alltypes_plain.parquet": 8,
        "alltypes_plain.snappy.parquet": 2,
        "alltypes_tiny_pages.parquet": 7300,
        "data_index_bloom_encoding_with_length.parquet": 14,
        "datapage_v1-uncompressed-checksum.parquet": 5120,
        "nation.dict-malformed.parquet": 25,
        "nested_structs.rust.parquet": 1,
    }
    assert {name: describe(folder / name).rows for name in rows} == rows


def test_a_row_of_a_gigabyte_is_unsupported_before_it_is_decompressed(shared_data: Path) -> None:
    """4 KiB on disk, two rows of 1 GiB each."""
    with pytest.raises(Unsupported, match="256 MiB per row"):
        describe(shared_data / "parquet" / "large_string_map.brotli.parquet")


def test_a_codec_that_is_not_known_makes_a_column_unsupported(tmp_path: Path) -> None:
    """The footer says LZO, Parquet's codec 3, for one column of two; the other is published."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"ra": [1.0], "dec": [2.0], "odd": [3]}), path, compression={"odd": "BROTLI"})
    data = path.read_bytes()
    start = parquet_borders(path)[-1]
    # path_in_schema ["odd"] (a list of one string), then field 4, an i32: codec 4 (BROTLI) in zigzag.
    before = b"\x19\x18\x03odd\x15\x08"
    at = data.index(before, start)
    path.write_bytes(data[:at] + b"\x19\x18\x03odd\x15\x06" + data[at + len(before) :])
    said = describe(path)
    assert {column.name: column.unsupported for column in said.columns} == {
        "ra": "",
        "dec": "",
        "odd": "compression LZO",
    }
    assert said.rows == 1
    assert said.coverage is not None
    assert any("odd cannot be decoded" in problem for problem in said.problems)
    with pytest.raises(Unsupported, match="column odd"):
        list(rows.read_batches(path))


# --- what bad input gets ---


def test_corrupt_page_is_refused_with_its_place(shared_data: Path) -> None:
    with pytest.raises(Corrupt, match=r"corrupt-checksum.parquet .*row group 0, column a.*CRC"):
        describe(shared_data / "parquet" / "datapage_v1-corrupt-checksum.parquet")


def test_halves_are_told_as_cut(shared_data: Path, tmp_path: Path) -> None:
    for name in ("parquet/alltypes_tiny_pages.parquet", "alerts/ztf/part-3-305711.avro"):
        whole = (shared_data / name).read_bytes()
        half = tmp_path / Path(name).name
        half.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(Corrupt, match=r"truncated") as caught:
            describe(half)
        assert str(half) in caught.value.message
        assert caught.value.hint


@pytest.mark.parametrize("keep", [1, 4, 5, 8, 11, 40, 200, 2000])
def test_avro_cut_anywhere_is_told(shared_data: Path, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "x.avro"
    path.write_bytes((shared_data / "alerts" / "ztf" / "ZTF19acihgng.avro").read_bytes()[:keep])
    with pytest.raises(Corrupt):
        describe(path)


def test_missing_empty_and_strange(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no file"):
        describe(tmp_path / "nothing.parquet")
    (tmp_path / "empty.parquet").write_bytes(b"")
    with pytest.raises(Corrupt, match="is empty"):
        detect(tmp_path / "empty.parquet")
    (tmp_path / "text.parquet").write_text("hello, world")
    with pytest.raises(Corrupt, match="does not begin like parquet"):
        detect(tmp_path / "text.parquet")
    (tmp_path / "a.fits").write_text("SIMPLE  =                    T")
    with pytest.raises(Unsupported, match="neither Parquet nor Avro"):
        detect(tmp_path / "a.fits")
    (tmp_path / "sealed.parquet").write_bytes(b"PARE" + bytes(20) + b"PARE")
    with pytest.raises(Unsupported, match="encrypted"):
        detect(tmp_path / "sealed.parquet")
    (tmp_path / "none").mkdir()
    with pytest.raises(BadInput, match="contains no data"):
        detect(tmp_path / "none")


def test_hidden_and_half_written_files_are_no_data(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": [1]})
    for name in (".b.parquet", "_c.parquet", "d.parquet.tmp", "e.parquet.part", ".hidden/f.parquet", "_x/g.parquet"):
        write(tmp_path / name, {"y": ["other"]})
    pq.write_metadata(pa.schema([("x", pa.int64())]), tmp_path / "_common_metadata")
    said = describe(tmp_path)
    assert [(file.path, file.role) for file in said.files] == [("_common_metadata", "metadata"), ("a.parquet", "data")]


def test_mixed_folder_and_mixed_schemas(tmp_path: Path, shared_data: Path) -> None:
    write(tmp_path / "mixed" / "a.parquet", {"x": [1]})
    shutil.copy(shared_data / "avro" / "weather.avro", tmp_path / "mixed" / "b.avro")
    with pytest.raises(BadInput, match=r"both Parquet \(a.parquet\) and Avro \(b.avro\)"):
        detect(tmp_path / "mixed")
    write(tmp_path / "two" / "a.parquet", {"x": [1], "y": ["s"]})
    write(tmp_path / "two" / "b.parquet", {"x": [1], "y": ["s"]})
    write(tmp_path / "two" / "c.parquet", {"x": [1], "y": [2]})
    with pytest.raises(
        BadInput, match=r"c.parquet does not have the schema of a.parquet: column y is int64, not string"
    ):
        describe(tmp_path / "two")
    write(tmp_path / "two" / "c.parquet", {"x": [1]})
    with pytest.raises(BadInput, match=r"column y is missing"):
        describe(tmp_path / "two")


def test_column_order_and_encoding_may_differ(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": [1], "y": ["s"]})
    write(tmp_path / "b.parquet", {"y": pa.array(["t"]).dictionary_encode(), "x": [2]})
    assert describe(tmp_path).rows == 2


def test_flipped_bytes_never_pass_as_something_else(shared_data: Path, tmp_path: Path) -> None:
    """Any single damaged byte gives the same description or an IslandError, never another exception."""
    whole = (shared_data / "alerts" / "ztf" / "avro_multi_alerts_other.avro").read_bytes()
    parquet = (shared_data / "parquet" / "alltypes_plain.parquet").read_bytes()
    for name, data, step in (("x.avro", whole, 4999), ("x.parquet", parquet, 37)):
        for at in range(0, len(data), step):
            damaged = bytearray(data)
            damaged[at] ^= 0xFF
            path = tmp_path / name
            path.write_bytes(bytes(damaged))
            try:
                assert isinstance(describe(path), DatasetDescription)
            except IslandError:
                pass


def test_text_that_is_not_utf8_is_corrupt(tmp_path: Path) -> None:
    bad = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe"))
    pq.write_table(pa.table({"s": bad}), tmp_path / "a.parquet")
    with pytest.raises(Corrupt, match="column s contains values"):
        describe(tmp_path / "a.parquet")


# --- positions ---


def test_radians_without_a_unit_are_questioned(tmp_path: Path) -> None:
    columns = {"ra": [0.1, 3.0, 6.28], "dec": [-1.5, 0.0, 1.5]}
    said = describe(write(tmp_path / "a.parquet", columns))
    assert any("has no unit and no value above 2π" in warning for warning in said.warnings)
    in_degrees = describe(write(tmp_path / "b.parquet", columns, {"ra": {"unit": "deg"}, "dec": {"unit": "deg"}}))
    assert in_degrees.warnings == ()
    assert in_degrees.coverage == said.coverage
    in_radians = describe(write(tmp_path / "c.parquet", columns, {"ra": {"UNIT": "rad"}, "dec": {"unit": "rad"}}))
    assert in_radians.warnings == ()
    assert in_radians.coverage is not None
    assert set(from_bitmap(in_radians.coverage)) == expected_cells(
        np.degrees(columns["ra"]), np.degrees(columns["dec"])
    )


def test_position_by_ucd_beats_names(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet",
        {"ra": [1.0], "dec": [1.0], "x": [200.0], "y": [45.0]},
        {"x": {"ucd": "pos.eq.ra;meta.main", "unit": "deg"}, "y": {"ucd": "pos.eq.dec;meta.main", "unit": "deg"}},
    )
    said = describe(path)
    assert said.position is not None
    assert (said.position.ra, said.position.how) == ("x", "by UCD")


def test_named_positions(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"alpha": [200.0], "delta": [45.0], "name": ["x"]})
    assert describe(path).position is None
    assert any("--ra" in warning for warning in describe(path).warnings)
    said = describe(path, ra="Alpha", dec="delta")
    assert said.position is not None
    assert said.position.how == "named when published"
    with pytest.raises(BadInput, match="there is no column alpa") as caught:
        describe(path, ra="alpa", dec="delta")
    assert "alpha" in caught.value.hint
    with pytest.raises(BadInput, match="is not numeric"):
        describe(path, ra="name", dec="delta")
    with pytest.raises(BadInput, match="together"):
        describe(path, ra="alpha")


def test_hours_nulls_and_impossible_positions(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet",
        {"RAJ2000": [12.0, None, float("nan"), 1.0], "DEJ2000": [10.0, 1.0, 1.0, 91.0]},
        {"RAJ2000": {"unit": "hourangle"}, "DEJ2000": {"unit": "deg"}},
    )
    said = describe(path)
    assert said.coverage is not None
    assert set(from_bitmap(said.coverage)) == expected_cells(np.array([180.0]), np.array([10.0]))
    assert any("3 of 4 rows have no position" in warning for warning in said.warnings)


def test_unknown_unit_gives_no_coverage_rather_than_a_wrong_one(tmp_path: Path) -> None:
    said = describe(write(tmp_path / "a.parquet", {"ra": [1.0], "dec": [2.0]}, {"ra": {"unit": "furlong"}}))
    assert said.coverage is None
    assert any("furlong" in warning for warning in said.warnings)


def test_several_possible_pairs_are_not_guessed(tmp_path: Path) -> None:
    table = pa.table({"a": [{"ra": 1.0, "dec": 1.0}], "b": [{"ra": 2.0, "dec": 2.0}]})
    pq.write_table(table, tmp_path / "a.parquet")
    said = describe(tmp_path / "a.parquet")
    assert said.position is None
    assert any("several column pairs" in warning for warning in said.warnings)


# --- HATS that contradicts itself ---


def test_hats_contradictions_are_told(shared_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cat"
    shutil.copytree(shared_data / "hats" / "small_sky_o1_collection" / "small_sky_order1", folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    pixels = folder / "dataset" / "Norder=1" / "Dir=0"
    (pixels / "Npix=44.parquet").rename(pixels / "Npix=43.parquet")
    (pixels / "Npix=47.parquet").unlink()
    said = describe(folder)
    assert said.rows == 113
    text = "\n".join(said.problems)
    assert "42 rows of small_sky_order1 lie outside the HEALPix cell" in text
    assert "hats_nrows=131, but its files have 113" in text
    assert "partition_info.csv" in text
    assert "_metadata of small_sky_order1 states 131" in text


def test_hats_collection_that_points_outside_is_refused(tmp_path: Path) -> None:
    for name in ("../elsewhere", "/etc", "", "missing"):
        (tmp_path / "collection.properties").write_text(f"obs_collection=x\nhats_primary_table_url={name}\n")
        with pytest.raises(BadInput):
            describe(tmp_path)


# --- what was known before ---


def test_unchanged_files_are_not_read_again(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"ra": [10.0, 200.0], "dec": [10.0, 20.0], "mjd": [59000.0, 59001.0]})
    before = describe(tmp_path)
    write(tmp_path / "b.parquet", {"ra": [300.0], "dec": [-80.0], "mjd": [60000.0]})
    whole = describe(tmp_path)
    # Damage what must not be read: only the footer of the first file is looked at.
    path = tmp_path / "a.parquet"
    data = bytearray(path.read_bytes())
    data[10:60] = bytes(50)
    path.write_bytes(bytes(data))
    with pytest.raises(Corrupt):
        describe(tmp_path)
    assert describe(tmp_path, previous=before, unchanged=["a.parquet"]) == whole


def test_progress_reaches_the_end(shared_data: Path) -> None:
    told: list[tuple[int, int, str]] = []
    folder = shared_data / "hats" / "small_sky_source"
    said = describe(folder, progress=lambda done, total, name: told.append((done, total, name)))
    assert told[-1][0] == told[-1][1] == said.bytes
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)


def test_moc_is_never_smaller_than_the_rows(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    ra, dec = generator.uniform(0, 360, 60_000), np.degrees(np.arcsin(generator.uniform(-1, 1, 60_000)))
    said = describe(write(tmp_path / "a.parquet", {"ra": ra, "dec": dec}))
    assert said.moc is not None
    assert len(said.moc) <= 128 * 1024
    flags = moc_flags(said.moc)
    for cell in expected_cells(ra, dec, 10):
        assert flags[cell]
