"""The configuration, `HOME/island.toml`: its types, checks and documentation.

Each key is a field with a description. The commented file that `island init` writes and the
reference in `docs/configuration.md` are generated from these types.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from island.errors import ConfigError
from island.regular_file import read_regular

SIZE, JAVA_SIZE = r"^[0-9]+(KiB|MiB|GiB|TiB)?\Z", r"^[0-9]+[mg]\Z"
"""Sizes in bytes, and those of the options of Java."""

_FORMS = {SIZE: "a size; write for example 20GiB", JAVA_SIZE: "a size for Java; write for example 1g"}
"""What a value has to be that does not match a pattern."""

Positive = Annotated[int, Meta(ge=1)]

_HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")


class IslandSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Name of this island."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z",
            description="Name of the island, for display. The identity of the island is its key.",
        ),
    ]
    archipelago: Annotated[
        str,
        Meta(max_length=64, description="Label of the archipelago that the first invitation of this island founds."),
    ] = "archipelago"


class ListenSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Addresses and ports of this island."""

    user: Annotated[
        str,
        Meta(
            description="HOST:PORT of the user port, which serves Livy's REST API and the operator API. Loopback addresses only in this version."
        ),
    ] = "127.0.0.1:8990"
    peer: Annotated[
        str,
        Meta(
            description='HOST:PORT of the peer port, to which other islands connect. It may be public: sessions use TLS 1.3 and authenticate both islands by their keys. "" disables it: this island only dials out.'
        ),
    ] = "127.0.0.1:8991"
    advertise: Annotated[
        list[str],
        Meta(
            max_length=8,
            description="Addresses (HOST:PORT) at which other islands can dial the peer port, if they differ from `peer` (for example behind NAT, or a DNS name).",
        ),
    ] = []
    allowed_hosts: Annotated[
        list[str],
        Meta(
            max_length=100,
            description="Host names (HOST or HOST:PORT) under which a reverse proxy serves the user port. Requests whose Host or Origin header is neither in this list nor a loopback name or address are refused.",
        ),
    ] = []


class DiscoverySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Finding islands on the local network by multicast DNS. docs/administrator.md lists what others can see of it."""

    enabled: Annotated[
        bool,
        Meta(
            description="Whether to look for islands on the local network, and to announce this one if its peer port can be reached there. Everybody on that network can see the network id of the archipelago, the key prefix and the address."
        ),
    ] = False
    interfaces: Annotated[
        list[Annotated[str, Meta(max_length=64)]],
        Meta(
            max_length=16,
            description="Names or IPv4 addresses of the network interfaces to use, for example eth0. Empty: all except loopback.",
        ),
    ] = []


class UsersSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """People who use this island. `island user add` gives each of them a token."""

    shared_token: Annotated[
        bool,
        Meta(
            description="Whether the token in HOME/token.user is accepted beside the users' own tokens. All who use it are one user, named `user`, and see each other's jobs."
        ),
    ] = True


class LivySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The engine that runs this island's sessions and batches: the embedded one, or a Livy server of the site."""

    url: Annotated[
        str,
        Meta(
            description='URL of the site\'s own Livy, for example http://livy.example.org:8998. "" starts the embedded engine (requires the extra "spark").'
        ),
    ] = ""
    user: Annotated[str, Meta(description="User name for HTTP Basic authentication at the site's own Livy.")] = ""
    password_file: Annotated[
        str,
        Meta(
            description="File (mode 0600) with the password for the site's own Livy. A relative path is relative to the home folder."
        ),
    ] = ""
    embedded: Annotated[
        bool,
        Meta(
            description="Whether to start the embedded engine if `url` is empty. Set it to false if all engines are sections [[engine]], or if jobs shall run at other islands only."
        ),
    ] = True
    max_sessions: Annotated[
        Positive, Meta(description="Maximum number of sessions and batches that run at the same time.")
    ] = 4
    driver_memory: Annotated[
        str,
        Meta(
            pattern=JAVA_SIZE,
            description="Memory of the Spark driver of each session in the embedded engine, for example 512m or 1g.",
        ),
    ] = "1g"
    idle_timeout: Annotated[
        Positive, Meta(description="Seconds without a statement after which the embedded engine ends a session.")
    ] = 3600
    class_archive: Annotated[
        bool,
        Meta(
            description="Whether the embedded engine makes and uses a class-data archive of Spark (160 MB in the account's cache folder), with which sessions start in half the time."
        ),
    ] = True
    java_options: Annotated[
        list[Annotated[str, Meta(pattern=r"^-\S+\Z")]],
        Meta(max_length=100, description='Options for Java in the embedded engine, for example ["-XX:+UseG1GC"].'),
    ] = []


class EngineSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A further engine: a Livy server, on this machine or another one. There may be any number of these sections."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[a-z0-9][a-z0-9._-]{0,63}\Z",
            description="Name of the engine, for display and in the database: runs are bound to it, so do not give the name of one engine to another.",
        ),
    ]
    url: Annotated[str, Meta(description="URL of the Livy server, for example https://livy.example.org:8998.")]
    max_sessions: Annotated[
        Positive,
        Meta(description="Maximum number of sessions and batches of this island that run there at the same time."),
    ] = 4
    kinds: Annotated[
        list[Literal["pyspark", "shared", "spark", "sparkr", "sql"]],
        Meta(max_length=5, description="Kinds of sessions that it runs. Empty: it is asked when the daemon starts."),
    ] = []
    user: Annotated[str, Meta(description="User name for HTTP Basic authentication.")] = ""
    password_file: Annotated[
        str,
        Meta(description="File (mode 0600) with the password. A relative path is relative to the home folder."),
    ] = ""
    ca_file: Annotated[
        str,
        Meta(
            description="File with the certificates (PEM) of the authorities that this https server is checked against. Empty: those of the system."
        ),
    ] = ""
    kerberos: Annotated[
        bool,
        Meta(
            description='Whether to authenticate by Kerberos (SPNEGO) with the ticket of the daemon\'s account (requires the extra "kerberos").'
        ),
    ] = False
    shared_folder: Annotated[
        str,
        Meta(
            description="Folder that the account of the Livy server can read, on this machine or mounted at the same path on its machine. Inputs and the files of batches are copied there while a job uses them. Required if that account cannot read the home folder."
        ),
    ] = ""


class JobsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Permissions and limits for jobs. Jobs of other islands run only if the first three keys all allow it."""

    accept_from: Annotated[
        list[str],
        Meta(
            max_length=1000,
            description='Islands whose jobs may run at this island: names, keys, or "members" for every member of the archipelago. "ISLAND:USER" is one user of an island. Empty: none.',
        ),
    ] = []
    foreign_code: Annotated[
        Literal["none", "any"],
        Meta(description='Code of other islands that may run: "none", or "any" (arbitrary Python and SQL).'),
    ] = "none"
    same_user: Annotated[
        bool,
        Meta(
            description="Whether code of other islands may run under the account of this daemon. Such code can read everything that this account can read."
        ),
    ] = False
    max_foreign: Annotated[
        Positive,
        Meta(description="Maximum number of sessions and batches of other islands that run at the same time."),
    ] = 2
    allow_files: Annotated[
        list[str],
        Meta(
            max_length=100,
            description="Folders with files that batches may refer to by path. Files in the home folder are never allowed.",
        ),
    ] = []
    max_statements: Annotated[Positive, Meta(description="Maximum number of waiting statements in one session.")] = 100
    max_result: Annotated[
        str,
        Meta(
            pattern=SIZE,
            description="Maximum size of the result of one statement, as JSON, for example 64MiB. The statement fails if its result is larger. It applies at the job's home and where the job runs.",
        ),
    ] = "64MiB"
    keep_state: Annotated[
        Positive,
        Meta(description="Days after the end of a job for which its log and its routing decisions are kept."),
    ] = 30
    keep_results: Annotated[
        Positive,
        Meta(description="Days after the end of a job for which the job, its statements and their results are kept."),
    ] = 365
    keep_closed: Annotated[
        Positive,
        Meta(
            description="Days after the end of a job for which it is kept with its results if a client has deleted it, by `DELETE` or `island session close`."
        ),
    ] = 30
    max_live_per_user: Annotated[
        Positive,
        Meta(description="Maximum number of sessions and batches of one user of this island that have not ended."),
    ] = 50
    max_live_of: Annotated[
        dict[Annotated[str, Meta(max_length=64)], Positive],
        Meta(max_length=10_000, description="Another maximum for some users, for example { alice = 200 }."),
    ] = {}
    accounts: Annotated[
        dict[Annotated[str, Meta(max_length=140)], Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9._-]{0,63}\Z")]],
        Meta(
            max_length=10_000,
            description='Local accounts under which the site\'s own Livy runs the jobs of some users (its `proxyUser`): USER for a user of this island, "ISLAND:USER" for one of another island, for example { alice = "aliceunix", "virgo:alice" = "guest1" }.',
        ),
    ] = {}

    def live_limit(self, user: str) -> int:
        """The maximum number of sessions and batches of a user that have not ended."""
        return self.max_live_of.get(user, self.max_live_per_user)


class ReplicasSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The chunk store, which keeps data of other islands' datasets."""

    quota: Annotated[
        str,
        Meta(
            pattern=SIZE,
            description="Maximum size of the chunk store, for example 500MiB or 20GiB.",
        ),
    ] = "20GiB"
    reserve: Annotated[
        str,
        Meta(
            pattern=SIZE,
            description="Minimum free space on the disk. The chunk store does not grow when less is free.",
        ),
    ] = "1GiB"


class StreamsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sources and subscriptions."""

    poll: Annotated[float, Meta(ge=0.05, le=3600, description="Seconds between two scans of a watched folder.")] = 1.0
    window: Annotated[
        str,
        Meta(
            pattern=SIZE,
            description="Maximum size of the rows that are sent to one subscriber but not yet acknowledged, for example 8MiB.",
        ),
    ] = "8MiB"


class DecodingSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Resource limits for reading one Parquet or Avro file. A file that exceeds a limit is refused."""

    memory: Annotated[
        str,
        Meta(
            pattern=SIZE,
            description="Memory limit of a process that reads files, for example 512MiB or 2GiB; at least 256MiB. At most five such processes run at the same time.",
        ),
    ] = "1GiB"
    seconds: Annotated[
        Positive,
        Meta(
            description="Maximum CPU time for one file, in seconds. One second is added for each MiB of the file's size."
        ),
    ] = 60
    rows: Annotated[Positive, Meta(description="Maximum number of rows in one file.")] = 1_000_000_000


class LogSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Log output of the daemon, on stderr."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="Minimum severity of the messages that are logged."),
    ] = "info"
    format: Annotated[
        Literal["text", "json"], Meta(description='Format of the lines: "text" (key=value) or "json".')
    ] = "text"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of `island.toml`."""

    island: IslandSection
    listen: ListenSection = ListenSection()
    discovery: DiscoverySection = DiscoverySection()
    users: UsersSection = UsersSection()
    livy: LivySection = LivySection()
    engine: list[EngineSection] = []
    jobs: JobsSection = JobsSection()
    replicas: ReplicasSection = ReplicasSection()
    streams: StreamsSection = StreamsSection()
    decoding: DecodingSection = DecodingSection()
    log: LogSection = LogSection()


SECTIONS: dict[str, type[msgspec.Struct]] = {
    "island": IslandSection,
    "listen": ListenSection,
    "discovery": DiscoverySection,
    "users": UsersSection,
    "livy": LivySection,
    "jobs": JobsSection,
    "replicas": ReplicasSection,
    "streams": StreamsSection,
    "decoding": DecodingSection,
    "log": LogSection,
}


LISTS: dict[str, type[msgspec.Struct]] = {"engine": EngineSection}
"""Sections of which there may be any number, written as [[NAME]]."""

RESERVED_ENGINES = ("embedded", "livy")
"""The names of the engine of [livy]: without and with a URL."""


FILE_LIMIT = 1024 * 1024
"""Maximum size of a configuration file, in bytes."""


def load(path: Path) -> Config:
    """Read and check a configuration file.

    Raises `ConfigError` that names the file, the key and the reason, and for an unknown key
    the most similar known key.
    """
    try:
        raw = decoded(read_regular(path, FILE_LIMIT).decode("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no island at {path.parent}",
            hint="Create one with `island init HOME --name NAME`, or select a home folder with --home or ISLAND_HOME.",
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}", hint="Correct the file. `island config reference` describes every key."
        ) from error
    found = problems(raw)
    if len(found) > 1:
        hint = f"{found[0].hint} `island config check` lists all {len(found)} problems."
        raise ConfigError(f"{path}: {found[0].message}", hint=hint)
    return parse(raw, str(path))


def decoded(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text. Raises `ValueError`, most often `tomllib.TOMLDecodeError`."""
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error


def parse(raw: dict[str, Any], where: str) -> Config:
    """Check a configuration; `where` is its origin for error messages. Raises `ConfigError` as `load` does."""
    for first in problems(raw):
        raise ConfigError(f"{where}: {first.message}", hint=first.hint)
    return msgspec.convert(raw, Config, strict=True)


class KeyProblem(NamedTuple):
    """What is wrong with a key of the configuration, or with a section if `key` is empty."""

    section: str
    key: str
    message: str
    hint: str


def problems(raw: dict[str, Any]) -> list[KeyProblem]:
    """Return everything that is wrong with a configuration: unknown sections, then each section's keys."""
    known = [*SECTIONS, *LISTS]
    found = [_unknown(name, known, "") for name in raw if name not in known]
    for section, kind in SECTIONS.items():
        values = raw.get(section, {})
        if isinstance(values, dict):
            found += _section_problems(section, kind, values)
        else:
            hint = f"Write [{section}] on a separate line."
            found.append(KeyProblem(section, "", f"'{section}' must be a table", hint))
    for section, kind in LISTS.items():
        found += _list_problems(section, kind, raw.get(section, []))
    return found


def _list_problems(section: str, kind: type[msgspec.Struct], tables: Any) -> Iterator[KeyProblem]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        hint = f"Write [[{section}]] on a separate line for each of them."
        yield KeyProblem(section, "", f"'{section}' must be a list of tables", hint)
        return
    names: list[object] = list(RESERVED_ENGINES)
    for number, table in enumerate(tables):
        place = f"{section}[{number}]"
        yield from _section_problems(place, kind, table)
        if (name := table.get("name")) in names:
            found = f"{place}.name = '{name}' is the name of another engine"
            yield KeyProblem(place, "name", found, f"Use different names; {' and '.join(RESERVED_ENGINES)} are taken.")
        names.append(name)


def _section_problems(section: str, kind: type[msgspec.Struct], values: dict[str, Any]) -> Iterator[KeyProblem]:
    types = get_type_hints(kind, include_extras=True)
    for key in values:
        if key not in types:
            yield _unknown(key, types, section)
    for field in msgspec.structs.fields(kind):
        if field.required and field.name not in values:
            missing = f"{section if '[' in section else f'[{section}]'} has no {field.name}"
            header = re.sub(r"(.+)\[\d+\]", r"[\1]", section)
            yield KeyProblem(
                section, field.name, missing, f'Add {field.name} = "{field.name.upper()}" under [{header}].'
            )
    for key, kind_of_key in types.items():
        if key in values and (found := _value_problem(section, key, values[key], kind_of_key)):
            yield found


def _unknown(name: str, known: Collection[str], section: str) -> KeyProblem:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    hint = f"The most similar known key is '{near[0]}'." if near else ""
    return KeyProblem(section or name, name if section else "", f"unknown key '{_dotted(section, name)}'", hint)


def _dotted(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key


def _value_problem(section: str, key: str, value: Any, kind: Any) -> KeyProblem | None:
    """Return what is wrong with the type or the content of a value, or None."""
    name = _dotted(section, key)
    try:
        msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$")
        message = f"{name}{place.rstrip('`')}: {text[:1].lower() + text[1:]}"
        if form := next((form for pattern, form in _FORMS.items() if repr(pattern) in text), ""):
            message = f"{name} = {as_toml(value)} is not {form}"
        return KeyProblem(section, key, message, "`island config reference` lists every key with its type.")
    try:
        if check := _CONTENT.get(re.sub(r"\[\d+\]", "", name)):
            check(value, name)
    except ConfigError as error:
        return KeyProblem(section, key, error.message, error.hint)
    return None


def _check_user_port(text: str, what: str) -> None:
    host, _ = split_address(text, what)
    if not is_loopback(host):
        raise ConfigError(
            f"{what} = '{text}' is not a loopback address",
            hint="In this version the user port is loopback only: use 127.0.0.1 and connect through an SSH tunnel.",
        )


def _check_peer_port(text: str, what: str) -> None:
    if text:
        split_address(text, what)


def _check_advertised(addresses: list[str], what: str) -> None:
    for address in addresses:
        split_address(address, what)


def _check_hosts(hosts: list[str], what: str) -> None:
    for host in hosts:
        split_host(host, what)


def _check_livy_url(url: str, what: str) -> None:
    # A password may contain "/", so that "@" is not in the part of the URL where a parser looks for it.
    section = what.rpartition(".")[0]
    if "@" in url:
        raise ConfigError(
            f"{what} contains a user name or password, and all islands can see this URL",
            hint=f"Move them to {section}.user and to the file of {section}.password_file. Write another @ as %40.",
        )
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if (url or what != "livy.url") and (not usable or re.search(r"[\s\"'\\]", url)):
        raise ConfigError(
            f"{what} = {url[:200]!r} is not the URL of a Livy server",
            hint="Use a URL such as http://livy.example.org:8998.",
        )


def _check_accepted(entries: list[str], what: str) -> None:
    for entry in entries:
        island, colon, user = entry.partition(":")
        if colon and (island in {"", "members"} or not user or ":" in user):
            raise ConfigError(
                f"{what}: '{entry[:200]}' is not the name or key of an island, ISLAND:USER or \"members\"",
                hint='Examples: "virgo" for all users of virgo, "virgo:alice" for one of them.',
            )


def _check_accounts(accounts: dict[str, str], what: str) -> None:
    for entry in accounts:
        island, colon, user = entry.rpartition(":")
        if not user or (colon and (not island or ":" in island)):
            raise ConfigError(
                f"{what}: '{entry[:200]}' is neither USER nor ISLAND:USER",
                hint='Examples: alice = "aliceunix", "virgo:alice" = "guest1".',
            )


def _check_absolute(path: str, what: str) -> None:
    if path and not Path(path).is_absolute():
        raise ConfigError(f"{what} = '{path[:200]}' is not an absolute path", hint="Use a path such as /srv/island.")


_CONTENT: dict[str, Callable[[Any, str], None]] = {
    "listen.user": _check_user_port,
    "listen.peer": _check_peer_port,
    "listen.advertise": _check_advertised,
    "listen.allowed_hosts": _check_hosts,
    "jobs.accept_from": _check_accepted,
    "jobs.accounts": _check_accounts,
    "livy.url": _check_livy_url,
    "engine.url": _check_livy_url,
    "engine.shared_folder": _check_absolute,
}
"""Checks of values whose type is right; they raise `ConfigError`."""


def without_password(text: str) -> str:
    """Replace what may be a user name and password in a URL of a configuration file with `***`, for output."""
    # Up to the last "@" of the line: a password may contain any character, also a quote.
    text = re.sub(r"(\burl[\"']?\s*=\s*[\"']*(?:\w+://)?).*@", r"\1***@", text)
    return re.sub(r"(?<=://).*@", "***@", text)


def split_address(text: str, what: str = "address") -> tuple[str, int]:
    """Parse `HOST:PORT` or `[IPV6]:PORT`; return host (without brackets) and port.

    Raises `ConfigError` that names `what`.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{what} = '{text[:200]}' is not HOST:PORT", hint="Examples: 127.0.0.1:8990, [::1]:8990.")
    return host, int(port)


def split_host(text: str, what: str = "host") -> tuple[str, int | None]:
    """Parse `HOST` or `HOST:PORT`, as in the Host header of HTTP; return host and port (None if there is none).

    The host is normalized: lower case, no final dot, IPv6 compressed and without brackets.
    Raises `ConfigError` that names `what` for anything else, such as a URL.
    """
    bracketed = re.fullmatch(r"\[([0-9A-Fa-f:.]{2,45})\](?::([0-9]{1,5}))?", text)
    plain = re.fullmatch(r"([A-Za-z0-9._-]{1,254})(?::([0-9]{1,5}))?", text)
    try:
        if bracketed:
            host = ipaddress.IPv6Address(bracketed[1]).compressed
        elif plain and _HOST_NAME.fullmatch(plain[1].lower().removesuffix(".")):
            host = plain[1].lower().removesuffix(".")
        else:
            raise ValueError
        found = bracketed or plain
        port = int(found[2]) if found and found[2] else None
        if port is not None and port > 65535:
            raise ValueError
    except ValueError as error:
        raise ConfigError(
            f"{what} = '{text[:200]}' is not HOST or HOST:PORT",
            hint="Examples: island.example.org, [2001:db8::1]:8443. No scheme, path or wildcard; non-ASCII names in the form xn--....",
        ) from error
    return host, port


def is_loopback(host: str) -> bool:
    """Return whether `host` is a loopback address or `localhost`, which only this machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def size_in_bytes(text: str) -> int:
    """Convert a size such as `20GiB`, `500MiB` or `4096` to bytes. The type of the key has checked its format."""
    for unit, factor in (("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30), ("TiB", 2**40)):
        if text.endswith(unit):
            return int(text.removesuffix(unit)) * factor
    return int(text)


def describe(
    sections: Mapping[str, type[msgspec.Struct]] = SECTIONS,
) -> list[tuple[str, str, str, Any, str]]:
    """Return every key as (section, key, type, default, description), in the order of the file."""
    rows = []
    for section, kind in sections.items():
        hints = get_type_hints(kind, include_extras=True)
        for field in msgspec.structs.fields(kind):
            default = field.default if field.default is not msgspec.NODEFAULT else None
            if default is None and field.default_factory is not msgspec.NODEFAULT:
                default = field.default_factory()
            meta = [m for m in getattr(hints[field.name], "__metadata__", ()) if isinstance(m, Meta)]
            text = next((m.description for m in meta if m.description), "")
            rows.append((section, field.name, _type_name(field.type), default, text))
    return rows


def _type_name(kind: Any) -> str:
    base = getattr(kind, "__origin__", kind)
    if base is list:
        return "list of strings"
    if base is dict:
        return f"table of {_type_name(kind.__args__[1])}s"
    if base is Literal:
        return " or ".join(json.dumps(value) for value in kind.__args__)
    inner = kind.__origin__ if hasattr(kind, "__metadata__") else kind
    if inner is not kind:
        return _type_name(inner)
    return {str: "string", int: "integer", float: "number", bool: "true or false"}.get(kind, str(kind))


def render(values: dict[str, dict[str, Any]]) -> str:
    """Return a complete, commented `island.toml` with `values` (section → key → value) instead of defaults."""
    lines = [
        "# Configuration of an island, with all keys. An unknown key is an error.",
        "# Changes take effect at the next start of `island run`.",
    ]
    current = ""
    for section, key, _, default, text in describe():
        if section != current:
            current = section
            lines += ["", f"# {(SECTIONS[section].__doc__ or '').strip()}", f"[{section}]"]
        lines.append(f"# {text}")
        lines.append(f"{key} = {as_toml(values.get(section, {}).get(key, default))}")
    for section, kind in LISTS.items():
        lines += ["", f"# {(kind.__doc__ or '').strip()}", f"# [[{section}]]"]
        lines += [
            f"# {key} = {as_toml('' if default is None else default)}" for _, key, _, default, _ in describe(LISTS)
        ]
    return "\n".join(lines) + "\n"


def as_toml(value: Any) -> str:
    """Return the value of a key as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_toml(name)} = {as_toml(each)}" for name, each in value.items()) + "}"
    # JSON strings, numbers, booleans and lists of strings are valid TOML.
    return json.dumps(value, ensure_ascii=False)


def reference() -> str:
    """Return the configuration reference, `docs/configuration.md`, in Markdown."""
    lines = [
        "# Configuration reference",
        "",
        "`island init` writes the configuration file `HOME/island.toml` with all keys and a comment for each.",
        "`island run` reads it once, when it starts. An unknown key or a wrong type is an error; the message names",
        "the file and the key, and for an unknown key the most similar known one. `island config check` lists all",
        "problems of a file with their lines, without starting the daemon, and `island config show --effective`",
        "prints all values in force after a restart and where each comes from. This page is generated from",
        "`island/config.py`.",
    ]
    current = ""
    for section, key, kind, default, text in [*describe(), *describe(LISTS)]:
        if section != current:
            current = section
            header = f"[[{section}]]" if section in LISTS else f"[{section}]"
            lines += ["", f"## {header}", "", ({**SECTIONS, **LISTS}[section].__doc__ or "").strip(), ""]
            lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        default_text = "(required)" if default is None else f"`{as_toml(default)}`"
        lines.append(f"| `{key}` | {kind} | {default_text} | {text} |")
    return "\n".join(lines) + "\n"
