"""Describes a file or folder for publication: format, files, columns, statistics, sky coverage, time range.

Every page and block is decoded once, in bounded batches, and checksums are verified. Numbers of
rows, ranges, sky coverage and time range are computed from the rows, not taken from headers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from island.errors import BadInput, FilesChanged, IslandError, Unsupported
from island.formats import confined, files, hats, parquet, rows
from island.formats.columns import Column, PositionColumns, Progress, TimeColumn, find_position, find_time, of_schema
from island.formats.coverage import FINE_ORDER, Bitmap, SkyTally, moc_ascii, moc_flags
from island.formats.hats import HatsCatalog, HatsLayout, Role
from island.formats.limits import DEFAULT_LIMITS, ReadLimits
from island.formats.schemas import difference
from island.formats.stats import ColumnStats, DatasetStatsCollector, FileStatsCollector, stat_names
from island.kernel.process_messages import Emit

Format = Literal["parquet", "avro", "hats"]

MAX_NOTES = 100


class DataFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """One published file.

    `path` is the POSIX path relative to the published folder. `coverage` is an order-5 bitmap, or
    None if positions are not known. `time_range` is ISO 8601 in UTC. Files of role `metadata`
    have no rows.
    """

    path: str
    bytes: int
    role: Role
    format: Literal["parquet", "avro", "other"]
    rows: int = 0
    stats: tuple[ColumnStats, ...] = ()
    coverage: Bitmap | None = None
    time_range: tuple[str, str] | None = None


class HatsPart(msgspec.Struct, frozen=True, omit_defaults=True):
    """One catalog of a HATS tree: the main one (role data), a margin or an index."""

    path: str
    name: str
    role: Role
    kind: str
    rows: int
    orders: tuple[int, ...] = ()
    partitions: int = 0
    ra: str = ""
    dec: str = ""
    margin_arcsec: float | None = None
    index_column: str = ""
    is_default: bool = True


class Partitioning(msgspec.Struct, frozen=True):
    """The catalogs of a HATS dataset. The first part is the main catalog."""

    name: str
    is_collection: bool
    parts: tuple[HatsPart, ...]

    @property
    def main(self) -> HatsPart:
        return self.parts[0]


class DatasetDescription(msgspec.Struct, frozen=True):
    """The description of a dataset for publication.

    `rows` counts only files of role `data`; `bytes` counts all files. `coverage` (order-5 bitmap,
    1,536 bytes) and `moc` (ASCII, order 10, or coarser to stay within 128 KiB) are None if
    positions are not known; this differs from an empty coverage. `time_range` is ISO 8601 in UTC.
    `warnings` can be resolved by the user; `problems` are contradictions inside the files.
    """

    format: Format
    files: tuple[DataFile, ...]
    rows: int
    bytes: int
    columns: tuple[Column, ...]
    coverage: Bitmap | None = None
    moc: str | None = None
    time_range: tuple[str, str] | None = None
    position: PositionColumns | None = None
    time_column: TimeColumn | None = None
    partitioning: Partitioning | None = None
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def detect(path: Path) -> Format:
    """Detect the format of a file or folder.

    Raises BadInput (not found, no data, both formats in one folder), Corrupt (empty, truncated,
    content does not match the suffix), Unsupported (another format).
    """
    return _survey(path).format


def data_paths(path: Path) -> list[Path]:
    """The files with the rows of a dataset, sorted: one file, those of a folder, or those of a HATS main catalog."""
    survey = _survey(path)
    return [survey.root / relative for relative in survey.published if survey.role(relative) == "data"]


def describe(
    path: Path,
    *,
    ra: str | None = None,
    dec: str | None = None,
    progress: Progress | None = None,
    previous: DatasetDescription | None = None,
    unchanged: Collection[str] = (),
    limits: ReadLimits = DEFAULT_LIMITS,
) -> DatasetDescription:
    """Decode a file or folder completely and describe its content.

    `ra` and `dec` name the coordinate columns if they cannot be detected. `previous` is the
    description of an earlier version: data files whose relative paths are in `unchanged` are not
    read again. Raises as `detect`, and: Corrupt with file, row group and column or block offset;
    Unsupported for a type or codec; BadInput for files with different schemas or for missing
    coordinate columns; FilesChanged if a file changes while it is read; OverLimit if a file has
    more rows than `limits` allow.
    """
    if (ra is None) != (dec is None):
        raise BadInput("--ra and --dec must be given together", hint="Give both --ra and --dec.")
    found: list[DataFile] = []
    run = _Description(_survey(path), ra, dec, found.append, progress, limits)
    if previous is not None:
        run.remember(previous, frozenset(unchanged))
    return msgspec.structs.replace(run.run(), files=tuple(found))


class DescribeStep(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a child process that describes a dataset: progress, a file, or, last, the dataset without files.

    `progress` is (bytes done, total bytes, file).
    """

    progress: tuple[int, int, str] | None = None
    file: DataFile | None = None
    dataset: DatasetDescription | None = None


def describe_in_steps(
    emit: Emit[DescribeStep], path: Path, ra: str | None, dec: str | None, limits: ReadLimits
) -> None:
    """`describe` for a child process: emits each file when it is decoded, and does not keep it in memory."""

    def report(done: int, total: int, name: str) -> None:
        emit(DescribeStep(progress=(done, total, name)))

    run = _Description(_survey(path), ra, dec, lambda file: emit(DescribeStep(file=file)), report, limits)
    emit(DescribeStep(dataset=run.run()))


class _Survey(msgspec.Struct, frozen=True):
    """The files of a dataset, found without decoding them. Paths are relative to `root`."""

    root: Path
    format: Format
    published: tuple[str, ...]
    layout: HatsLayout | None = None

    def role(self, relative: str) -> Role:
        """The role of a published file."""
        if self.layout is not None:
            return self.layout.role_of(relative)
        return "metadata" if relative.rsplit("/", 1)[-1] in files.PARQUET_SIDECARS else "data"

    def part(self, relative: str) -> HatsCatalog | None:
        """The HATS catalog of a file; None for files outside of catalogs and for other formats."""
        return None if self.layout is None else self.layout.part_of(relative)


def _survey(path: Path) -> _Survey:
    if not path.is_dir():
        return _Survey(root=path.parent, format=files.sniff(path), published=(path.name,))
    published = files.walk(path)
    if hats.is_hats(path):
        return _Survey(root=path, format="hats", published=tuple(published), layout=hats.layout_of(path))
    kind, data = files.data_files(path, published)
    files.sniff(path / data[0])
    sidecars = [name for name in published if name.rsplit("/", 1)[-1] in files.PARQUET_SIDECARS]
    kept = sorted([*data, *(sidecars if kind == "parquet" else [])])
    return _Survey(root=path, format=kind, published=tuple(kept))


class _Group:
    """The files of one table: those of a dataset that is not HATS, or of one HATS catalog."""

    def __init__(self, part: HatsCatalog | None, role: Role) -> None:
        self.part, self.role = part, role
        self.first = ""
        self.schema: Any = None
        self.columns: tuple[Column, ...] = ()
        self.names: frozenset[str] = frozenset()
        self.lacking: dict[str, str] = {}
        self.stats = DatasetStatsCollector(None, None)
        self.rows = 0
        self.cells: set[hats.HatsPartition] = set()
        self.misplaced = 0


class _Description:
    """One run of `describe`."""

    def __init__(
        self,
        survey: _Survey,
        ra: str | None,
        dec: str | None,
        deliver: Callable[[DataFile], None],
        progress: Progress | None,
        limits: ReadLimits,
    ) -> None:
        self.survey, self.limits, self.deliver = survey, limits, deliver
        self.named = (ra, dec)
        self.progress = progress
        self.warnings: list[str] = []
        self.problems: list[str] = list(survey.layout.problems) if survey.layout else []
        self.groups: dict[str, _Group] = {}
        self.previous: DatasetDescription | None = None
        self.known: dict[str, DataFile] = {}
        self.reused = False
        self.total = sum(files.regular_size(survey.root / name) for name in survey.published)
        self.done = 0

    def remember(self, previous: DatasetDescription, unchanged: frozenset[str]) -> None:
        """Use the descriptions in `previous` for the unchanged data files."""
        self.previous = previous
        self.known = {file.path: file for file in previous.files if file.role == "data" and file.path in unchanged}

    def run(self) -> DatasetDescription:
        """Describe each file and pass the result to `deliver`; returns the description of the dataset without files."""
        for relative in self.survey.published:
            file = self._file(relative)
            self.deliver(file)
            self.done += file.bytes
            self._report(0, relative)
        main = self._main_group()
        if self.reused and self.previous is not None:
            self._add_previous(main, self.previous)
        self._judge(main)
        located = main.stats.position is not None or self._fill_from_partitions(main)
        return DatasetDescription(
            format=self.survey.format,
            files=(),
            rows=main.rows,
            bytes=self.done,
            columns=main.columns,
            coverage=main.stats.sky.bitmap() if located else None,
            moc=moc_ascii(main.stats.sky.flags) if located else None,
            time_range=main.stats.times.iso(),
            position=main.stats.position,
            time_column=main.stats.time,
            partitioning=self._partitioning(),
            warnings=tuple(self.warnings[:MAX_NOTES]),
            problems=tuple(self.problems[:MAX_NOTES]),
        )

    def _report(self, extra: int, relative: str) -> None:
        if self.progress is not None:
            self.progress(min(self.done + extra, self.total), self.total, relative)

    # --- one file ---

    def _file(self, relative: str) -> DataFile:
        path = self.survey.root / relative
        before = path.stat()
        role = self.survey.role(relative)
        if role == "metadata":
            kind: Literal["parquet", "other"] = "parquet" if self._is_sidecar(relative) else "other"
            return DataFile(path=relative, bytes=before.st_size, role=role, format=kind)
        group = self._group(relative, role)
        if (known := self._known(relative, before.st_size, group)) is not None:
            return known
        with confined.opened_below(self.survey.root, relative) as opened:
            stats, sky_known = self._decode(opened, relative, group)
        after = path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise FilesChanged(f"{path} changed while it was read", hint="Publish it when no program writes to it.")
        group.rows += stats.rows
        return DataFile(
            path=relative,
            bytes=before.st_size,
            role=role,
            format="avro" if self.survey.format == "avro" else "parquet",
            rows=stats.rows,
            stats=stats.columns(),
            coverage=stats.sky.bitmap() if sky_known else None,
            time_range=stats.times.iso(),
        )

    def _known(self, relative: str, size: int, group: _Group) -> DataFile | None:
        """The previous description of this file, if it can be reused; it is then counted into the group."""
        file, previous = self.known.get(relative), self.previous
        if file is None or previous is None or file.bytes != size:
            return None
        if group.schema is None:
            with confined.opened_below(self.survey.root, relative) as path:
                schema, _, lacking = self._open(path)
            self._admit(schema, relative, group, lacking)
        same = (group.columns, group.stats.position, group.stats.time) == (
            previous.columns,
            previous.position,
            previous.time_column,
        )
        if not same or (previous.position is not None and previous.moc is None):
            return None
        cell = hats.partition_of(relative) if self.survey.layout is not None else None
        if cell is not None:
            group.cells.add(cell)
        group.rows += file.rows
        group.stats.times.add_iso(file.time_range)
        self.reused = True
        return file

    def _add_previous(self, main: _Group, previous: DatasetDescription) -> None:
        """Add the MOC and the warnings of `previous`. They may cover more than the reused files, never less."""
        if previous.moc is not None and main.stats.position is not None:
            main.stats.sky.flags |= moc_flags(previous.moc)
        self.warnings.extend(warning for warning in previous.warnings if warning not in self.warnings)

    @staticmethod
    def _is_sidecar(relative: str) -> bool:
        return relative.rsplit("/", 1)[-1] in files.PARQUET_SIDECARS or files.format_by_name(relative) == "parquet"

    def _decode(self, path: Path, relative: str, group: _Group) -> tuple[FileStatsCollector, bool]:
        """Decode one file. Returns its statistics, and whether its sky coverage is known."""
        schema, stream, lacking = self._open(path)
        self._admit(schema, relative, group, lacking)
        cell = hats.partition_of(relative) if self.survey.layout is not None else None
        if cell is not None:
            group.cells.add(cell)
        # The rows of a margin lie around its cell, so the cell is checked only in the main catalog.
        expected = (cell.order, cell.pixel) if cell is not None and group.role == "data" else None
        stats = FileStatsCollector(group.names)
        for batch, done in stream:
            rows.check_text(batch, path)
            group.misplaced += group.stats.add(batch, stats, expected)
            self._report(done, relative)
        if group.stats.position is None and cell is not None and group.role == "data":
            stats.sky.add_cell(cell.order, cell.pixel)
            return stats, True
        return stats, group.stats.position is not None

    def _open(self, path: Path) -> tuple[Any, Iterator[tuple[Any, int]], dict[str, str]]:
        """(schema, batches, columns that cannot be decoded) of one file. The batches do not have these columns."""
        if self.survey.format == "avro":
            return *rows.open_table(path, limits=self.limits), {}
        self.limits.begin(path)
        file = parquet.open_file(path)
        self.limits.check_rows(file.metadata.num_rows, path)
        lacking = parquet.undecodable(file)
        schema = file.schema_arrow
        left = [name for name in schema.names if name not in lacking]
        if lacking and not left:
            reasons = ", ".join(sorted(set(lacking.values())))
            raise Unsupported(
                f"{path}: no column can be decoded ({reasons})", hint="Write the file with zstd or snappy compression."
            )
        stream = parquet.record_batches(file, path, left if lacking else None)
        return schema, self.limits.watched(stream, path), lacking

    # --- groups of files with one schema ---

    def _group(self, relative: str, role: Role) -> _Group:
        part = self.survey.part(relative)
        key = part.path if part is not None else ""
        if key not in self.groups:
            self.groups[key] = _Group(part, role)
        return self.groups[key]

    def _admit(self, schema: Any, relative: str, group: _Group, lacking: dict[str, str]) -> None:
        """Use the schema for the group if this is its first file, else compare it with that of the first file."""
        if group.schema is None:
            group.first = relative
            self._take_schema(schema, group, lacking)
            return
        if new := sorted(lacking.keys() - group.lacking.keys()):
            raise Unsupported(
                f"{self.survey.root / relative}: column {new[0]} cannot be decoded ({lacking[new[0]]})"
                f" but can be decoded in {group.first}",
                hint="Write this file with the same compression as the others.",
            )
        what = difference(group.schema, schema)
        if what:
            raise BadInput(
                f"{self.survey.root / relative} does not have the schema of {group.first}: {what}",
                hint="All files of a dataset must have the same schema: publish this file separately, or rewrite it.",
            )

    def _take_schema(self, schema: Any, group: _Group, lacking: dict[str, str]) -> None:
        group.schema, group.lacking = schema, lacking
        group.columns = of_schema(schema, lacking)
        group.names = stat_names(schema)
        usable = tuple(column for column in group.columns if not column.unsupported)
        position, doubts = self._position(group, usable)
        group.stats = DatasetStatsCollector(position, find_time(usable))
        self.problems.extend(f"column {name} cannot be decoded: {why}" for name, why in sorted(lacking.items()))
        if group.role == "data":
            self.warnings.extend(doubts)
            self._warn_of_names(group.columns)

    def _position(self, group: _Group, usable: tuple[Column, ...]) -> tuple[PositionColumns | None, list[str]]:
        if group.role == "index":
            return None, []
        if group.role == "data" and self.named != (None, None):
            return find_position(usable, *self.named, how="named when published")
        part = group.part
        if part is not None and part.ra and part.dec:
            try:
                return find_position(usable, part.ra, part.dec, how="by HATS properties")
            except BadInput as error:
                self.problems.append(f"the HATS properties of {part.name}: {error.message}")
        return find_position(usable)

    def _warn_of_names(self, columns: Iterable[Column]) -> None:
        seen: dict[str, str] = {}
        for column in columns:
            other = seen.setdefault(column.name.lower(), column.name)
            if other != column.name:
                self.warnings.append(
                    f"columns {other} and {column.name} differ only in case; Spark SQL cannot distinguish them"
                )

    # --- the dataset ---

    def _main_group(self) -> _Group:
        for group in self.groups.values():
            if group.role == "data":
                return group
        # A HATS catalog without rows has its schema in _common_metadata. The tree may also be a margin or an index.
        layout = self.survey.layout
        part = None if layout is None else layout.main
        if part is not None and part.path in self.groups:
            return self.groups[part.path]
        group = _Group(part, "data" if part is None else part.role)
        common = self.survey.root / (part.path if part is not None else "") / "dataset" / "_common_metadata"
        if not common.is_file():
            raise BadInput(
                f"{self.survey.root} contains neither rows nor a schema", hint="Check that the catalog is complete."
            )
        self._take_schema(parquet.open_file(common).schema_arrow, group, {})
        if part is not None:
            self.groups[part.path] = group
        return group

    def _judge(self, main: _Group) -> None:
        """Add the warnings and problems that can be detected only after all rows were read."""
        stats, position = main.stats, main.stats.position
        if position is None:
            if not self.warnings and main.role != "index":
                self.warnings.append(
                    "no coordinate columns were found, so searches by sky region will not find this dataset: select"
                    " them with --ra and --dec, or give the columns the UCDs pos.eq.ra and pos.eq.dec"
                )
        else:
            self._judge_position(stats, position)
        if stats.untimed and stats.time is not None:
            self.warnings.append(
                f"{stats.untimed} rows have no plausible time in {stats.time.name}, read as {stats.time.kind}"
            )
        if self.survey.layout is not None:
            self._judge_layout(self.survey.layout)
        else:
            self._judge_folders()

    def _judge_position(self, stats: DatasetStatsCollector, position: PositionColumns) -> None:
        if stats.unplaced:
            self.warnings.append(
                f"{stats.unplaced} of {stats.unplaced + stats.positioned} rows have no position in"
                f" {position.ra}, {position.dec} (null, NaN or outside the sky)"
            )
        if not position.unit and stats.looks_like_radians():
            self.warnings.append(
                f"{position.ra} has no unit and no value above 2π: it was read as degrees, but may be in radians."
                f" To make this clear, give the columns the field metadata `unit` = `deg` or `rad`,"
                " in Parquet by pyarrow.field(name, type, metadata={'unit': 'deg'}), in Avro by the attribute `unit`"
            )
        if position.ra_scale > 50 and stats.highest_ra > 7:
            self.problems.append(
                f"{position.ra} has unit {position.unit}, but values up to {stats.highest_ra:.6g}:"
                " more than a full circle"
            )

    def _judge_layout(self, layout: HatsLayout) -> None:
        for part in layout.parts:
            group = self.groups.get(part.path)
            counted = group.rows if group is not None else 0
            if part.rows is not None and part.rows != counted:
                self.problems.append(f"{part.name} has hats_nrows={part.rows}, but its files have {counted} rows")
            if group is not None and group.misplaced:
                self.problems.append(
                    f"{group.misplaced} rows of {part.name} lie outside the HEALPix cell of their file"
                )
            listed = hats.listed_partitions(self.survey.root, part)
            cells = group.cells if group is not None else set()
            if listed is not None and listed != cells:
                self.problems.append(
                    f"partition_info.csv of {part.name} lists {len(listed)} partitions,"
                    f" {len(listed - cells)} of them without a file; {len(cells - listed)} files are not listed"
                )
            self._judge_sidecar(part, counted)

    def _judge_sidecar(self, part: HatsCatalog, counted: int) -> None:
        path = self.survey.root / part.path / "dataset" / "_metadata"
        if not path.is_file():
            return
        try:
            self.limits.begin(path)
            stated = parquet.open_file(path).metadata.num_rows
        except IslandError as error:
            self.problems.append(error.message)
            return
        if stated != counted:
            self.problems.append(f"_metadata of {part.name} states {stated} rows, but its files have {counted}")

    def _judge_folders(self) -> None:
        folders = {
            word.partition("=")[0] for name in self.survey.published for word in name.split("/")[:-1] if "=" in word
        }
        if folders:
            self.warnings.append(
                f"folders are named like partitions ({', '.join(sorted(folders)[:4])});"
                " partition values are not read as columns"
            )

    def _fill_from_partitions(self, main: _Group) -> bool:
        """Set the coverage of a HATS catalog without coordinate columns to all of its cells; returns whether it can."""
        if self.survey.layout is None or main.role != "data" or not (main.cells or main.rows == 0):
            return False
        sky = SkyTally(FINE_ORDER)
        for cell in main.cells:
            sky.add_cell(cell.order, cell.pixel)
        main.stats.sky = sky
        return True

    def _partitioning(self) -> Partitioning | None:
        layout = self.survey.layout
        if layout is None:
            return None
        parts = []
        for part in layout.parts:
            group = self.groups.get(part.path)
            cells = group.cells if group is not None else set()
            parts.append(
                HatsPart(
                    path=part.path,
                    name=part.name,
                    role=part.role,
                    kind=part.kind,
                    rows=group.rows if group is not None else 0,
                    orders=tuple(sorted({cell.order for cell in cells})),
                    partitions=len(cells),
                    ra=part.ra,
                    dec=part.dec,
                    margin_arcsec=part.margin_arcsec,
                    index_column=part.index_column,
                    is_default=part.is_default,
                )
            )
        return Partitioning(name=layout.name, is_collection=layout.is_collection, parts=tuple(parts))
