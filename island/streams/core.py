"""Pure decisions of streams: which files are complete, whether to send, when to commit and when to retry."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from island.errors import PeerMisbehaved

# --- a watched folder -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FileStat:
    """The attributes of a file that show, without reading it, that it may have changed."""

    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class UnsettledFile:
    """A file that has not been added yet.

    `stat` is unchanged since the monotonic time `since`. `tried` is true if it could not be
    decoded and is not tried again before it changes; `problem` is the reason. After reading it has
    failed `failures` times for a reason that may not be the file's, it is read again at the monotonic
    time `again`. `crashes` counts those failures that the file probably caused.
    """

    stat: FileStat
    since: float
    tried: bool = False
    problem: str = ""
    failures: int = 0
    crashes: int = 0
    again: float = 0.0


@dataclass(frozen=True, slots=True)
class FolderScan:
    """The result of one scan of a folder."""

    read: tuple[str, ...]
    """Paths to read now, in the order in which they are added to the source journal."""
    vanished: tuple[str, ...]
    """Known paths that no longer exist."""
    resting: Mapping[str, UnsettledFile]
    """All paths that have not been added yet, for the next scan."""


OLD = 10.0
"""Age in seconds since the last change at which a file counts as settled when it is seen for the first time."""


def scan_folder(
    listing: Mapping[str, FileStat],
    known: Mapping[str, FileStat],
    before: Mapping[str, UnsettledFile],
    *,
    now: float,
    wall: float,
    settle: float,
    tells_its_end: Callable[[str], bool],
) -> FolderScan:
    """Compare the listing of a folder with the known files. `now` is monotonic time, `wall` is Unix time.

    A new or changed file is read at each scan until it can be decoded, if its format has an end
    marker (`tells_its_end`; Parquet writes its footer last). Other files (an Avro container may get
    further blocks at any time) are read when they have been unchanged for `settle` seconds. A file
    that could not be decoded is not read again until it changes, one that could not be read (`failed_file`)
    only after a pause. Files are read in the order of
    their modification times, then by name, so the order of rows does not depend on the order of
    the listing.
    """
    resting: dict[str, UnsettledFile] = {}
    gone = tuple(sorted(path for path in known if path not in listing))
    # A file that was renamed is complete if it was complete under its old name.
    moved = {known[path] for path in gone}
    for path, stat in listing.items():
        if known.get(path) == stat:
            continue
        last = before.get(path)
        if last is None or last.stat != stat:
            old = stat in moved or wall - stat.mtime_ns / 1e9 >= max(OLD, settle)
            last = UnsettledFile(stat, now - settle if old else now)
        resting[path] = last
    due = [
        path
        for path, rest in resting.items()
        if not rest.tried and now >= rest.again and (tells_its_end(path) or has_settled(rest, now, settle))
    ]
    due.sort(key=lambda path: (listing[path].mtime_ns, path))
    return FolderScan(tuple(due), gone, resting)


def has_settled(rest: UnsettledFile, now: float, settle: float) -> bool:
    """Whether a file has been unchanged for `settle` seconds."""
    return now - rest.since >= settle


def undecodable_file(rest: UnsettledFile, problem: str, now: float, settle: float) -> UnsettledFile:
    """The state of a file that could not be decoded: unchanged before it has settled, afterwards a problem."""
    if has_settled(rest, now, settle):
        return replace(rest, tried=True, problem=problem)
    return rest


MAX_CRASHES = 3
"""Number of crashes of the process that reads a file after which the file is set aside."""


def failed_file(rest: UnsettledFile, problem: str, now: float, *, crashed: bool) -> UnsettledFile:
    """The state of a file after reading it has failed: it is read again, with exponential backoff of at most 60 s.

    `crashed`: the process that read it crashed or exceeded a limit. The file is probably the cause, so
    after `MAX_CRASHES` times it is not read again before it changes. Otherwise (the process was
    killed, the disk fails) it is never set aside.
    """
    failures, crashes = rest.failures + 1, rest.crashes + crashed
    again = now + min(60.0, 2.0 ** min(failures, 6))
    return replace(rest, problem=problem, failures=failures, crashes=crashes, again=again, tried=crashes >= MAX_CRASHES)


# --- flow control to one subscriber -------------------------------------------------------------


@dataclass(slots=True)
class Window:
    """Limits the bytes that are sent and not acknowledged. One delivery of any size is always allowed."""

    limit: int
    sent: deque[tuple[bytes, int]] = field(default_factory=deque)
    size: int = 0

    def open(self) -> bool:
        """Whether another delivery may be sent."""
        return not self.sent or self.size < self.limit

    def send(self, to: bytes, size: int) -> None:
        """Record that a delivery of `size` bytes up to the position `to` was sent."""
        self.sent.append((to, size))
        self.size += size

    def acknowledge(self, position: bytes) -> None:
        """Record that everything up to `position` is durable. Raises `PeerMisbehaved` for an unknown position."""
        if not any(to == position for to, _ in self.sent):
            raise PeerMisbehaved("acknowledged a position that was not sent, or was already acknowledged")
        while True:
            to, size = self.sent.popleft()
            self.size -= size
            if to == position:
                return


# --- the subscriber ----------------------------------------------------------------------------


def commit_every(segments: int) -> float:
    """Seconds between two commits under load. It grows with the number of files, to avoid many small files."""
    return min(10.0, max(0.1, segments / 10_000))


def commit_in(*, now: float, last: float, pending_bytes: int, window: int, every: float) -> float:
    """Seconds until pending rows should be committed; 0 if they take half of the window or more.

    `now` and `last`, the time of the last commit, are monotonic; `every` is the result of `commit_every`.
    """
    if pending_bytes * 2 >= window:
        return 0.0
    return max(0.0, last + every - now)


ChannelState = Literal["starting", "backfill", "live", "waiting", "error", "gap", "stopped"]
FINAL: tuple[ChannelState, ...] = ("stopped",)


@dataclass(slots=True)
class RateMeter:
    """Rows and bytes per second over the last `span` seconds, in steps of one second."""

    span: int = 30
    steps: deque[tuple[int, int, int]] = field(default_factory=deque)

    def add(self, now: float, rows: int, size: int) -> None:
        """Record that `rows` rows and `size` bytes were committed at monotonic time `now`."""
        second = int(now)
        if self.steps and self.steps[-1][0] == second:
            _, had, bytes_ = self.steps.pop()
            rows, size = rows + had, size + bytes_
        self.steps.append((second, rows, size))
        self._forget(now)

    def rate(self, now: float) -> tuple[float, float]:
        """(rows, bytes) per second over the span that ends at monotonic time `now`."""
        self._forget(now)
        return sum(r for _, r, _ in self.steps) / self.span, sum(b for _, _, b in self.steps) / self.span

    def _forget(self, now: float) -> None:
        while self.steps and self.steps[0][0] <= now - self.span:
            self.steps.popleft()


def retry_after(state: ChannelState, failures: int) -> float:
    """Maximum number of seconds before a channel tries again, with exponential backoff.

    The limit is 15 s if the source is unreachable. After an error or a gap it is 60 s, because
    these last until somebody acts, for example puts a file back.
    """
    if state in ("error", "gap"):
        return min(60.0, 2.0 * float(2 ** min(failures, 5)))
    return min(15.0, 0.5 * float(2 ** min(max(failures - 1, 0), 5)))


def shorten(texts: Iterable[str], limit: int = 480) -> str:
    """Join texts to one of at most `limit` characters; the number of omitted texts is appended."""
    listed = list(texts)
    shown: list[str] = []
    for text in listed:
        if sum(len(part) + 2 for part in shown) + len(text) > limit - 24:
            break
        shown.append(text)
    rest = len(listed) - len(shown)
    if listed and not shown:
        shown, rest = [listed[0][: limit - 24]], len(listed) - 1
    return "; ".join(shown) + (f"; and {rest} more" if rest else "")
