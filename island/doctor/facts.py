"""What is known about an island and its machine: the input of the decisions in `island.doctor.core`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class HomeFacts:
    """The home folder, and the account that runs the check."""

    path: str
    exists: bool
    is_island: bool
    owner: str
    """Empty if it is not known."""
    account: str
    mode: int
    """Permission bits."""
    readable: bool
    writable: bool
    read_only: bool = False
    """Whether its file system is mounted read-only."""


@dataclass(frozen=True, slots=True)
class SecretFacts:
    """A secret file that was read; `error` and `hint` are empty if it can be used."""

    name: str
    error: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class EntryFacts:
    """Entries of the home folder that other accounts can access, or that other accounts own."""

    open: Sequence[str]
    foreign: Sequence[str]
    home: str
    owner: str
    """Account that owns the home folder."""


@dataclass(frozen=True, slots=True)
class DeniedFile:
    """A file in the home folder that the account of the check may not read."""

    name: str
    owner: str
    account: str
    hint: str


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """A database file; `version` is None if it does not exist yet, and `errors` are those of `quick_check`."""

    name: str
    path: str
    version: int | None
    newest: int
    """The newest version that this program supports."""
    errors: Sequence[str] = ()
    complete: bool = True
    """Whether the check of the content was finished in time."""
    denied: DeniedFile | None = None
    """The database, or a file beside it, if its mode or owner keep it from being opened."""
    unreadable: str = ""
    """Why it cannot be read for another reason, which says nothing about its content."""
    hindered: bool = False
    """Whether that is a lock, the mode of the disk or a lack of space, rather than a failed read."""


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """The file system of the home folder; sizes in bytes."""

    path: str
    free: int
    inodes: int | None
    """Free inodes; None if the file system does not limit them."""
    read_only: bool
    stored: int
    """Size of the chunk store."""
    reserve: int | None
    quota: int | None
    """`[replicas] reserve` and `quota`; None if the configuration is not valid."""


@dataclass(frozen=True, slots=True)
class ClockFacts:
    """What is known about the clock of this machine. Differences are positive if the other clock is ahead."""

    synchronized: bool | None
    newest_change_s: float
    """Seconds from the last change of the databases until now; negative if they were changed in the future."""
    others: Sequence[tuple[str, float, float]] = ()
    """Other clocks: whose, difference and its maximum error in seconds."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the embedded engine needs, or a Livy if `livy`, its URL, is not empty."""

    livy: str
    version: str = ""
    """Version of PySpark or of Livy; empty if it is not installed or does not answer."""
    java: str = ""
    """Home folder of Java."""
    ignored: str = ""
    """Value of JAVA_HOME, if it has no Java of the right version."""
    error: str = ""
    hint: str = ""
    engine: str = ""
    """Name of a Livy of `[[engine]]`."""


@dataclass(frozen=True, slots=True)
class EngineFileFacts:
    """Whether a Livy can read the files of its jobs, which are in `folder`."""

    engine: str
    folder: str
    shared: bool
    """Whether `folder` is the `shared_folder` of the engine. Otherwise it is in the home folder."""
    problem: str
    """Why the folder cannot be used at all."""
    accounts: list[str] | None
    """The accounts of the Livy; None if it is on another machine, empty if it does not run."""
    denied: list[str]
    """Those of them that cannot read the folder."""


@dataclass(frozen=True, slots=True)
class PortFacts:
    """A port of the configuration. `holder` is the program that listens on it, if it is known."""

    key: str
    address: str
    state: Literal["free", "ours", "silent", "taken", "foreign", "denied"]
    """`ours`: this daemon listens. `silent`: it should, but does not. `foreign`: not an address of this machine."""
    holder: str = ""


@dataclass(frozen=True, slots=True)
class PeerView:
    """How this island looks from a linked island."""

    island: str
    reached: bool | None
    reason: str


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """Addresses that this island announces, and what linked islands say about them."""

    listen: str
    loopback: bool
    unknown_hosts: Sequence[str]
    """Names in `listen.advertise` that cannot be resolved."""
    views: Sequence[PeerView] | None
    """None if the daemon could not be asked."""


@dataclass(frozen=True, slots=True)
class DaemonFacts:
    """The daemon of the home folder."""

    running: bool
    home: str = field(kw_only=True)
    pid: int | None = None
    state: str = ""
    problems: Sequence[str] = ()
    discovery: str = ""
    """Whether it finds islands on the local network: `off`, `on` or `failed`, and what does not work."""
    version: str = ""
    program: str = ""
    """Version of the program that runs the check."""
    configured_later: bool = False
    """Whether island.toml was changed after the daemon started."""
    stale: bool = False
    """Whether a daemon that was killed left `running.json` behind."""
    silent: bool = False
    """Whether it did not answer in time; `error` says how long it was waited for."""
    error: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class SandboxFacts:
    """What separates code that users run from the daemon."""

    embedded: bool
    foreign: bool
    """Whether code of other islands may run."""
    root: bool
    account: str
    """Account of the daemon: the owner of the home folder."""
    livy_accounts: Sequence[str] | None = None
    """Accounts of the programs at the port of the site's Livy, empty if unknown; None if it is on another machine."""
