"""`/metrics` on the user port, and the durations of the requests to this port."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from island.kernel import telemetry
from island.net.api import base

DURATIONS = telemetry.histogram(
    "http_request_duration_seconds",
    "Time from the head of a request to the user port to the end of its answer, by route and class of status",
    ("method", "route", "status"),
    buckets=(0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0),
)

UNKNOWN = ("other", "unknown")
"""Method and route of a request that no route accepts; its own method and path could be anything."""
ABORTED = "aborted"
"""The status of a request whose client closed its connection."""


def routes(take: Callable[[], Awaitable[None]]) -> list[web.RouteDef]:
    """Return the route for the metrics; `take()` sets the gauges that are measured when they are read."""

    async def metrics(_: web.Request) -> web.Response:
        """Return the metrics in the Prometheus text format."""
        await take()
        return web.Response(body=telemetry.exposition(), headers={"Content-Type": telemetry.EXPOSITION_TYPE})

    return [web.get("/metrics", metrics)]


@web.middleware
async def durations(request: web.Request, handler: base.Handler) -> web.StreamResponse:
    """Record the duration of a request. It must be the outermost middleware."""
    loop = asyncio.get_running_loop()
    began, status = loop.time(), ABORTED
    try:
        response = await handler(request)
        status = f"{response.status // 100}xx"
        return response
    except web.HTTPException as answer:
        status = f"{answer.status // 100}xx"
        raise
    finally:
        resource = request.match_info.route.resource
        method, route = UNKNOWN if resource is None else (request.method, resource.canonical)
        DURATIONS.labels(method, route, status).observe(loop.time() - began)
