"""The HTTP clients of engines: of the embedded one, whose address changes, and of a Livy with its credentials."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from island.config import EngineSection
from island.errors import ConfigError, EngineFailed
from island.jobs.engines.embedded_engine import EmbeddedEngine
from island.kernel.host_resolver import HostResolver
from island.kernel.work import Workers
from island.livy.authorization import own_livy_login
from island.livy.client import LivyClient
from island.private_files import secret_text


class EngineClient(Protocol):
    """Gives the client of an engine."""

    def __call__(self) -> LivyClient:
        """The current client. Raises `EngineFailed` while there is none."""

    async def close(self) -> None:
        """Close its connections."""


class EmbeddedClient:
    """The client of the embedded engine. It is another one when the engine was restarted on another port."""

    def __init__(self, engine: EmbeddedEngine, resolver: HostResolver) -> None:
        self._engine, self._resolver = engine, resolver
        self._client: LivyClient | None = None

    def __call__(self) -> LivyClient:
        """The client of the engine that runs now. Raises `EngineFailed` with the reason if none runs."""
        engine = self._engine
        if not engine.running:
            raise EngineFailed(engine.problem, code="" if engine.installed else "no_engine")
        if self._client is None or self._client.url != engine.url:
            # The connections of the old client are closed with its HTTP session.
            self._client = LivyClient(engine.url, engine.token, resolver=self._resolver)
        return self._client

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()


class SiteClient:
    """The client of a Livy server. Its password is read when it is used for the first time."""

    def __init__(self, home: Path, settings: EngineSection, workers: Workers, resolver: HostResolver) -> None:
        self._home, self._settings, self._workers, self._resolver = home, settings, workers, resolver
        self._client: LivyClient | None = None

    def __call__(self) -> LivyClient:
        """The client. Raises `EngineFailed` for a password or certificate file that cannot be used."""
        if self._client is None:
            try:
                self._client = self._new()
            except ConfigError as error:
                raise EngineFailed(error.message, hint=error.hint) from error
            except OSError as error:
                raise EngineFailed(f"its password file cannot be read: {error.strerror}: {error.filename}") from error
        return self._client

    def _new(self) -> LivyClient:
        settings = self._settings
        auth: tuple[str, str] | Callable[[], Awaitable[str]] | None = None
        if settings.kerberos:
            auth = negotiation(urlsplit(settings.url).hostname or "", self._workers)
        else:
            file = settings.password_file
            auth = own_livy_login(settings.user, secret_text(self._home / file, "a password") if file else "")
        return LivyClient(settings.url, auth, tls=tls(self._home, settings), resolver=self._resolver)

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()


def negotiation(host: str, workers: Workers) -> Callable[[], Awaitable[str]]:
    """Make the header `Authorization` for each request to `host` by SPNEGO, as `negotiate` does."""

    async def header() -> str:
        return await workers.blocking(negotiate, host)  # it may ask the Kerberos server

    return header


def negotiate(host: str) -> str:
    """The header `Authorization` for one request to `host`, by SPNEGO with the Kerberos ticket of this account.

    Raises `EngineFailed` without pyspnego, and without a valid ticket.
    """
    try:
        import spnego
        from spnego.exceptions import SpnegoError
    except ImportError as error:
        raise EngineFailed(
            "an engine of island.toml has kerberos = true, but pyspnego is not installed",
            hint="Install the extra `kerberos` (in a clone: pip install '.[kerberos]').",
        ) from error
    try:
        context = spnego.client(hostname=host, service="HTTP", protocol="kerberos")
        return "Negotiate " + base64.b64encode(context.step() or b"").decode("ascii")
    except (SpnegoError, ImportError, OSError) as error:
        raise EngineFailed(
            f"there is no valid Kerberos ticket for HTTP/{host}: {error}",
            hint="Get one for the account of the daemon (kinit -kt KEYTAB PRINCIPAL), and renew it in time.",
        ) from error


def tls(home: Path, settings: EngineSection) -> ssl.SSLContext | None:
    """What an https server is checked against; None for the authorities of the system. Raises `ConfigError`."""
    if not settings.ca_file:
        return None
    try:
        return ssl.create_default_context(cafile=str(home / settings.ca_file))
    except OSError as error:  # also `ssl.SSLError`
        raise ConfigError(
            f"the file of ca_file of engine '{settings.name}', {home / settings.ca_file}, cannot be used: {error}",
            hint="Name a file with certificates in PEM.",
        ) from error
