"""`island restore`: checks a backup completely, then makes a home folder of it. Blocking."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, get_args

from island import config
from island.backup import core
from island.backup.archive import BackupReader, Sink
from island.backup.messages import ArchivedFile, BackupManifest
from island.backup.saving import DATABASES, Progress, explained_error
from island.catalog import store as catalog_store
from island.errors import BadInput, ConfigError, Conflict, Full, IslandError
from island.gossip import own_log_store
from island.home import Home
from island.jobs.executor import store as run_store
from island.jobs.home import store as jobs_store
from island.kernel.db import Kind, newest_version, written_by_newer
from island.kernel.db_file import check_content, migrated
from island.kernel.units import format_bytes
from island.private_files import sync_folder
from island.regular_file import open_regular
from island.streams import store as streams_store
from island.trust import journal
from island.trust import store as trust_store
from island.trust.keys import NO_NETWORK, Identity
from island.trust.sealing import seal_problems
from island.trust.users import TOKEN_FILES, parse_token

SKIPPED_JOB_IDS = 1000
"""Clients may still know ids of jobs that were created after the backup. So many ids are not given again."""

ACT = "island.restore"
"""The `act` of the row that a restore adds to the journal."""

_SQLITE = b"SQLite format 3\0"
_HEADER = 100
_VERSION_AT = 60

_BESIDE = ("-wal", "-shm", "-journal")
"""Ends of the names of the files that SQLite makes beside a database."""


def verify(path: Path, progress: Progress | None = None) -> BackupManifest:
    """Read a whole backup and check it; nothing is written.

    Raises `Corrupt` if it is not a complete, unchanged backup, `ConfigError` if its databases are newer than
    this program, and `BadInput` if there is no such file.
    """
    with _opened(path) as file:
        return _verified(file, path, progress)


def restore(path: Path, home: Home, *, now: float, progress: Progress | None = None) -> BackupManifest:
    """Make the home folder `home`, which must be absent or empty, from a backup. `now` is in Unix seconds.

    Everything is checked before the first file is written, and if writing fails, the written files are
    deleted. Raises as `verify` does, `Conflict` if the folder is not empty or a daemon runs with the same
    key on this machine, and `Full`.
    """
    _check_empty(home)
    with _opened(path) as file:
        manifest = _verified(file, path, progress)
        _check_not_running(manifest)
        _check_space(home, manifest)
        try:
            with _own_folder(home) as written:
                _extract(BackupReader(file, str(path)), home, written, progress)
                _adapt(home, manifest, now)
                written.sync()
                _complete(home, written)
        except OSError as error:
            raise explained_error(error, f"the home folder {home.path}", home.path.parent) from error
    return manifest


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        file = open_regular(path)
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read: {error.strerror or error}",
            hint="Give the path of a file from `island backup`.",
        ) from error
    with file:
        yield file


# --- checks before anything is written ----------------------------------------------------------


@dataclass(slots=True)
class _Checked:
    """What is kept of the files while a backup is verified: small files whole, and the first bytes of databases."""

    kept: dict[str, bytearray]

    @contextmanager
    def sink(self, file: ArchivedFile) -> Iterator[Sink]:
        limit = _HEADER if file.name.endswith(".db") else core.SECRET_LIMIT if file.name in core.REQUIRED else 0
        kept = self.kept[file.name] = bytearray()
        yield lambda piece: kept.extend(piece[: max(0, limit - len(kept))])


def _verified(file: IO[bytes], path: Path, progress: Progress | None) -> BackupManifest:
    reader, checked = BackupReader(file, str(path)), _Checked({})
    reader.files(_counted(checked.sink, reader.manifest, progress))
    manifest = reader.manifest
    for name, header in checked.kept.items():
        if name.endswith(".db"):
            _check_database(bytes(header), name, path)
    try:
        config.decoded(checked.kept["island.toml"].decode("utf-8"))  # this version may refuse a key of an older one
    except ValueError as error:
        raise core.damaged(str(path), f"island.toml is not valid: {error}") from error
    try:
        for name in TOKEN_FILES.values():
            parse_token(bytes(checked.kept[name]), f"the file '{name}'")
        identity = Identity.parse(bytes(checked.kept["key"]), f"the file 'key' in {path}")
    except ConfigError as error:
        raise core.damaged(str(path), error.message) from error
    if identity.id != manifest.key:
        raise core.damaged(str(path), "its key is not that of its manifest")
    return manifest


def _check_database(header: bytes, name: str, path: Path) -> None:
    found = [kind for kind in get_args(Kind) if f"{kind}.db" == name]
    if not found or not header.startswith(_SQLITE) or len(header) < _HEADER:
        raise core.damaged(str(path), f"{name} is not a database of an island")
    version = int.from_bytes(header[_VERSION_AT : _VERSION_AT + 4], "big")
    if version > newest_version(found[0]):
        raise written_by_newer(f"{name} in {path}", version, found[0])


def _check_empty(home: Home) -> None:
    if home.in_use():
        raise _in_use(home)
    if not home.is_free():
        raise _not_empty(home)


def _in_use(home: Home) -> Conflict:
    return Conflict(
        f"a daemon or another restore is running with the home folder {home.path}",
        hint="Stop it and move the folder away, or restore to another folder and never start both.",
    )


def _not_empty(home: Home) -> Conflict:
    return Conflict(
        f"{home.path} exists and is not an empty folder",
        hint="Choose another or move it away. Nothing was changed.",
    )


def _check_not_running(manifest: BackupManifest) -> None:
    """Refuse to make a second home of a running island. Its folder is known only if it is on this machine."""
    original = Home(Path(manifest.home))
    if _is_running(original, manifest.key):
        raise Conflict(
            f"the island '{manifest.island}', whose key is in the backup, is running with {original.path}",
            hint="Stop it first. Two daemons with one key fork the island's log: other islands then refuse this key.",
        )


def _is_running(original: Home, key: str) -> bool:
    try:
        return original.in_use() and Identity.load(original.key).id == key
    except (OSError, IslandError):  # the folder of another account, or by now of another island
        return False


def _check_space(home: Home, manifest: BackupManifest) -> None:
    parent = next(folder for folder in (home.path, *home.path.parents) if folder.exists())
    needed, free = core.bytes_to_restore(manifest), shutil.disk_usage(parent).free
    if needed > free:
        raise Full(
            f"the restore needs {format_bytes(needed)}, and the disk of {parent} has {format_bytes(free)} free",
            hint="Free some space, or choose another folder. Nothing was changed.",
        )


# --- writing ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Written:
    """The files and folders that a restore has created in `home`, in this order."""

    home: Path
    folders: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def make_folders(self, name: str) -> None:
        """Create the folders above the file `name`."""
        for parent in reversed(Path(name).parents[:-1]):
            folder = self.home / parent
            if not folder.is_dir():
                folder.mkdir(mode=0o700)
                self.folders.append(folder)

    @contextmanager
    def deleted_on_failure(self) -> Iterator[None]:
        """If the block fails, delete what was created; a folder that is not empty then stays."""
        try:
            yield
        except BaseException:
            self._delete()
            raise

    def _delete(self) -> None:
        # Each name is forgotten: once the lock is released, another restore may create the same.
        while self.files:
            path = self.files.pop()
            # Beside a database SQLite may have left files.
            for each in (path, *(path.with_name(path.name + end) for end in _BESIDE if path.suffix == ".db")):
                each.unlink(missing_ok=True)
        while self.folders:
            with suppress(OSError):
                self.folders.pop().rmdir()

    def sync(self) -> None:
        """Sync the folders to disk; each file was synced when it was written."""
        for folder in (*self.folders, self.home, self.home.parent):
            sync_folder(folder)


@contextmanager
def _own_folder(home: Home) -> Iterator[_Written]:
    """Create the folder if it does not exist, and keep daemons and other restores out of it during the block.

    If the block fails, what it wrote is deleted. Raises `Conflict` if the folder is not empty, or in use.
    """
    written = _Written(home.path)
    with written.deleted_on_failure():
        with suppress(FileExistsError):
            home.path.mkdir(mode=0o700, parents=True)
            written.folders.append(home.path)
        with _locked(home):
            if not home.is_free(but=home.lock):  # another restore was faster
                raise _not_empty(home)
            written.files.append(home.lock)
            with written.deleted_on_failure():  # as long as nobody else can write there
                home.path.chmod(0o700)
                yield written


@contextmanager
def _locked(home: Home) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(home.locked())
        except Conflict as error:
            raise _in_use(home) from error
        yield


def _extract(reader: BackupReader, home: Home, written: _Written, progress: Progress | None) -> None:
    """Write the files; those without which this is not a home folder yet get other names until `_complete`."""

    @contextmanager
    def sink(file: ArchivedFile) -> Iterator[Sink]:
        target = _incomplete(home.path / file.name) if file.name in core.LAST else home.path / file.name
        written.make_folders(file.name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(target, flags, 0o600)
        written.files.append(target)
        with os.fdopen(descriptor, "wb") as out:
            yield out.write
            out.flush()
            os.fsync(out.fileno())
        os.utime(target, ns=(file.modified_ns, file.modified_ns))

    reader.files(_counted(sink, reader.manifest, progress))


def _incomplete(path: Path) -> Path:
    """The name of one of the last files until all others are in order. No file of a backup has such a name."""
    return path.with_name(f".{path.name}.restored")


def _complete(home: Home, written: _Written) -> None:
    """Make the folder a home folder. Before, no daemon starts in it, even if this process is killed."""
    for path in (home.path / name for name in core.LAST):
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        _incomplete(path).rename(path)
        written.files.append(path)
    sync_folder(home.path)


def _counted(
    sink: Callable[[ArchivedFile], AbstractContextManager[Sink]], manifest: BackupManifest, progress: Progress | None
) -> Callable[[ArchivedFile], AbstractContextManager[Sink]]:
    """`sink`, which also reports the number of bytes."""
    if progress is None:
        return sink
    total, done = core.total_bytes(manifest), 0

    @contextmanager
    def counted(file: ArchivedFile) -> Iterator[Sink]:
        with sink(file) as write:

            def both(piece: bytes) -> None:
                nonlocal done
                write(piece)
                done += len(piece)
                progress(done, total)

            yield both

    return counted


def _adapt(home: Home, manifest: BackupManifest, now: float) -> None:
    """Check the databases, and record in state.db that they are older than what other islands may know."""
    for kind in DATABASES:
        if (home.path / f"{kind}.db").exists():
            check_content(home.path / f"{kind}.db")
    identity = Identity.load(_incomplete(home.key))
    with migrated(home.path / "state.db", "state") as conn:
        own_log_store.mark_restored(conn, now)
        jobs_store.skip_locals(conn, SKIPPED_JOB_IDS)
        jobs_store.stop_restored(conn, now)
        run_store.stop_restored(conn)
        trust_store.expire_invitations(conn, now)
        for old in {manifest.home, manifest.real_home} - {str(home.path)}:
            catalog_store.move_folder(conn, f"{old}/streams", f"{home.path}/streams")
            streams_store.move_folder(conn, f"{old}/streams", f"{home.path}/streams")
        # A new seal would hide a problem, or seal rows of an earlier version, which the daemon checks first.
        if not (seal_problems(conn, identity.id) or journal.verify_seal(conn, identity.id)):
            journal.append(
                conn,
                at=now,
                who=f"administrator@{manifest.island}",
                act=ACT,
                what=f"the backup of {manifest.made}",
                outcome="done",
                detail={"version": manifest.version, "home": manifest.home},
            )
            network = trust_store.read_network(conn)
            journal.seal(conn, identity, network[0] if network else NO_NETWORK)
