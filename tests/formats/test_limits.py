"""Limits on what is read of one file."""

from __future__ import annotations

from pathlib import Path

import pytest

from island.errors import OverLimit
from island.formats import rows
from island.formats.avro import to_parquet
from island.formats.describe import describe
from island.formats.limits import ReadLimits
from tests.islands.publishing import write_table
from tests.standins import bombs

FEW = ReadLimits(rows=1000)


@pytest.mark.parametrize("codec", ["null", "deflate", "zstandard", "snappy"])
def test_rows_of_avro_are_counted_as_they_come(tmp_path: Path, codec: str) -> None:
    fits = bombs.avro(tmp_path / "fits.avro", bombs.ONE_LONG, [(500, bytes(500))] * 2, codec)
    assert describe(fits, limits=FEW).rows == 1000
    many = bombs.avro(tmp_path / "many.avro", bombs.ONE_LONG, [(500, bytes(500))] * 3, codec)
    with pytest.raises(
        OverLimit, match=r"many\.avro has .* the limit for one file is 1000\n.*`rows` under \[decoding\]"
    ):
        describe(many, limits=FEW)
    with pytest.raises(OverLimit):
        list(rows.open_table(many, limits=FEW)[1])
    with pytest.raises(OverLimit):
        to_parquet([many], tmp_path / "converted", limits=FEW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fits.avro", "many.avro"]


def test_rows_of_parquet_are_refused_by_the_footer(tmp_path: Path) -> None:
    many = write_table(tmp_path / "many.parquet", 1001)
    with pytest.raises(OverLimit, match=r"has at least 1001 rows"):
        describe(many, limits=FEW)
    with pytest.raises(OverLimit, match=r"has at least 1001 rows"):
        rows.open_table(many, limits=FEW)
    assert describe(write_table(tmp_path / "fits.parquet", 1000), limits=FEW).rows == 1000
