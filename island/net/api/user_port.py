"""The user port: Livy's REST API at the root, the operator API below `/api/v1`, and health checks."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable

from aiohttp import web

from island.config import split_address
from island.errors import ConfigError
from island.livy.http_connections import HttpConnections, HttpLimits
from island.net import gateway
from island.net.api import base, metrics
from island.net.condition import Condition
from island.net.same_origin import SameOrigin
from island.trust.users import Tokens


def build(
    tokens: Tokens,
    routes: Iterable[web.AbstractRouteDef],
    condition: Callable[[], Condition],
    allowed_hosts: Iterable[str] = (),
) -> web.Application:
    """Return the application of the user port; `condition()` decides the answer of `/readyz`.

    `allowed_hosts` are the hosts other than loopback ones under which browsers may access it.
    """

    async def healthz(_: web.Request) -> web.Response:
        """Liveness check: 200 if the process answers."""
        return base.reply({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        """Readiness check: 200 if the island serves (`ready`, `degraded`), else 503, with the state of the status."""
        now = condition()
        return base.reply({"status": now.state}, 200 if now.serves else 503)

    application = web.Application(
        middlewares=[metrics.durations, base.errors, gateway.livy_errors, base.refuse_foreign_pages, base.authenticate],
        client_max_size=base.BODY_LIMIT,
    )
    application[base.SAME_ORIGIN] = SameOrigin(allowed_hosts)
    application[base.TOKENS] = tokens
    application.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
    application.add_routes(routes)
    return application


class UserServer:
    """Serves the application on the user port until `stop`."""

    def __init__(self, application: web.Application, listen: str, limits: HttpLimits | None = None) -> None:
        self._connections = HttpConnections(limits or HttpLimits())
        application.middlewares.insert(0, self._connections.watch)
        self._runner = web.AppRunner(application, handle_signals=False, shutdown_timeout=2.0)
        self._host, self._port = split_address(listen, "listen.user")
        self._listening: asyncio.Server | None = None
        self.url = ""

    async def start(self) -> None:
        """Bind the port; raises `ConfigError` if it is in use or not an address of this machine."""
        await self._runner.setup()
        assert self._runner.server is not None
        accept = functools.partial(self._connections.accept, self._runner.server)
        try:
            self._listening = await asyncio.get_running_loop().create_server(
                accept, self._host, self._port, reuse_address=True
            )
        except OSError as error:
            raise ConfigError(
                f"listen.user = '{self._host}:{self._port}' cannot be bound: {error.strerror or error}",
                hint="Another program uses the port, or the address is not one of this machine: change [listen] in "
                "island.toml.",
            ) from error
        host, port = self._listening.sockets[0].getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def stop(self) -> None:
        """Close every connection within two seconds."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        await self._runner.cleanup()
