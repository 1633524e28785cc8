"""Decisions of streams, pure: which files are complete, what may be sent, when to commit, what a channel says."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from island.errors import PeerMisbehaved

# --- a watched folder -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FileStat:
    """What tells, without reading, that a file may have changed."""

    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class UnsettledFile:
    """A file that is not known yet: its last stat, since when (monotonic) it is so, and whether it was tried."""

    stat: FileStat
    since: float
    tried: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True)
class FolderScan:
    """What one look at a folder asks for."""

    read: tuple[str, ...]
    """Paths to read now, in the order in which they are to be journaled."""
    vanished: tuple[str, ...]
    """Known paths that are no longer there."""
    resting: Mapping[str, UnsettledFile]
    """Every unknown path, for the next look."""


OLD = 10.0
"""Seconds since the last change after which a file that is seen for the first time has rested already."""


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
    """Compare a folder with what is known of it; `now` is monotonic, `wall` dates the files.

    A new or changed file whose format tells its own end (the footer of Parquet is the last thing
    that is written) is tried at each look until it can be decoded. Any other (an Avro container
    can grow by further blocks at any time) is tried once it has rested for `settle` seconds. One
    that was tried in vain waits until it changes. Files are read in the order of their last
    change, then by name, so that the order of the rows does not depend on the folder's.
    """
    resting: dict[str, UnsettledFile] = {}
    gone = tuple(sorted(path for path in known if path not in listing))
    # What was complete under another name is complete under this one.
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
        if not rest.tried and (tells_its_end(path) or has_settled(rest, now, settle))
    ]
    due.sort(key=lambda path: (listing[path].mtime_ns, path))
    return FolderScan(tuple(due), gone, resting)


def has_settled(rest: UnsettledFile, now: float, settle: float) -> bool:
    """Whether a file has stood unchanged for `settle` seconds."""
    return now - rest.since >= settle


def undecodable_file(rest: UnsettledFile, problem: str, now: float, settle: float) -> UnsettledFile:
    """A file that could not be decoded: still being written while it is young, a problem once it has rested."""
    if has_settled(rest, now, settle):
        return replace(rest, tried=True, problem=problem)
    return rest


# --- what is under way to one subscriber --------------------------------------------------------


@dataclass(slots=True)
class Window:
    """Bytes sent and not yet acknowledged. One delivery may always be under way, whatever its size."""

    limit: int
    sent: deque[tuple[bytes, int]] = field(default_factory=deque)
    size: int = 0

    def open(self) -> bool:
        """Whether another delivery may be sent."""
        return not self.sent or self.size < self.limit

    def send(self, to: bytes, size: int) -> None:
        """A delivery up to `to` goes out."""
        self.sent.append((to, size))
        self.size += size

    def acknowledge(self, position: bytes) -> None:
        """Everything up to `position` is durable there; raises `PeerMisbehaved` for one never sent."""
        if not any(to == position for to, _ in self.sent):
            raise PeerMisbehaved("a position was acknowledged that is not under way")
        while True:
            to, size = self.sent.popleft()
            self.size -= size
            if to == position:
                return


# --- the subscriber ----------------------------------------------------------------------------


def commit_every(segments: int) -> float:
    """Seconds between two commits under load: the more files a dataset has, the fewer small ones are added."""
    return min(10.0, max(0.1, segments / 10_000))


def commit_in(*, now: float, last: float, pending_bytes: int, window: int, every: float) -> float:
    """Seconds until what is pending should be committed: at once when idle or when half the window is full."""
    if pending_bytes * 2 >= window:
        return 0.0
    return max(0.0, last + every - now)


ChannelState = Literal["starting", "backfill", "live", "waiting", "error", "gap", "stopped"]
FINAL: tuple[ChannelState, ...] = ("stopped",)


@dataclass(slots=True)
class RateMeter:
    """Rows and bytes a second over the last minute or so, in steps of a second."""

    span: int = 30
    steps: deque[tuple[int, int, int]] = field(default_factory=deque)

    def add(self, now: float, rows: int, size: int) -> None:
        """`rows` and `size` bytes became durable at monotonic time `now`."""
        second = int(now)
        if self.steps and self.steps[-1][0] == second:
            _, had, bytes_ = self.steps.pop()
            rows, size = rows + had, size + bytes_
        self.steps.append((second, rows, size))
        self._forget(now)

    def rate(self, now: float) -> tuple[float, float]:
        """(rows, bytes) a second over the span that ends at `now`."""
        self._forget(now)
        return sum(r for _, r, _ in self.steps) / self.span, sum(b for _, _, b in self.steps) / self.span

    def _forget(self, now: float) -> None:
        while self.steps and self.steps[0][0] <= now - self.span:
            self.steps.popleft()


def retry_after(state: ChannelState, failures: int) -> float:
    """Ceiling in seconds of the wait before a channel tries again, by why it ended.

    A lost source is redialled soon and for ever; an error or a gap lasts until a person acts
    (puts a file back, mends one), so it is looked at again now and then.
    """
    if state in ("error", "gap"):
        return min(60.0, 2.0 * float(2 ** min(failures, 5)))
    return min(15.0, 0.5 * float(2 ** min(max(failures - 1, 0), 5)))


def shorten(texts: Iterable[str], limit: int = 480) -> str:
    """Several texts as one of at most `limit` characters, the number of the rest told."""
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
