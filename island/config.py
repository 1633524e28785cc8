"""The configuration: `HOME/island.toml`, typed and strict.

Each key is a field with its meaning; the commented file that `island init` writes and the
reference in `docs/configuration.md` are made from these types, so that neither can drift.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from island.errors import ConfigError

Positive = Annotated[int, Meta(ge=1)]

_HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")


class IslandSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who this island is."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z",
            description="The name that people see. The identity is the key.",
        ),
    ]
    archipelago: Annotated[
        str,
        Meta(max_length=64, description="Label of the archipelago that the first invitation of this island founds."),
    ] = "archipelago"


class ListenSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where this island listens."""

    user: Annotated[
        str,
        Meta(
            description="Host and port for people and programs: Livy's REST and the operator API. Loopback only in this version."
        ),
    ] = "127.0.0.1:8990"
    peer: Annotated[
        str,
        Meta(
            description='Host and port for other islands. May be public: every session is TLS 1.3 and proves its key. "" listens for none: this island only dials out.'
        ),
    ] = "127.0.0.1:8991"
    advertise: Annotated[
        list[str],
        Meta(
            max_length=8,
            description="Addresses (host:port) at which others can dial the peer port, if they differ from it (NAT, a name in DNS).",
        ),
    ] = []
    allowed_hosts: Annotated[
        list[str],
        Meta(
            max_length=100,
            description="Host names (HOST or HOST:PORT) under which a reverse proxy serves the user port. A request whose Host or Origin is neither one of these nor a loopback name or address is refused.",
        ),
    ] = []


class LivySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The Livy server that runs this island's sessions and batches."""

    url: Annotated[
        str,
        Meta(
            description='URL of the site\'s own Livy, as http://livy.example.org:8998. "" starts the embedded engine (extra "spark").'
        ),
    ] = ""
    user: Annotated[str, Meta(description="User name for HTTP Basic authentication at that Livy.")] = ""
    password_file: Annotated[
        str, Meta(description="File (mode 0600) with the password for that Livy, absolute or below the home.")
    ] = ""
    max_sessions: Annotated[Positive, Meta(description="Sessions and batches that may run at once here.")] = 4
    driver_memory: Annotated[
        str, Meta(pattern=r"^[0-9]+[mg]\Z", description="Memory of a session's driver in the embedded engine.")
    ] = "1g"
    idle_timeout: Annotated[
        Positive, Meta(description="Seconds without a statement after which the embedded engine ends a session.")
    ] = 3600


class JobsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose code runs here. Foreign jobs run only if all three of the first keys allow it."""

    accept_from: Annotated[
        list[str],
        Meta(
            max_length=1000,
            description='Islands whose users\' jobs may run here: names, keys, or "members" for every admitted island. Empty: none.',
        ),
    ] = []
    foreign_code: Annotated[
        Literal["none", "any"], Meta(description='Which code of theirs: "none", or "any" (arbitrary Python and SQL).')
    ] = "none"
    same_user: Annotated[
        bool,
        Meta(
            description="Whether you accept that foreign code runs under the account of this daemon, and can read what that account can read."
        ),
    ] = False
    max_foreign: Annotated[Positive, Meta(description="Foreign sessions and batches that may run at once here.")] = 2
    allow_files: Annotated[
        list[str], Meta(max_length=100, description="Folders whose files batches may name by path.")
    ] = []
    max_statements: Annotated[Positive, Meta(description="Statements that may wait in one session.")] = 100


class ReplicasSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The chunk store: what this island keeps of others' datasets."""

    quota: Annotated[
        str,
        Meta(
            pattern=r"^[0-9]+(KiB|MiB|GiB|TiB)?\Z",
            description="The most that the chunk store may hold, as 500MiB or 20GiB.",
        ),
    ] = "20GiB"
    reserve: Annotated[
        str,
        Meta(
            pattern=r"^[0-9]+(KiB|MiB|GiB|TiB)?\Z",
            description="Free space on the disk below which the chunk store takes nothing more.",
        ),
    ] = "1GiB"


class StreamsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sources and subscriptions."""

    poll: Annotated[float, Meta(ge=0.05, le=3600, description="Seconds between two looks at a watched folder.")] = 1.0
    window: Annotated[
        str,
        Meta(
            pattern=r"^[0-9]+(KiB|MiB|GiB|TiB)?\Z",
            description="Rows under way to one subscriber that are not yet acknowledged, in bytes.",
        ),
    ] = "8MiB"


class LogSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the daemon logs to stderr."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="The least severe level that is logged.")
    ] = "info"
    format: Annotated[Literal["text", "json"], Meta(description="Lines of key=value, or of JSON.")] = "text"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of `island.toml`."""

    island: IslandSection
    listen: ListenSection = ListenSection()
    livy: LivySection = LivySection()
    jobs: JobsSection = JobsSection()
    replicas: ReplicasSection = ReplicasSection()
    streams: StreamsSection = StreamsSection()
    log: LogSection = LogSection()


SECTIONS: dict[str, type[msgspec.Struct]] = {
    "island": IslandSection,
    "listen": ListenSection,
    "livy": LivySection,
    "jobs": JobsSection,
    "replicas": ReplicasSection,
    "streams": StreamsSection,
    "log": LogSection,
}


def load(path: Path) -> Config:
    """Read and check a configuration file.

    Raises `ConfigError` that names the file, the key, what is wrong with it, and for an
    unknown key the nearest known one.
    """
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no island at {path.parent}",
            hint="Make one with `island init HOME --name NAME`, or name its home with --home or ISLAND_HOME.",
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}", hint="Correct the file; `island init` shows a complete one.") from error
    return parse(raw, str(path))


def parse(raw: dict[str, Any], where: str) -> Config:
    """Check a configuration that was read from `where`; raises `ConfigError` as `load` does."""
    _check_known(raw, SECTIONS, where, "")
    for section, kind in SECTIONS.items():
        if section in raw:
            if not isinstance(raw[section], dict):
                raise ConfigError(
                    f"{where}: '{section}' must be a table", hint=f"Write [{section}] on a line of its own."
                )
            _check_known(raw[section], {f.name: f for f in msgspec.structs.fields(kind)}, where, section)
    if "name" not in raw.get("island", {}):
        raise ConfigError(f"{where}: [island] has no name", hint='Add name = "NAME" under [island].')
    try:
        config = msgspec.convert(raw, Config, strict=True)
    except msgspec.ValidationError as error:
        text, _, key = str(error).partition(" - at `$.")
        raise ConfigError(
            f"{where}: {key.rstrip('`') or 'the file'}: {text[:1].lower() + text[1:]}",
            hint="docs/configuration.md lists every key with its type.",
        ) from error
    _check_addresses(config, where)
    return config


def _check_known(found: dict[str, Any], known: dict[str, Any], where: str, section: str) -> None:
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            dotted = f"{section}.{key}" if section else key
            raise ConfigError(
                f"{where}: unknown key '{dotted}'", hint=f"The nearest known key is '{near[0]}'." if near else ""
            )


def _check_addresses(config: Config, where: str) -> None:
    host, _ = split_address(config.listen.user, f"{where}: listen.user")
    if not is_loopback(host):
        raise ConfigError(
            f"{where}: listen.user = '{config.listen.user}' is not a loopback address",
            hint="This version serves people on loopback only: use 127.0.0.1 and reach it through SSH.",
        )
    if config.listen.peer:
        split_address(config.listen.peer, f"{where}: listen.peer")
    for address in config.listen.advertise:
        split_address(address, f"{where}: listen.advertise")
    for host in config.listen.allowed_hosts:
        split_host(host, f"{where}: listen.allowed_hosts")


def split_address(text: str, what: str = "address") -> tuple[str, int]:
    """`HOST:PORT` or `[IPV6]:PORT` as a pair; raises `ConfigError` that names `what`."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{what} = '{text[:200]}' is not HOST:PORT", hint="Write it as 127.0.0.1:8990 or [::1]:8990.")
    return host, int(port)


def split_host(text: str, what: str = "host") -> tuple[str, int | None]:
    """`HOST` or `HOST:PORT`, as in the Host header of HTTP, as host and port (None if there is none).

    The host is in one spelling: lower case, no final dot, IPv6 compressed and without its brackets.
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
            hint="Write it as island.example.org or [2001:db8::1]:8443; no scheme, path or wildcard, names beyond ASCII as xn--....",
        ) from error
    return host, port


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def size_in_bytes(text: str) -> int:
    """`20GiB`, `500MiB`, `4096` as bytes; the form is checked by the type of the key."""
    for unit, factor in (("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30), ("TiB", 2**40)):
        if text.endswith(unit):
            return int(text.removesuffix(unit)) * factor
    return int(text)


def describe() -> list[tuple[str, str, str, Any, str]]:
    """Every key as (section, key, type, default, meaning), in the order of the file."""
    rows = []
    for section, kind in SECTIONS.items():
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
    if base is Literal:
        return " or ".join(json.dumps(value) for value in kind.__args__)
    inner = kind.__origin__ if hasattr(kind, "__metadata__") else kind
    if inner is not kind:
        return _type_name(inner)
    return {str: "string", int: "integer", float: "number", bool: "true or false"}.get(kind, str(kind))


def render(values: dict[str, dict[str, Any]]) -> str:
    """A complete, commented `island.toml` with `values` (section → key → value) over the defaults."""
    lines = [
        "# The configuration of one island. Every key is here with its default, and strict:",
        "# an unknown key is an error. Changes take effect at the next start of `island run`.",
    ]
    current = ""
    for section, key, _, default, text in describe():
        if section != current:
            current = section
            lines += ["", f"# {(SECTIONS[section].__doc__ or '').strip()}", f"[{section}]"]
        lines.append(f"# {text}")
        lines.append(f"{key} = {_toml(values.get(section, {}).get(key, default))}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    # JSON strings, numbers, booleans and lists of strings are TOML as they are.
    return json.dumps(value, ensure_ascii=False)


def reference() -> str:
    """The configuration reference, `docs/configuration.md`, in Markdown."""
    lines = [
        "# Configuration reference",
        "",
        "`HOME/island.toml`, made complete and commented by `island init`. It is read once, at the start of",
        "`island run`. An unknown key or a wrong type is an error that names the file, the key and the nearest known",
        "key. This page is made from the types in `island/config.py`, and a test compares the two.",
    ]
    current = ""
    for section, key, kind, default, text in describe():
        if section != current:
            current = section
            lines += ["", f"## [{section}]", "", (SECTIONS[section].__doc__ or "").strip(), ""]
            lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        shown = "(required)" if default is None else f"`{_toml(default)}`"
        lines.append(f"| `{key}` | {kind} | {shown} | {text} |")
    return "\n".join(lines) + "\n"
