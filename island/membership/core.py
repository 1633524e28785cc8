"""Pure functions of membership: the state of islands, the resolution of names, the checks of servers."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import urlsplit

from blake3 import blake3

from island.errors import Ambiguous, BadInput, NotFound
from island.kernel.ids import IslandId, is_key_prefix, is_name, key_prefix
from island.membership.messages import SERVER_KINDS, ServerKind

PeerState = Literal["self", "up", "suspect", "down"]
STATES: tuple[PeerState, ...] = get_args(PeerState)

REDIAL = 1.5
"""Seconds after the loss of a session in which an island stays up, to let the first redial succeed."""

DOWN = 15.0
"""Seconds without a session after which an island is down."""

MAX_SERVERS = 200
"""Maximum number of servers of one island."""

NAMES_KEPT = 16
"""Maximum number of names that are stored for one island."""

COMMENT_LIMIT, URL_LIMIT = 500, 512

SCHEMES: dict[str, tuple[str, ...]] = {
    "livy": ("http", "https"),
    "spark-ui": ("http", "https"),
    "spark-history": ("http", "https"),
    "hdfs": ("hdfs", "webhdfs", "swebhdfs", "http", "https"),
    "hbase": ("http", "https", "hbase", "thrift"),
    "jupyterhub": ("http", "https"),
    "other": ("http", "https", "ftp", "sftp", "ssh", "root", "roots", "s3", "hdfs", "webhdfs", "kafka", "tcp"),
}

_URL = re.compile(r"[\x21-\x7e]+\Z")


# Liveness


@dataclass(frozen=True, slots=True)
class Contact:
    """The contact of this island with another one. Times are monotonic seconds of this island."""

    linked: bool
    since: float
    """When the session was established or lost or, without a session so far, when the island became known."""
    heard: float
    """When new log entries of that island last arrived, from any island."""
    was_linked: bool = False
    """Whether there has been a session since this island started."""


def opinion(contact: Contact, now: float) -> tuple[PeerState, float | None]:
    """Return (state of an island at `now`, time at which it changes without new events, or None)."""
    if contact.linked:
        return "up", None
    if contact.heard > contact.since and now < contact.heard + DOWN:
        return "up", contact.heard + DOWN
    if contact.was_linked and now < contact.since + REDIAL:
        return "up", contact.since + REDIAL
    if now < contact.since + DOWN:
        return "suspect", contact.since + DOWN
    return "down", None


# Names


class IslandNames:
    """The names that islands use now (`current`) and have ever used (`former`), also indexed by name."""

    def __init__(
        self, current: Mapping[IslandId, str] | None = None, former: Mapping[str, Iterable[IslandId]] | None = None
    ) -> None:
        self.current: dict[IslandId, str] = {}
        self._users: dict[str, set[IslandId]] = {}
        self._former: dict[str, set[IslandId]] = {}
        self._kept: Counter[IslandId] = Counter()
        for island, name in (current or {}).items():
            self.use(island, name)
        for name, islands in (former or {}).items():
            for island in islands:
                self.remember(island, name)

    def use(self, island: IslandId, name: str | None) -> None:
        """Set the name that an island uses now; None if it is not known."""
        before = self.current.pop(island, None)
        if before is not None:
            self._users[before].discard(island)
            if not self._users[before]:
                del self._users[before]
        if name is not None:
            self.current[island] = name
            self._users.setdefault(name, set()).add(island)

    def remember(self, island: IslandId, name: str) -> None:
        """Add a name that an island has used."""
        islands = self._former.setdefault(name, set())
        if island not in islands:
            islands.add(island)
            self._kept[island] += 1

    def is_to_remember(self, island: IslandId) -> bool:
        """Whether the name that an island uses is not remembered yet, and the limit of the island allows it."""
        name = self.current.get(island)
        return name is not None and island not in self._former.get(name, ()) and self._kept[island] < NAMES_KEPT

    def claimants(self, name: str) -> list[IslandId]:
        """All islands that use `name` or have ever used it, sorted by key."""
        return sorted(self._users.get(name, set()) | self._former.get(name, set()))

    def display(self, island: IslandId) -> str:
        """The displayed name of an island: its name if that is unique, else `NAME.KEYPREFIX`."""
        name = self.current.get(island)
        if name is None:
            return key_prefix(island)
        former = self._former.get(name, set())
        unique = len(self._users[name]) == 1 and (not former or former == {island})
        return name if unique else f"{name}.{key_prefix(island)}"

    def resolve(self, text: str) -> IslandId:
        """Resolve a name, `NAME.KEYPREFIX`, a key, or a unique prefix of a key, to an island.

        Raises `NotFound` with close matches, or `Ambiguous` with the candidates.
        """
        if IslandId(text) in self.current:
            return IslandId(text)
        claimants = self.claimants(text)
        if len(claimants) == 1 and self.current.get(claimants[0]) == text:
            return claimants[0]
        if claimants:
            raise self._claimed(text, claimants)
        return self._by_prefix(text)

    def _claimed(self, name: str, claimants: list[IslandId]) -> Ambiguous | NotFound:
        now = [island for island in claimants if self.current.get(island) == name]
        if not now:
            island = claimants[0]
            return NotFound(
                f"no island uses the name {name} any more",
                hint=f"An island that used it is now called {self.display(island)}.",
            )
        shown = " or ".join(f"{name}.{key_prefix(island)}" for island in now)
        if len(now) == 1:
            return Ambiguous(
                f"the name {name} was used by another island before",
                hint=f"Write {shown} if you mean the island that uses it now.",
            )
        return Ambiguous(f"{len(now)} islands use the name {name}", hint=f"Write {shown}.")

    def _by_prefix(self, text: str) -> IslandId:
        name, dot, prefix = text.rpartition(".")
        if dot and is_key_prefix(prefix) and is_name(name):
            found = [i for i, claimed in sorted(self.current.items()) if claimed == name and i.startswith(prefix)]
        elif is_key_prefix(text):
            found = [island for island in sorted(self.current) if island.startswith(text)]
        else:
            found = []
        if len(found) == 1:
            return found[0]
        if found:
            shown = ", ".join(f"{key_prefix(i)} ({self.display(i)})" for i in found[:5])
            raise Ambiguous(f"'{text}' matches {len(found)} islands", hint=f"Write more digits: {shown}.")
        displays = sorted(self.display(island) for island in self.current)
        near = difflib.get_close_matches(text, displays, n=3, cutoff=0.4) or displays[:3]
        raise NotFound(
            f"no island has the name '{text[:80]}'",
            hint=f"Did you mean {' or '.join(near)}? `island peer ls` shows all."
            if near
            else "No island is known yet.",
        )


# Servers


def check_server(kind: str, url: str, comment: str) -> ServerKind:
    """Return `kind` if kind, URL and comment of a server are valid; raises `BadInput` otherwise."""
    if kind not in SERVER_KINDS:
        near = difflib.get_close_matches(kind, SERVER_KINDS, n=1, cutoff=0.5)
        raise BadInput(
            f"'{kind[:40]}' is not a kind of server",
            hint=(f"Did you mean {near[0]}? " if near else "") + f"Kinds are {', '.join(SERVER_KINDS)}.",
        )
    _check_url(kind, url)
    if len(comment) > COMMENT_LIMIT or not all(c.isprintable() for c in comment):
        raise BadInput(f"a comment is one line of at most {COMMENT_LIMIT} printable characters")
    return kind  # type: ignore[return-value]  # it is one of SERVER_KINDS, which are its values


def _check_url(kind: str, url: str) -> None:
    form = f"Write it as {SCHEMES[kind][0]}://HOST:PORT/PATH."
    if len(url) > URL_LIMIT or not _URL.match(url):
        raise BadInput(f"a server's URL has at most {URL_LIMIT} ASCII characters and no spaces", hint=form)
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError as error:
        raise BadInput(f"'{url[:200]}' is not a URL: {error}", hint=form) from error
    if parts.username is not None or parts.password is not None:
        raise BadInput(
            "the URL of a server must not contain a user name or password: all islands can see it",
            hint="Remove the part before '@'.",
        )
    if parts.scheme not in SCHEMES[kind]:
        raise BadInput(
            f"'{url[:200]}' is not a URL for a server of kind {kind}",
            hint=f"Its scheme is one of {', '.join(SCHEMES[kind])}. {form}",
        )
    if not host:
        raise BadInput(f"'{url[:200]}' has no host name", hint=form)


def is_server(kind: str, url: str, comment: str) -> bool:
    """Whether a server of another island may be shown. Kinds of later versions are accepted."""
    if not is_name(kind):  # even an unknown kind must be a plain name
        return False
    try:
        check_server(kind if kind in SERVER_KINDS else "other", url, comment)
    except BadInput:
        return False
    return True


def is_engine(server: str) -> bool:
    """Whether a server id is that of an engine. The ids of all other servers are hex digits."""
    return server == "livy" or server.startswith("livy-")


def server_id(kind: str, url: str) -> str:
    """Derive the id of a server, 8 hex digits, from its kind and URL."""
    return blake3(f"{kind}\0{url}".encode()).hexdigest()[:8]


def find_server(text: str, ids: Iterable[str]) -> str:
    """Return the id that is equal to `text` or begins with it; raises `NotFound` or `Ambiguous`."""
    known = sorted(ids)
    found = [text] if text in known else [id for id in known if text and id.startswith(text)]
    if not found:
        raise NotFound(f"this island has no server with the id '{text[:40]}'", hint="`island server ls` shows the ids.")
    if len(found) > 1:
        raise Ambiguous(f"'{text}' matches {len(found)} servers", hint=f"Write one of {', '.join(found[:5])}.")
    return found[0]
