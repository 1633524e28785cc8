"""Creates the engines of the configuration."""

from __future__ import annotations

from pathlib import Path

from island.config import Config, EngineSection
from island.jobs import core
from island.jobs.engines.clients import EmbeddedClient, SiteClient
from island.jobs.engines.embedded_engine import EmbeddedEngine
from island.jobs.engines.engines import Engines
from island.jobs.engines.files import OwnFiles, SharedFiles
from island.jobs.engines.livy_engine import LivyEngine
from island.kernel.host_resolver import HostResolver
from island.kernel.ports import Rng
from island.kernel.work import Workers

EMBEDDED, LIVY = "embedded", "livy"


def site_engines(config: Config) -> list[EngineSection]:
    """The Livy servers of a configuration: that of [livy], if it has a URL, and those of [[engine]]."""
    own = config.livy
    if not own.url:
        return list(config.engine)
    first = EngineSection(
        name=LIVY, url=own.url, max_sessions=own.max_sessions, user=own.user, password_file=own.password_file
    )
    return [first, *config.engine]


def engine_urls(config: Config) -> list[str]:
    """The URLs of the engines that a configuration asks for; "" for the embedded one."""
    embedded = [""] if config.livy.embedded and not config.livy.url else []
    return [*embedded, *(settings.url for settings in site_engines(config))]


def engines(
    config: Config, home: Path, embedded: EmbeddedEngine, *, workers: Workers, resolver: HostResolver, rng: Rng
) -> Engines:
    """The engines of a configuration: the embedded one, unless it is not wanted or not installed, and Livy servers."""
    found: list[LivyEngine] = []
    own = OwnFiles(home / "jobs", workers)
    if embedded.wanted and embedded.installed:
        client = EmbeddedClient(embedded, resolver)
        found.append(
            LivyEngine(
                client,
                own,
                rng=rng,
                name=EMBEDDED,
                capacity=config.livy.max_sessions,
                kinds=core.EMBEDDED_LANGUAGES,
                down=lambda: embedded.problem,
            )
        )
    for settings in site_engines(config):
        files = SharedFiles(Path(settings.shared_folder), workers) if settings.shared_folder else own
        found.append(
            LivyEngine(
                SiteClient(home, settings, workers, resolver),
                files,
                rng=rng,
                name=settings.name,
                url=settings.url,
                capacity=settings.max_sessions,
                kinds=tuple(settings.kinds),
            )
        )
    return Engines(found)
