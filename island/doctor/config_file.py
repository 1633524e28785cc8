"""Checks and shows `island.toml` without starting the daemon: problems with their lines, and the values in force."""

from __future__ import annotations

import importlib.util
import re
import ssl
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from island import config
from island.config import Config, EngineSection, split_address, without_password
from island.doctor.core import one_line
from island.errors import ConfigError, IslandError
from island.jobs.engines.files import shared_folder_problem
from island.private_files import secret_text
from island.regular_file import read_regular

_INVALID = "Correct the line; `island config reference` describes every key."
_MINIMUM = "256MiB"


@dataclass(frozen=True, slots=True)
class ConfigFinding:
    """Something in a configuration file that the daemon refuses (`problem`) or that has no effect (`warning`)."""

    line: int | None
    """Line of the file, from 1; None if the finding is not about one line."""
    severity: Literal["warning", "problem"]
    key: str
    """`SECTION.KEY`, or a section; empty for the whole file."""
    found: str
    advice: str


@dataclass(frozen=True, slots=True)
class ConfigValue:
    """A value that is in force, and where it comes from. It is no password: a valid configuration contains none."""

    section: str
    """The name of the section, for one of several `[[NAME]]` as `NAME[0]`."""
    key: str
    value: Any
    source: Literal["file", "default"]


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A configuration file that was read; `config` is None if it has problems."""

    path: Path
    findings: list[ConfigFinding]
    config: Config | None


def check(path: Path) -> ConfigFile:
    """Check a configuration file completely. Relative paths in it are relative to its folder. Raises nothing."""
    checked = _checked(path)
    # A quoted key may contain line feeds.
    findings = [replace(each, found=one_line(each.found), advice=one_line(each.advice)) for each in checked.findings]
    return replace(checked, findings=findings)


def _checked(path: Path) -> ConfigFile:
    try:
        text = _text(path)
    except ConfigError as error:
        return ConfigFile(path, [ConfigFinding(None, "problem", "", error.message, error.hint)], None)
    try:
        raw = config.decoded(text)
    except ValueError as error:
        found = f"the file is not valid TOML: {error}"
        return ConfigFile(path, [ConfigFinding(_line_in(found, text), "problem", "", found, _INVALID)], None)
    findings = [
        ConfigFinding(line_of(text, each.section, each.key), "problem", _dotted(each.section, each.key), *each[2:])
        for each in config.problems(raw)
    ]
    if findings:
        return ConfigFile(path, sorted(findings, key=_place), None)
    parsed = config.parse(raw, str(path))
    for severity, section, key, found, advice in (*_contradictions(parsed), *_missing_files(parsed, path.parent)):
        line = line_of(text, section, key)
        findings.append(ConfigFinding(line, severity, _dotted(section, key), found, advice))
    return ConfigFile(path, sorted(findings, key=_place), parsed)


def text_of(path: Path) -> str:
    """Return the text of a configuration file without passwords in URLs.

    Raises `ConfigError` if there is no such file, or if `livy.url` has a password in a form that cannot be replaced.
    """
    text = _text(path)
    shown = without_password(text)
    written, masked = _livy_urls(text), _livy_urls(shown)
    if written and not any("@" in each for each in written):
        return text  # an @ elsewhere, such as in a comment, is no password
    if len(written) != len(masked):
        masked = written  # the mask has damaged the text, so it hides nothing for sure
    for before, after in zip(written, masked, strict=True):
        if "@" in before and not re.fullmatch(r"(\w+://)?\*\*\*@[^@]*", after):
            raise ConfigError(
                f"{path} is not shown, because the URL of a Livy contains a user name or password",
                hint="Move them to the keys `user` and `password_file` of the same section.",
            )
    return shown


def _livy_urls(text: str) -> list[str]:
    """Return the URLs of Livy servers in a TOML text; empty if the text is not valid."""
    try:
        raw = config.decoded(text)
    except ValueError:
        return []
    engines = raw.get("engine")
    tables = [raw.get("livy"), *(engines if isinstance(engines, list) else [engines])]
    return [str(table.get("url", "")) for table in tables if isinstance(table, dict)]


def values(path: Path) -> list[ConfigValue]:
    """Return every key with the value in force; raises `ConfigError` if the file is missing or has problems."""
    _, raw = _read(path)
    parsed = msgspec.to_builtins(config.parse(raw, str(path)))
    rows = [
        ConfigValue(section, key, parsed[section][key], "file" if key in raw.get(section, {}) else "default")
        for section, key, *_ in config.describe()
    ]
    for section, kind in config.LISTS.items():
        for number, table in enumerate(parsed[section]):
            written = raw[section][number]
            rows += [
                ConfigValue(f"{section}[{number}]", key, table[key], "file" if key in written else "default")
                for key in kind.__struct_fields__
            ]
    return rows


def _place(finding: ConfigFinding) -> int:
    return finding.line or 0


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    text = _text(path)
    try:
        return text, config.decoded(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}", hint=_INVALID) from error


def _text(path: Path) -> str:
    try:
        return read_regular(path, config.FILE_LIMIT).decode("utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no configuration file {path}",
            hint="Create a home folder with `island init HOME --name NAME`, or name the file or the home folder.",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}", hint="Check its owner and mode, and that it is text in UTF-8."
        ) from error


def _line_in(message: str, text: str) -> int:
    """Return the line that a message of tomllib names, which may be the end of the text."""
    found = re.search(r"\(at line (\d+), column", message)
    return int(found[1]) if found else len(text.splitlines())


def _dotted(section: str, key: str) -> str:
    return f"{section}.{key}" if key else section


_Note = tuple[Literal["warning", "problem"], str, str, str, str]
"""Severity, section, key, what was found, what to do."""


def _contradictions(parsed: Config) -> Iterator[_Note]:
    """Yield what is valid key by key, but cannot work or has no effect together with other keys."""
    listen, livy, jobs = parsed.listen, parsed.livy, parsed.jobs
    if listen.peer and _same_port(listen.user, listen.peer):
        found = f"listen.peer = '{listen.peer}' is the port of listen.user = '{listen.user}'"
        yield "problem", "listen", "peer", found, "Use different ports, for example 8990 and 8991."
    if listen.advertise and not listen.peer:
        found = "listen.advertise has no effect, because listen.peer is empty: this island only dials out"
        yield "warning", "listen", "advertise", found, "Set listen.peer, or remove listen.advertise."
    if livy.user and not livy.password_file:
        found = "livy.user is set without livy.password_file: the password is empty"
        yield "warning", "livy", "user", found, "Write the password to a file with mode 0600 and name it."
    if livy.password_file and not livy.user:
        found = "livy.password_file has no effect, because livy.user is empty"
        yield "warning", "livy", "password_file", found, "Set livy.user."
    for number, engine in enumerate(parsed.engine):
        yield from _engine_contradictions(f"engine[{number}]", engine)
    if jobs.accept_from and (jobs.foreign_code == "none" or not jobs.same_user):
        key = 'foreign_code = "none"' if jobs.foreign_code == "none" else "same_user = false"
        found = f"jobs of other islands are refused in spite of jobs.accept_from, because of {key}"
        yield "warning", "jobs", "accept_from", found, "All three keys must allow it; see the administrator's guide."
    if jobs.accounts and not (livy.url or parsed.engine):
        found = "jobs.accounts has no effect without a Livy server: the embedded engine runs under this account"
        yield "warning", "jobs", "accounts", found, "Set livy.url or add an [[engine]], or remove jobs.accounts."
    if config.size_in_bytes(parsed.decoding.memory) < config.size_in_bytes(_MINIMUM):
        found = f"decoding.memory = '{parsed.decoding.memory}' is raised to {_MINIMUM}"
        yield "warning", "decoding", "memory", found, f"Set at least {_MINIMUM}."


def _engine_contradictions(section: str, engine: EngineSection) -> Iterator[_Note]:
    if engine.kerberos and engine.user:
        found = f"{section}.user has no effect, because {section}.kerberos is true"
        yield "warning", section, "user", found, "Remove one of them."
    elif engine.user and not engine.password_file:
        found = f"{section}.user is set without {section}.password_file: the password is empty"
        yield "warning", section, "user", found, "Write the password to a file with mode 0600 and name it."
    if engine.password_file and not engine.user:
        found = f"{section}.password_file has no effect, because {section}.user is empty"
        yield "warning", section, "password_file", found, f"Set {section}.user."
    if engine.ca_file and not engine.url.startswith("https:"):
        found = f"{section}.ca_file has no effect, because {section}.url does not begin with https"
        yield "warning", section, "ca_file", found, "Use https, or remove the key."
    if engine.user and engine.url.startswith("http:") and not config.is_loopback(urlsplit(engine.url).hostname or ""):
        found = f"the password of {section}.user is sent without encryption to {engine.url}"
        yield "warning", section, "url", found, "Use https."
    if engine.kerberos and importlib.util.find_spec("spnego") is None:
        found = f"{section}.kerberos is true, but pyspnego is not installed"
        yield (
            "problem",
            section,
            "kerberos",
            found,
            "Install the extra `kerberos` (in a clone: pip install '.[kerberos]').",
        )


def _same_port(user: str, peer: str) -> bool:
    (user_host, user_port), (peer_host, peer_port) = split_address(user), split_address(peer)
    return user_port == peer_port != 0 and (user_host == peer_host or peer_host in {"0.0.0.0", "::"})


def _missing_files(parsed: Config, folder: Path) -> Iterator[_Note]:
    yield from _password("livy", parsed.livy.password_file, folder)
    for number, engine in enumerate(parsed.engine):
        section = f"engine[{number}]"
        yield from _password(section, engine.password_file, folder)
        if engine.ca_file and (problem := _unusable_certificates(folder / engine.ca_file)):
            yield (
                "problem",
                section,
                "ca_file",
                f"{section}.ca_file: {problem}",
                "Name a file with certificates in PEM.",
            )
        if engine.shared_folder and (problem := shared_folder_problem(Path(engine.shared_folder))):
            found = f"{section}.shared_folder: {problem}"
            advice = "See 'A Livy of another account' in docs/administrator.md of the repository."
            yield "problem", section, "shared_folder", found, advice
    for allowed in parsed.jobs.allow_files:
        if not Path(allowed).is_dir():
            found = f"jobs.allow_files: {allowed} is not a folder"
            yield "warning", "jobs", "allow_files", found, "Correct the path, or create the folder."


def _password(section: str, name: str, folder: Path) -> Iterator[_Note]:
    if not name:
        return
    try:
        password_in(folder / name, section)
    except IslandError as error:
        yield "problem", section, "password_file", error.message, error.hint


def password_in(path: Path, section: str = "livy") -> str:
    """Return the password in the file of `password_file`; raises `ConfigError` if it cannot be used."""
    try:
        return secret_text(path, "a password")
    except OSError as error:
        raise ConfigError(
            f"the file of {section}.password_file, {path}, cannot be read: {error.strerror}",
            hint="Create the file with mode 0600, owned by the account of the daemon.",
        ) from error


def _unusable_certificates(path: Path) -> str:
    try:
        ssl.create_default_context(cafile=str(path))
    except OSError as error:  # also `ssl.SSLError`
        return f"{path} cannot be used: {error.strerror or error}"
    return ""


def line_of(text: str, section: str, key: str) -> int | None:
    """Return the line of `key` in `section` (of the section, if the key is empty or not found) in a TOML text.

    The first table `[[NAME]]` is the section `NAME[0]`.
    """
    table, section_line, quotes = "", None, ""
    tables = Counter[str]()
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if quotes:  # inside a string of several lines
            quotes = "" if line.count(quotes) % 2 else quotes
            continue
        if header := re.match(r"\[{1,2}\s*([^\[\]\s]+)\s*\]", line):
            table = header[1].strip("\"'")
            if line.startswith("[["):
                tables[table] += 1
                table = f"{table}[{tables[table] - 1}]"
            section_line = number if table == section else section_line
            if table == f"{section}.{key}":  # the key is a table
                return number
        elif assigned := re.match(r"([^=#\[]+)=", line):
            words = [word.strip().strip("\"'") for word in assigned[1].split(".")]
            place = [*([table] if table else []), *words]
            if place == [section, key]:
                return number
            if section_line is None and place[0] == section:  # dotted keys or an inline table
                section_line = number
        quotes = next((each for each in ('"""', "'''") if line.count(each) % 2), "")
    return section_line
