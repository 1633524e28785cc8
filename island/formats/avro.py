"""Avro files: reads their schema, and converts their rows to Parquet for Spark.

`avro_container` reads the blocks; `avro_types` converts schemas and records to Arrow.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from island.errors import BadInput, Full
from island.formats import avro_container
from island.formats.avro_types import AvroDecoder
from island.formats.columns import Progress
from island.formats.limits import DEFAULT_LIMITS, ReadLimits
from island.formats.rows import open_table, write_parquet
from island.formats.schemas import difference, fit_batch
from island.kernel.process_messages import Emit

__all__ = ["schema_of", "staging_of", "to_parquet", "to_parquet_in_steps"]

PART_BYTES = 128 * 1024 * 1024
PROGRESS_BYTES = 1024 * 1024


def schema_of(path: Path) -> Any:
    """The Avro schema in the header of a file, as parsed JSON. Raises BadInput, Corrupt or Unsupported."""
    return avro_container.header_of(path).schema


def to_parquet(
    sources: Sequence[Path],
    target: Path,
    progress: Progress | None = None,
    *,
    part_bytes: int = PART_BYTES,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> list[Path]:
    """Convert Avro files of one schema to Parquet that Spark 3.5 can read, in order.

    If the name of `target` ends with `.parquet`, one file is written; else a folder with
    `part-00000.parquet`, ... of about `part_bytes` of Arrow data each is created atomically.
    Returns the files. `avro_types` documents the types. Raises Unsupported with the column that
    has no Arrow type, Corrupt for an invalid file, and BadInput if the schemas differ or the
    folder exists.
    """
    if not sources:
        raise BadInput("there are no Avro files to convert", hint="Give at least one file.")
    schema = AvroDecoder(schema_of(sources[0]), name=str(sources[0])).schema
    stream = _all_batches(sources, schema, progress, limits)
    if target.suffix == ".parquet":
        write_parquet(stream, target, schema=schema)
        return [target]
    if target.exists():
        raise BadInput(f"{target} already exists", hint="Choose a folder that does not exist.")
    staging = staging_of(target)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        names = _write_parts(stream, staging, schema, part_bytes)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [target / name for name in names]


def staging_of(target: Path) -> Path:
    """The temporary folder in which `to_parquet` writes the files before it renames the folder to `target`."""
    return target.with_name(f".{target.name}.tmp")


def to_parquet_in_steps(
    emit: Emit[tuple[int, int, str]], sources: list[Path], target: Path, limits: ReadLimits
) -> None:
    """`to_parquet` for a child process: emits its progress, at most once per `PROGRESS_BYTES`.

    Raises Full if the files cannot be written.
    """
    reported = -PROGRESS_BYTES

    def report(done: int, total: int, what: str) -> None:
        nonlocal reported
        if done - reported >= PROGRESS_BYTES or done == total:
            reported = done
            emit((done, total, what))

    try:
        to_parquet(sources, target, report, limits=limits)
    except OSError as error:
        raise Full(f"{target} cannot be written: {error.strerror or error}", hint="Check the disk.") from error


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


def _all_batches(sources: Sequence[Path], schema: Any, progress: Progress | None, limits: ReadLimits) -> Iterator[Any]:
    total = sum(path.stat().st_size for path in sources)
    before = 0
    for path in sources:
        own, stream = open_table(path, limits=limits)
        what = difference(schema, own)
        if what:
            raise BadInput(
                f"{path} does not have the schema of {sources[0]}: {what}",
                hint="Convert only files with the same schema together.",
            )
        for batch, done in stream:
            if progress is not None:
                progress(before + done, total, path.name)
            yield fit_batch(batch, schema)
        before += path.stat().st_size
        if progress is not None:
            progress(before, total, path.name)
