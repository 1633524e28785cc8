"""Collects facts about an island and yields the findings, one after the other."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping

from island.config import Config, EngineSection
from island.doctor import config_file, core, daemon_facts, engine_facts, home_facts, machine_facts, store
from island.doctor.core import Finding
from island.doctor.daemon_facts import PeerRows, Running
from island.doctor.facts import ClockFacts, PortFacts, SandboxFacts
from island.errors import IslandError
from island.home import Endpoint, Home
from island.jobs.engines import configured
from island.kernel.db import Kind
from island.kernel.ports import Clock

DATABASES: tuple[Kind, ...] = ("state", "gossip", "chunks")
DATABASE_SECONDS = 20.0
"""Time for the check of one database."""


def examine(
    place: Home, clock: Clock, environ: Mapping[str, str], endpoint: Callable[[], Endpoint]
) -> Iterator[Finding]:
    """Check an island, whether or not its daemon is running, and yield findings as they are made. Changes nothing.

    `endpoint` returns where and with which token a running daemon is asked; it may raise `IslandError`.
    """
    for each in _findings(place, clock, environ, endpoint):
        # Texts of Livy, peers and files are in them, which could contain lines that look like those of other checks.
        yield dataclasses.replace(each, found=core.one_line(each.found), advice=core.one_line(each.advice))


def _findings(
    place: Home, clock: Clock, environ: Mapping[str, str], endpoint: Callable[[], Endpoint]
) -> Iterator[Finding]:
    folder = home_facts.home(place)
    yield from core.home(folder)
    if not folder.is_island:
        return
    checked = config_file.check(place.toml)
    yield from _configuration(checked)
    settings = checked.config
    yield from _guarded("secrets", lambda: core.secrets(home_facts.secrets(place)))
    yield from _guarded("modes", lambda: core.entries(home_facts.entries(place)))
    for kind in DATABASES:
        yield from _guarded("database", functools.partial(_database, place, kind, clock))
    yield from _guarded("disk", lambda: core.disk(machine_facts.disk(place, settings)))
    running = daemon_facts.running(place)
    yield from _guarded("open files", functools.partial(_open_files, running))
    daemon = daemon_facts.ask(place, running, endpoint)
    yield from core.daemon(daemon)
    if settings is None:
        found = "engine, ports, reachability, clock and sandbox were not checked, because island.toml has problems"
        yield Finding("configuration", "unchecked", found, "Correct them, and run this command again.")
        return
    rows = daemon_facts.check_peers(endpoint) if running.locked and not daemon.error else None
    yield from _surroundings(place, folder.owner, settings, running, rows, clock, environ)


def _surroundings(
    place: Home,
    owner: str,
    settings: Config,
    running: Running,
    rows: PeerRows,
    clock: Clock,
    environ: Mapping[str, str],
) -> Iterator[Finding]:
    yield from _guarded("ports", lambda: core.ports(_ports(settings, running)))
    clocks: list[tuple[str, float, float]] = []
    livys = configured.site_engines(settings)
    if settings.livy.embedded and not livys:
        yield from _guarded("spark", lambda: core.engine(engine_facts.embedded(environ)))
    for each in livys:
        yield from _guarded("livy", functools.partial(_livy, place, each, clock, clocks))
        yield from _guarded("livy files", functools.partial(_engine_files, place, each))
    yield from _guarded("reachability", lambda: core.peers(daemon_facts.peers(settings, rows)))
    clocks += daemon_facts.other_clocks(rows)
    yield from _guarded("clock", lambda: core.clock(_clock(place, clock, clocks)))
    for number, url in enumerate(configured.engine_urls(settings)):
        yield from _guarded("sandbox", functools.partial(_sandbox, settings, owner, url, is_first=number == 0))


def _livy(
    place: Home, settings: EngineSection, clock: Clock, clocks: list[tuple[str, float, float]]
) -> Iterator[Finding]:
    """Check a Livy of the site, and add its clock to `clocks`."""
    facts, other = engine_facts.livy(place.path, settings, clock)
    clocks += [("Livy", *other)] if other else []
    return core.engine(facts)


def _guarded(check: str, collect: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield the findings of one check, or that it was not possible."""
    try:
        yield from collect()
    except (OSError, IslandError, ValueError) as error:
        found = f"this check was not possible: {str(error) or type(error).__name__}"
        yield Finding(check, "unchecked", found, "Run the command as the account that owns the home folder.")
    except Exception as error:  # noqa: BLE001 - a fault of one check must not hide the others
        found = f"this check was not possible: {type(error).__name__}: {error}"
        yield Finding(check, "unchecked", found, "This is a fault of `island doctor`: report it with this line.")


def _configuration(checked: config_file.ConfigFile) -> Iterator[Finding]:
    for each in checked.findings:
        place = f"{checked.path.name}, line {each.line}: " if each.line else ""
        yield Finding("configuration", each.severity, place + each.found, each.advice)
    if not checked.findings:
        yield Finding("configuration", "ok", f"{checked.path} is valid")


def _database(place: Home, kind: Kind, clock: Clock) -> Iterator[Finding]:
    return core.databases([store.database(place.path, kind, clock, seconds=DATABASE_SECONDS)])


def _engine_files(place: Home, settings: EngineSection) -> Iterator[Finding]:
    return core.engine_files(engine_facts.files(place.path, settings))


def _open_files(running: Running) -> Iterator[Finding]:
    if running.locked and running.pid is not None:
        return core.open_files(machine_facts.open_files(running.pid), "the daemon")
    return core.open_files(machine_facts.open_files(None), "a daemon that is started from here")


def _ports(settings: Config, running: Running) -> list[PortFacts]:
    """Check the ports of the configuration, or those that the running daemon has bound."""
    listen = settings.listen
    user, peer = listen.user, listen.peer
    if running.locked:
        user = running.url.partition("://")[2] if running.url else user
        peer = f"{peer.rpartition(':')[0]}:{running.peer_port}" if peer and running.peer_port else peer
    found = [machine_facts.port("listen.user", user, running.pid, running=running.locked)]
    if peer:
        found.append(machine_facts.port("listen.peer", peer, running.pid, running=running.locked))
    return found


def _clock(place: Home, clock: Clock, others: list[tuple[str, float, float]]) -> ClockFacts:
    age = clock.wall() - home_facts.newest_change(place)
    return ClockFacts(machine_facts.clock_synchronized(), age, others)


def _sandbox(settings: Config, owner: str, url: str, *, is_first: bool) -> Iterator[Finding]:
    """Say what confines the code of sessions at one engine; `url` is "" for the embedded one."""
    jobs = settings.jobs
    return core.sandbox(
        SandboxFacts(
            embedded=not url,
            foreign=bool(jobs.accept_from) and jobs.foreign_code != "none" and jobs.same_user,
            root=owner == "root" and is_first,
            account=owner,
            livy_accounts=engine_facts.livy_accounts(url) if url else None,
        )
    )
