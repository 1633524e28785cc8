"""`island://OWNER/NAME[@SNAPSHOT]/path` for programs that use fsspec: pandas, pyarrow, dask, polars, fastavro.

A read-only filesystem over the user port of an island. The daemon fetches, verifies and
stores what is read. Paths below OWNER/NAME are the published relative paths. The class is
synchronous and thread-safe, can be pickled, and works after a fork; it has no event loop.

Storage options: `home` (the home folder; default `ISLAND_HOME`, then `~/.island`), or `url`
(default without `home`: `ISLAND_URL`) and `token` (default: `ISLAND_TOKEN`, then the token in
the file `ISLAND_TOKEN_FILE`). `endpoint` is an alias of `url` for pandas, where `url` collides
with an argument of fsspec itself.

A filesystem pins OWNER/NAME to the snapshot that was the newest when the dataset was listed.
It reads from that snapshot until the dataset is listed again, so that one read sees one
version. `invalidate_cache()` releases the pins. `OWNER/NAME@SNAPSHOT` always reads that snapshot.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import http.client
import json
import os
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from fsspec.caching import BaseCache
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from island.errors import IslandError
from island.home import Home, token_of_environment
from island.kernel.ports import SystemClock
from island.private_files import secret_text

PIN_REFRESH_S = 2.0
"""Maximum age of a listing, in seconds. If it is older, the next `ls` of the dataset requests it again."""
TIMEOUT_S = 90.0
"""Timeout of a request. It is longer than the time after which the daemon reports that no holder answers."""
BUSY_TRIES, BUSY_S = 60, 1.0
"""How often a request is repeated that the daemon refuses because too many are under way, and seconds in between."""

_CACHE_BYTES = 4 * 2**20
_SMALL = 2**20
_READ_AHEAD = 2 * 2**20
_LIST_PAGE = 5000
_PROBE = 64 * 1024
"""Bytes of the first read of Arrow's Parquet reader, at the end of the file."""
SETTLE_S = 2.0
"""Maximum number of seconds that a program waits for Arrow's threads when it exits."""
PROBED = frozenset({"26"})
"""Major versions of pyarrow that are known to use only the footer from their first read. Others get the real bytes."""


class IslandFileSystem(AbstractFileSystem):
    """The datasets of an archipelago as files. Read-only."""

    protocol = "island"
    root_marker = ""
    cachable = True

    def __init__(
        self,
        *args: Any,
        home: str | None = None,
        url: str | None = None,
        token: str | None = None,
        endpoint: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._client = _Client(home, url or endpoint, token)
        self._datasets: dict[str, _Dataset] = {}
        self._wanted: dict[str, str] = {}
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        pins = {name: dataset.snapshot for name, dataset in self._datasets.items()}
        return _restore, (type(self), self.storage_args, self.storage_options, pins)

    # --- listing ------------------------------------------------------------------------------

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """The entries of a folder, or the file itself, as fsspec's dicts, or as names if not `detail`."""
        name, relative = self._split(path)
        if "/" not in name:
            entries = self._above(name)
        else:
            tree = self._dataset(name, refresh=not relative).tree
            entries = [tree[relative]] if tree.is_file(relative) else tree.children(relative)
            entries = [{**entry, "name": _join(name, entry["name"])} for entry in entries]
        return entries if detail else sorted(entry["name"] for entry in entries)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """The entry of a path as fsspec's dict. Raises `FileNotFoundError`."""
        name, relative = self._split(path)
        if "/" not in name:
            self._above(name)
            return {"name": name, "size": 0, "type": "directory"}
        entry = self._dataset(name, refresh=False).tree[relative]
        return {**entry, "name": _join(name, relative)}

    def invalidate_cache(self, path: str | None = None) -> None:
        """Discard the listing and the pinned snapshot of the dataset of `path`, or of all datasets."""
        with self._lock:
            name = self._split(path)[0] if path else ""
            for known in [key for key in self._datasets if not name or key == name]:
                del self._datasets[known]
            self._wanted.clear()

    def ukey(self, path: str) -> str:
        """The hash of a file's content; empty for a folder."""
        return str(self.info(path).get("hash", ""))

    def checksum(self, path: str) -> int:
        """The first 15 hexadecimal digits of `ukey` as a number."""
        return int(self.ukey(path)[:15] or "0", 16)

    # --- reading ------------------------------------------------------------------------------

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        cache_type: str | None = None,
        **_: Any,
    ) -> IslandFile:
        if mode != "rb":
            raise OSError(errno.EROFS, f"island:// is read-only: it cannot be opened with mode {mode!r}", path)
        return IslandFile(self, path, block_size or 2**20, cache_type, cache_options, autocommit)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """The bytes of a file from `start` to `end` (exclusive). Negative offsets count from the end of the file."""
        location = self._locate(path)
        first, last, _step = slice(start, end).indices(location.size)
        return location.read(first, last) if first < last else b""

    def cat_ranges(
        self,
        paths: Sequence[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        """Many ranges of files, fetched by up to eight threads.

        An `OSError` is returned in place of the range if `on_error` is "return", else raised.
        """
        if not isinstance(starts, list):
            starts = [starts] * len(paths)
        if not isinstance(ends, list):
            ends = [ends] * len(paths)
        if not len(paths) == len(starts) == len(ends):
            raise ValueError("cat_ranges needs one start and one end for each path")

        def cat(item: tuple[str, int | None, int | None]) -> Any:
            try:
                return self.cat_file(*item)
            except OSError as error:
                if on_error == "return":
                    return error
                raise

        with ThreadPoolExecutor(8, thread_name_prefix="island-cat") as pool:
            return list(pool.map(cat, zip(paths, starts, ends, strict=True)))

    def _rm(self, path: str) -> None:
        raise OSError(errno.EROFS, "island:// is read-only", path)

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Raises `OSError` (EROFS): the filesystem is read-only."""
        raise OSError(errno.EROFS, "island:// is read-only", path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Raises `OSError` (EROFS), unless the folder exists and `exist_ok` is true."""
        if not (exist_ok and self.isdir(path)):
            raise OSError(errno.EROFS, "island:// is read-only", path)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Raises `OSError` (EROFS): the filesystem is read-only."""
        raise OSError(errno.EROFS, "island:// is read-only", path2)

    # --- private ------------------------------------------------------------------------------

    def _split(self, path: str) -> tuple[str, str]:
        """A path as (`OWNER/NAME[@SNAPSHOT]`, path within the dataset)."""
        parts = str(self._strip_protocol(path)).strip("/").split("/")
        return "/".join(parts[:2]), "/".join(parts[2:])

    def _locate(self, path: str) -> _Location:
        name, relative = self._split(path)
        if "/" not in name:
            raise IsADirectoryError(errno.EISDIR, "this is not a file: use island://OWNER/NAME/PATH", path)
        dataset = self._dataset(name, refresh=False)
        entry = dataset.tree[relative]
        if entry["type"] != "file":
            raise IsADirectoryError(errno.EISDIR, "this is a folder", path)
        return _Location(self._client, f"{dataset.url}/data/{quote(relative)}", entry)

    def _dataset(self, name: str, *, refresh: bool) -> _Dataset:
        with self._lock:
            known = self._datasets.get(name)
            if known is None or (refresh and not known.fixed and known.age() > PIN_REFRESH_S):
                known = self._datasets[name] = self._load(name, known)
            return known

    def _load(self, name: str, known: _Dataset | None) -> _Dataset:
        owner, _, rest = name.partition("/")
        short, _, snapshot = rest.partition("@")
        wanted = snapshot or self._wanted.pop(name, "")
        about = self._client.json(f"/api/v1/files/{quote(owner)}/{quote(short)}" + (f"@{wanted}" if wanted else ""))
        if known and known.snapshot == about["snapshot"]:
            known.touch()
            return known
        url = f"/api/v1/files/{quote(owner)}/{quote(short)}/{about['snapshot']}"
        return _Dataset(about["snapshot"], url, bool(snapshot), _Tree(self._client.pages(f"{url}/list")))

    def _above(self, owner: str) -> list[dict[str, Any]]:
        """The owners of datasets; for a given `owner`, its datasets."""
        rows = self._client.json("/api/v1/files")
        if not owner:
            names = {row["island"] for row in rows}
        else:
            names = {f"{row['island']}/{row['name']}" for row in rows if row["island"] == owner}
            if not names:
                raise FileNotFoundError(errno.ENOENT, "no island of that name has a dataset", owner)
        return [{"name": name, "size": 0, "type": "directory"} for name in sorted(names)]


def _restore(
    kind: type[IslandFileSystem], args: tuple[Any, ...], options: dict[str, Any], pins: dict[str, str]
) -> IslandFileSystem:
    """Restore a pickled filesystem with the same options and the same pinned snapshots."""
    made = kind(*args, **options)
    with made._lock:
        for name, snapshot in pins.items():
            if name not in made._datasets:
                made._wanted[name] = snapshot
    return made


class IslandFile(AbstractBufferedFile):
    """One open file. By default, small reads request whole chunks, which the daemon fetches in any case."""

    def __init__(
        self,
        fs: IslandFileSystem,
        path: str,
        block_size: int,
        cache_type: str | None,
        cache_options: dict[str, Any] | None,
        autocommit: bool,
    ) -> None:
        self.location = fs._locate(path)
        super().__init__(
            fs,
            path,
            "rb",
            block_size,
            autocommit,
            cache_type=cache_type or "none",
            cache_options=cache_options,
            size=self.location.size,
        )
        self._unread = True
        if cache_type is None:
            # Not a method of this file: a reference cycle would keep it open until the next garbage collection.
            self.cache = _ChunkCache(block_size, self.location.read, self.location)
        if "pyarrow" in sys.modules:
            _read_by_arrow.set()

    def read(self, length: int = -1) -> bytes:
        """The next `length` bytes; all remaining bytes if `length` is negative."""
        unread, self._unread = self._unread, False
        if unread and self._is_footer_probe(length) and _called_by_arrow():
            footer = self._footer()
            if footer is not None:
                self.loc = self.size
                return footer.rjust(length, b"\0")
        data: bytes = super().read(length)
        return data

    def _is_footer_probe(self, length: int) -> bool:
        return self.location.format == "parquet" and length == _PROBE < self.size and self.loc == self.size - length

    def _footer(self) -> bytes | None:
        """The Parquet footer with its length and magic bytes; None if it does not fit into Arrow's first read.

        Arrow's Parquet reader first reads the last 64 KiB of a file and uses only the footer
        from them. In a file of a few hundred KiB, the rest of these bytes are columns that may
        not be needed. Therefore Arrow, and no other caller, gets zeros followed by the footer.
        `protocols/decisions/0004-footer-probe.md` explains why this is safe.
        """
        tail = self.cache._fetch(self.size - 8, self.size)
        length = int.from_bytes(tail[:4], "little") + 8
        if tail[4:] != b"PAR1" or not 8 < length <= _PROBE:
            return None
        footer: bytes = self.cache._fetch(self.size - length, self.size)
        return footer

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.location.read(start, min(end, self.location.size))


def _called_by_arrow() -> bool:
    """Whether the caller's caller is Arrow, of a version in `PROBED`: one of its threads or its Python code."""
    version = str(getattr(sys.modules.get("pyarrow"), "__version__", ""))
    if version.partition(".")[0] not in PROBED:
        return False
    try:
        caller = sys._getframe(2)
    except ValueError:  # there is no such Python frame: the call comes from one of Arrow's threads
        return True
    return str(caller.f_globals.get("__name__", "")).partition(".")[0] == "pyarrow"


_read_by_arrow = threading.Event()


@atexit.register
def _settle() -> None:
    """Let Arrow's threads finish before the interpreter exits.

    They release files and buffers after the reader has its rows, and need the interpreter for
    that. A thread that does this while the interpreter exits aborts the program ("terminate
    called without an active exception"). Arrow has no function that waits for its threads, so
    this waits until all other threads sleep, at most `SETTLE_S` seconds.
    """
    if not _read_by_arrow.is_set():
        return
    clock, quiet = SystemClock(), 0
    end = clock.monotonic() + SETTLE_S
    while quiet < 3 and clock.monotonic() < end:
        time.sleep(0.005)
        quiet = quiet + 1 if _others_sleep() else 0


def _others_sleep() -> bool:
    """Whether no other thread of this process is running. Always true on systems without /proc."""
    me = str(threading.get_native_id())
    for stat in Path("/proc/self/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # the thread has ended
            if stat.parent.name != me and stat.read_text("utf-8", "replace").rpartition(")")[2].split()[0] == "R":
                return False
    return True


class _ChunkCache(BaseCache):
    """Caches the chunks of the most recent small reads, so that many short reads need few requests.

    It requests only whole chunks, which the daemon must fetch for the read in any case. It
    reads ahead only in files that are read sequentially and are not Parquet.
    """

    name = "island-chunks"

    def __init__(self, blocksize: int, fetcher: Callable[[int, int], bytes], location: _Location) -> None:
        super().__init__(blocksize, fetcher, location.size)
        self._location = location
        self._extents: OrderedDict[int, bytes] = OrderedDict()
        self._expected = 0
        self._ahead = 0

    def _fetch(self, start: int | None, stop: int | None) -> bytes:
        start = 0 if start is None else start
        stop = self.size if stop is None else min(stop, self.size)
        if start >= stop:
            return b""
        if stop - start >= _SMALL:
            self._expected = stop
            return self._location.read(start, stop)
        pieces, position = [], start
        while position < stop:
            offset, data = self._extent(position, stop)
            piece = data[position - offset : stop - offset]
            pieces.append(piece)
            position += len(piece)
        self._expected = stop
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _extent(self, start: int, stop: int) -> tuple[int, bytes]:
        for offset, data in self._extents.items():
            if offset <= start < offset + len(data):
                self._extents.move_to_end(offset)
                return offset, data
        offset, data = self._location.read_chunks(start, max(stop, min(start + self._read_ahead(start), self.size)))
        self._extents[offset] = data
        while len(self._extents) > 1 and sum(map(len, self._extents.values())) > _CACHE_BYTES:
            self._extents.popitem(last=False)
        return offset, data

    def _read_ahead(self, start: int) -> int:
        if self._location.format == "parquet" or start == 0 or start != self._expected_start():
            self._ahead = 0
        else:
            self._ahead = min(max(2 * self._ahead, 2**17), _READ_AHEAD)
        return self._ahead

    def _expected_start(self) -> int:
        """The offset at which a sequential reader needs the next extent."""
        if not self._extents:
            return -1
        offset, data = next(reversed(self._extents.items()))
        return offset + len(data)


class _Location:
    """One file of one snapshot at the daemon."""

    def __init__(self, client: _Client, url: str, entry: dict[str, Any]) -> None:
        self.client, self.url = client, url
        self.size: int = entry["size"]
        self.format: str = entry.get("format", "")

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`."""
        return self.client.range(self.url, start, end)[1]

    def read_chunks(self, start: int, end: int) -> tuple[int, bytes]:
        """The whole chunks that contain the bytes from `start` to `end`: (offset, bytes)."""
        return self.client.range(f"{self.url}?align=chunk", start, end)


class _Tree:
    """The published paths of a snapshot as folders and files."""

    def __init__(self, files: Iterator[dict[str, Any]]) -> None:
        self._entries: dict[str, dict[str, Any]] = {"": {"name": "", "size": 0, "type": "directory"}}
        self._children: dict[str, list[str]] = {"": []}
        for file in files:
            path = file["path"]
            self._folder(path.rpartition("/")[0]).append(path)
            rest = {key: value for key, value in file.items() if key != "path"}
            self._entries[path] = {"name": path, "type": "file", **rest}

    def _folder(self, path: str) -> list[str]:
        if path not in self._children:
            self._folder(path.rpartition("/")[0]).append(path)
            self._children[path] = []
            self._entries[path] = {"name": path, "size": 0, "type": "directory"}
        return self._children[path]

    def __getitem__(self, path: str) -> dict[str, Any]:
        try:
            return self._entries[path]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "the dataset has no such file", path) from None

    def is_file(self, path: str) -> bool:
        return bool(self[path]["type"] == "file")

    def children(self, path: str) -> list[dict[str, Any]]:
        return [self._entries[child] for child in self._children[path]]


class _Dataset:
    """A dataset pinned to one snapshot."""

    def __init__(self, snapshot: str, url: str, fixed: bool, tree: _Tree) -> None:
        self.snapshot, self.url, self.fixed, self.tree = snapshot, url, fixed, tree
        self.touch()

    def touch(self) -> None:
        self._at = SystemClock().monotonic()

    def age(self) -> float:
        return SystemClock().monotonic() - self._at


class _Client:
    """HTTP requests to the daemon over persistent connections. Thread-safe."""

    def __init__(self, home: str | None, url: str | None, token: str | None) -> None:
        self._options = (home, url, token)
        self._found: tuple[str, str] | None = None
        self._idle: list[http.client.HTTPConnection] = []
        self._pid = os.getpid()
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._idle)

    def json(self, target: str) -> Any:
        """The decoded JSON response to a GET request."""
        _, data = self._get(target, {})
        return json.loads(data)

    def pages(self, target: str) -> Iterator[dict[str, Any]]:
        """All entries of a paged listing."""
        after = ""
        while True:
            page = self.json(f"{target}?limit={_LIST_PAGE}&after={quote(after, safe='')}")
            yield from page["files"]
            if not (after := page["next"] or ""):
                return

    def range(self, target: str, start: int, end: int) -> tuple[int, bytes]:
        """The bytes from `start` to `end`, or whole chunks if `target` requests them: (offset, bytes).

        An interrupted transfer is resumed up to five times. Raises `OSError` if an attempt
        returns no data or the attempts are used up.
        """
        received = bytearray()
        first = start
        for attempt in range(6):
            wanted = (start if not attempt else first + len(received), end)
            headers, data = self._get(target, {"Range": f"bytes={wanted[0]}-{wanted[1] - 1}"}, partial=True)
            offset, until = _content_range(headers.get("Content-Range", ""), target)
            if not attempt:
                first = offset
            received += data[max(0, first + len(received) - offset) :]
            end = max(end, until)
            if first + len(received) >= end:
                return first, bytes(received)
            if not data:
                break
        raise OSError(errno.EIO, "the transfer was interrupted, and no more data arrived when it was resumed", target)

    def _get(self, target: str, headers: dict[str, str], partial: bool = False) -> tuple[dict[str, str], bytes]:
        """One GET request: (headers, body). Raises the `OSError` that fits the status.

        With `partial`, the received part of an interrupted body is returned.
        """
        host, token = self._daemon()
        headers = {"Authorization": f"Bearer {token}", **headers}
        busy = 0
        while True:
            connection, kept = self._take(host)
            try:
                connection.request("GET", target, headers=headers)
                response = connection.getresponse()
                data = response.read()
            except http.client.IncompleteRead as error:
                connection.close()
                if partial:
                    return dict(response.getheaders()), error.partial
                raise OSError(errno.EIO, "the connection to the island was lost during its answer", target) from error
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if kept:  # the daemon has closed the idle connection, or was restarted
                    continue
                raise self._unreachable(error, host) from error
            self._give(connection, response)
            # Too many reads with this token at the same time.
            if response.status == http.HTTPStatus.TOO_MANY_REQUESTS and busy < BUSY_TRIES:
                busy += 1
                time.sleep(BUSY_S)
                continue
            if response.status >= 400:
                raise _error(response.status, data, target)
            return dict(response.getheaders()), data

    def _take(self, host: str) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            if self._pid != os.getpid():  # after a fork the connections belong to the parent process
                self._idle.clear()
                self._pid = os.getpid()
            if self._idle:
                return self._idle.pop(), True
        parts = urlsplit(host)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S), False

    def _give(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        with self._lock:
            if not response.will_close and len(self._idle) < 16:
                self._idle.append(connection)
                return
        connection.close()

    def _daemon(self) -> tuple[str, str]:
        """URL of the daemon and the token, found in the same way as by the `island` command."""
        if self._found is None:
            home, url, token = self._options
            place = Home.find(home)
            try:
                url = url or (not home and os.environ.get("ISLAND_URL")) or place.url()
                token = token or token_of_environment() or _token(place)
            except IslandError as error:
                # Not FileNotFoundError: pyarrow would report a missing dataset and drop this message.
                raise ConnectionError(errno.ENOTCONN, error.line, str(place.path)) from error
            self._found = (url.rstrip("/"), token)
        return self._found

    def _unreachable(self, error: Exception, host: str) -> OSError:
        return ConnectionError(
            errno.ECONNREFUSED, f"the island at {host} does not answer ({error}): is `island run` running?"
        )


def _close_all(connections: list[http.client.HTTPConnection]) -> None:
    for connection in connections:
        connection.close()


def _join(dataset: str, relative: str) -> str:
    return f"{dataset}/{relative}" if relative else dataset


def _token(home: Home) -> str:
    """The user token of a home folder, or the administrator token if the user token cannot be read."""
    for path in (home.user_token, home.token):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            return secret_text(path, "a token")
    raise PermissionError(
        errno.EACCES,
        "no readable token in this home folder: set the storage option `token`, ISLAND_TOKEN_FILE or ISLAND_TOKEN",
        str(home.path),
    )


def _content_range(text: str, target: str) -> tuple[int, int]:
    """`bytes A-B/SIZE` as (A, B + 1)."""
    unit, _, rest = text.partition(" ")
    first, _, last = rest.partition("/")[0].partition("-")
    if unit != "bytes" or not (first.isdigit() and last.isdigit()):
        raise OSError(errno.EIO, f"the island answered with an invalid Content-Range {text[:80]!r}", target)
    return int(first), int(last) + 1


def _error(status: int, data: bytes, target: str) -> OSError:
    """The `OSError` for an error response of the API, with the island's message and hint."""
    try:
        found = json.loads(data)
        text = ". ".join(part.rstrip(".") for part in (found["message"], found["hint"]) if part)
    except (ValueError, KeyError, TypeError):
        text = f"HTTP status {status}"
    if status in {400, 404}:
        return FileNotFoundError(errno.ENOENT, text, target)
    if status in {401, 403}:
        return PermissionError(errno.EACCES, text, target)
    if status == 504:
        return TimeoutError(errno.EHOSTUNREACH, text, target)
    if status == 507:
        return OSError(errno.ENOSPC, text, target)
    return OSError(errno.EIO, text, target)
