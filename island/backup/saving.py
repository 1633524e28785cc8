"""`island backup`: copies a home folder into one file, also while its daemon runs. Blocking."""

from __future__ import annotations

import datetime
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

import island
from island.backup import archive, core
from island.backup.messages import FORMAT, MAX_FILES, BackupManifest
from island.backup.scratch import scratch_folder
from island.catalog import store as catalog_store
from island.config import Config
from island.errors import BadInput, Conflict, Full, IslandError
from island.home import Home
from island.jobs import result_rows
from island.jobs.results import FOLDER as RESULTS
from island.kernel.db import Kind
from island.kernel.db_file import copy_database, reading_copy
from island.private_files import sync_folder
from island.streams import store as streams_store
from island.trust.keys import Identity
from island.trust.users import TOKEN_FILES, Tokens

DATABASES: tuple[Kind, ...] = ("gossip", "state")
"""The databases in a backup, in the order in which they are copied.

state.db is copied last: it may then have batches of the own log that gossip.db lacks, as after a power failure.
"""

ATTEMPTS = 5
"""A running daemon may delete a file that was to be copied. Then the copy begins again, at most this often."""

Progress = Callable[[int, int], None]
"""`progress(done, total)` in bytes."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class SavedBackup:
    """A finished backup."""

    manifest: BackupManifest
    size: int
    """Size of the file in bytes."""
    warnings: tuple[str, ...]


def save(
    home: Home, target: Path, *, now: float, streams: bool = True, progress: Progress | None = None
) -> SavedBackup:
    """Write a backup of `home` to the new file `target`, mode 0600. `now` is in Unix seconds.

    If this raises, `target` does not exist. Raises `Conflict` if it exists already, `ConfigError` if the
    home folder is not usable, `BadInput` if `target` is in it, `Full` and other errors of the disk.
    """
    config, identity = home.config(), Identity.load(home.key)
    Tokens.load(home.path)
    _check_target(target)
    if target.parent.resolve().is_relative_to(home.path.resolve()):
        raise BadInput(
            f"{target} is in the home folder {home.path}, and would be lost with it",
            hint="Write the backup to a folder on another disk.",
        )
    optional, outside = _optional(home, config)
    made = datetime.datetime.fromtimestamp(now, datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    blank = BackupManifest(
        format=FORMAT,
        island=config.island.name,
        key=identity.id,
        version=island.__version__,
        made=made,
        home=str(home.path),
        real_home=str(home.path.resolve()),
        streams=streams,
        files=(),
    )
    try:
        with scratch_folder(target.parent) as scratch:
            for attempt in range(ATTEMPTS):
                try:
                    found = _collect(home, scratch, optional, streams=streams, last=attempt == ATTEMPTS - 1)
                    files = tuple(archive.describe(name, path) for name, path in found.paths.items())
                    manifest = msgspec.structs.replace(blank, files=files)
                    size = _write(manifest, list(found.paths.values()), scratch / "archive", target, progress)
                except (FileNotFoundError, archive.SourceChanged):
                    continue
                return SavedBackup(manifest, size, (*found.warnings, *outside))
    except OSError as error:
        raise explained_error(error, f"the backup {target}", target.parent) from error
    raise IslandError(
        f"files in {home.path} were removed faster than they could be copied",
        hint="Repeat the command, or stop the daemon for the time of the backup.",
    )


def _optional(home: Home, config: Config) -> tuple[list[str], list[str]]:
    """Files that a home folder need not have, and a warning for each secret that is elsewhere."""
    names, warnings = [home.recovery_key.name], list[str]()
    named = [("livy.password_file", config.livy.password_file)]
    for number, engine in enumerate(config.engine):
        named += [
            (f"engine[{number}].password_file", engine.password_file),
            (f"engine[{number}].ca_file", engine.ca_file),
        ]
    for key, file in named:
        name = os.path.relpath(home.path / file, home.path) if file else ""
        if name and core.is_archivable(name):
            names.append(name)
        elif name:
            warnings.append(f"{file} ({key}) is not in the backup: keep a copy of it")
    return list(dict.fromkeys(names)), warnings


@dataclass(frozen=True, slots=True)
class _Found:
    """Where the content of each file of a backup is, by its name in the backup and in this order."""

    paths: dict[str, Path]
    warnings: tuple[str, ...]


def _collect(home: Home, scratch: Path, optional: list[str], *, streams: bool, last: bool) -> _Found:
    """Copy the databases to `scratch`, keep packs and results there, and list all files that belong to these copies.

    Raises `SourceChanged` if a pack or result that the copy of state.db refers to was deleted since, except in the
    `last` attempt: then it is lost, which is not the fault of the backup.
    """
    paths: dict[str, Path] = {}
    version = 0
    for kind in DATABASES:
        copy = paths[f"{kind}.db"] = scratch / f"{kind}.db"
        copy.unlink(missing_ok=True)
        version = copy_database(home.path / f"{kind}.db", copy, kind)
    with reading_copy(paths["state.db"], home.path / "state.db") as conn:
        packs, committed = catalog_store.packs(conn), streams_store.committed_files(conn)
        results = result_rows.needed(conn) if version >= result_rows.SINCE else set()
    lost = _keep_files(home.path / "manifests", packs, scratch, paths)
    lost_results = _keep_files(home.path / RESULTS, results, scratch, paths)
    if (lost or lost_results) and not last:
        raise archive.SourceChanged(min(lost | lost_results))
    for path in _below(home.path / "streams") if streams else ():
        name = str(path.relative_to(home.path))
        # Nobody sweeps the folder of a subscription that was removed.
        kept = path.name in committed.get(path.parent.name, {path.name})
        if kept and path.suffix == ".parquet" and core.is_archivable(name):
            paths[name] = path
    required = [name for name in TOKEN_FILES.values() if name not in optional]
    present = [name for name in optional if (home.path / name).exists()]
    for name in (*required, *present, *core.LAST):
        paths.pop(name, None)  # the order counts, also if a password file is called `key`
        paths[name] = home.path / name
    if len(paths) > MAX_FILES:
        raise BadInput(
            f"{home.path} has {len(paths)} files for the backup, more than {MAX_FILES}",
            hint="Leave out the received rows with --without-streams, and copy HOME/streams by other means.",
        )
    warnings = []
    if lost:
        names = f"{len(lost)} packs of manifests are missing in {home.path}/manifests"
        warnings.append(f"{names}: publish the datasets of this island again")
    if lost_results:
        warnings.append(f"{len(lost_results)} results of statements are missing in {home.path / RESULTS}")
    return _Found(paths, tuple(warnings))


def _keep_files(folder: Path, names: set[str], scratch: Path, paths: dict[str, Path]) -> set[str]:
    """Link or copy files to `scratch`, because a daemon may delete them soon; return the names of those lost."""
    kept = scratch / folder.name
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(mode=0o700)
    lost = set()
    for name in sorted(names):
        try:
            _link_or_copy(folder / name, kept / name)
        except FileNotFoundError:
            lost.add(name)
        else:
            paths[f"{folder.name}/{name}"] = kept / name
    return lost


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


def _below(folder: Path) -> Iterator[Path]:
    """The regular files in a folder and its subfolders, sorted."""
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.is_file() and not path.is_symlink():
            yield path


def _write(manifest: BackupManifest, paths: list[Path], partial: Path, target: Path, progress: Progress | None) -> int:
    total, done = core.total_bytes(manifest), 0

    def count(piece: bytes) -> None:
        nonlocal done
        done += len(piece)
        if progress is not None:
            progress(done, total)

    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        archive.write(file, manifest, paths, compress=target.name.endswith(archive.COMPRESSED), done=count)
        file.flush()
        os.fsync(descriptor)
        size = os.fstat(descriptor).st_size
    _place(partial, target)
    sync_folder(target.parent)
    return size


def _place(partial: Path, target: Path) -> None:
    """Give a finished file its name; raises `Conflict` if another program has made a file of this name meanwhile."""
    try:
        # A rename would overwrite it. This file is only there to be overwritten; not every disk has hard links.
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        _check_target(target)
        raise
    try:
        partial.rename(target)
    except BaseException:
        target.unlink()
        raise


def _check_target(target: Path) -> None:
    if os.path.lexists(target):
        raise Conflict(f"{target} already exists and is not overwritten", hint="Choose another name for the backup.")
    if not target.parent.is_dir():
        raise BadInput(f"{target.parent} is not a folder", hint="Create it, or choose another place for the backup.")


def explained_error(error: OSError, what: str, folder: Path) -> IslandError:
    """The error for a failed write of `what` on the disk of `folder`, after all its parts were deleted."""
    reason = f"{what} cannot be written: {error.strerror or error}"
    if error.errno in _FULL:
        return Full(reason, hint=f"Free some space on the disk of {folder}. No part of it was left there.")
    return IslandError(reason, hint="Check the disk and the permissions of the folder. No part of it was left there.")
