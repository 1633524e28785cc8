"""Avro files: their schema, and their rows as Parquet for Spark.

`container` reads the blocks, `avro_types` turns schemas and records into Arrow.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from island.errors import BadInput
from island.formats import container
from island.formats.avro_types import Decoder
from island.formats.columns import Progress
from island.formats.rows import open_table, write_parquet
from island.formats.schemas import difference, fit

__all__ = ["schema_of", "to_parquet"]

PART_BYTES = 128 * 1024 * 1024


def schema_of(path: Path) -> Any:
    """The Avro schema in the header of a file, as parsed JSON; Corrupt or Unsupported where there is none."""
    return container.header_of(path).schema


def to_parquet(
    sources: Sequence[Path], target: Path, progress: Progress | None = None, *, part_bytes: int = PART_BYTES
) -> list[Path]:
    """Write the records of Avro files of one schema as Parquet that Spark 3.5 reads, in order.

    A target that ends with `.parquet` becomes one file; any other is made a folder of
    `part-00000.parquet`, ... of about `part_bytes` of Arrow data each, which appears whole or not at all.
    Returns the files. Types: see `avro_types`. Raises Unsupported naming the column that has no
    Arrow form, Corrupt for a broken file, BadInput where schemas differ or the folder exists.
    """
    if not sources:
        raise BadInput("there are no Avro files to convert", hint="Name at least one.")
    schema = Decoder(schema_of(sources[0]), name=str(sources[0])).schema
    stream = _all_batches(sources, schema, progress)
    if target.suffix == ".parquet":
        write_parquet(stream, target, schema=schema)
        return [target]
    if target.exists():
        raise BadInput(f"{target} exists already", hint="Name a folder that does not exist.")
    staging = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        names = _write_parts(stream, staging, schema, part_bytes)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [target / name for name in names]


def _write_parts(stream: Iterator[Any], folder: Path, schema: Any, part_bytes: int) -> list[str]:
    names: list[str] = []
    following = next(stream, None)
    while following is not None or not names:

        def part() -> Iterator[Any]:
            nonlocal following
            size = 0
            while following is not None and size < part_bytes:
                size += following.nbytes
                yield following
                following = next(stream, None)

        names.append(f"part-{len(names):05d}.parquet")
        write_parquet(part(), folder / names[-1], schema=schema)
    return names


def _all_batches(sources: Sequence[Path], schema: Any, progress: Progress | None) -> Iterator[Any]:
    total = sum(path.stat().st_size for path in sources)
    before = 0
    for path in sources:
        own, stream = open_table(path)
        what = difference(schema, own)
        if what:
            raise BadInput(
                f"{path} has another schema than {sources[0]}: {what}", hint="Convert files of one schema together."
            )
        for batch, done in stream:
            if progress is not None:
                progress(before + done, total, path.name)
            yield fit(batch, schema)
        before += path.stat().st_size
        if progress is not None:
            progress(before, total, path.name)
