"""The client with servers that send correct and incorrect answers of Livy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from island.errors import BadInput, EngineFailed, NotFound, Unauthenticated
from island.livy.client import EngineUncertain, LivyClient
from island.livy.messages import SessionRequest

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def livy(handler: Handler) -> AsyncIterator[str]:
    """Run a server that passes every request to `handler`. Yields its URL."""
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_login_and_instance() -> None:
    seen = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.json_response({"version": "0.9.0-incubating"}, headers={"X-Island-Engine": "abc"})

    async with livy(answer) as url:
        for where, auth in (
            (url, None),
            (url, "t"),
            (url, ("u", "p")),
            (url.replace("//", "//any:t%C5%99@"), None),
        ):
            async with LivyClient(where, auth) as client:
                assert (await client.version()).version == "0.9.0-incubating"
                assert client.instance == "abc" and client.url == url
    assert seen == [None, "Bearer t", "Basic dTpw", "Basic YW55OnTFmQ=="]


async def test_a_closed_client_is_an_engine_that_does_not_answer() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"version": "0.9.0-incubating"})

    async with livy(answer) as url:
        client = LivyClient(url)
        await client.version()
        closing = asyncio.ensure_future(client.close())
        await asyncio.sleep(0)
        with pytest.raises(EngineFailed, match="closed"):  # also while it is being closed
            await client.version()
        await closing
        with pytest.raises(EngineFailed, match="closed"):
            await client.create_session(SessionRequest())


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (404, '{"msg": "Session \'9\' not found."}', NotFound, "Session '9' not found"),
        (404, '"Statement not found"', NotFound, "Statement not found"),
        (400, '"Unrecognized field"', BadInput, "Unrecognized field"),
        (401, "", Unauthenticated, "401"),
        (500, '"java.lang.NullPointerException"', EngineFailed, "500 to GET /sessions/9: java.lang.Null"),
        (200, "<html>", EngineFailed, "not Livy's SessionView"),
        (200, '{"id": "x"}', EngineFailed, "not Livy's SessionView"),
        (302, "", EngineFailed, "302"),
    ],
)
async def test_answers_become_errors(status: int, body: str, error: type[Exception], words: str) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, text=body)

    async with livy(answer) as url, LivyClient(url) as client:
        with pytest.raises(error, match=words):
            await client.session(9)


async def test_gets_are_retried_and_posts_are_not() -> None:
    calls: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        calls.append(request.method)
        if request.method == "GET" and len(calls) == 3:
            return web.json_response({"id": 1, "state": "idle"})
        return web.Response(status=503)

    async with livy(answer) as url, LivyClient(url) as client:
        assert (await client.session(1)).state == "idle"
        assert calls == ["GET"] * 3
        with pytest.raises(EngineFailed):
            await client.create_session(SessionRequest())
        assert calls == ["GET"] * 3 + ["POST"]


async def test_a_post_without_an_answer_is_uncertain() -> None:
    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with livy(answer) as url, LivyClient(url) as client:
        with pytest.raises(EngineUncertain):
            await client.create_session(SessionRequest())

    async def never(_request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with livy(never) as url, LivyClient(url, timeout_s=0.2) as client:
        with pytest.raises(EngineUncertain):
            await client.post_statement(1, "1")


async def test_a_refused_connection_is_not_uncertain() -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response()

    async with livy(answer) as url:
        pass
    async with LivyClient(url) as client:
        with pytest.raises(EngineFailed, match="cannot be reached") as caught:
            await client.create_session(SessionRequest())
        assert not isinstance(caught.value, EngineUncertain) and caught.value.code == "engine_unreachable"


async def test_an_endless_answer_is_cut() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65536)
        except ConnectionError:
            return response

    async with livy(endless) as url, LivyClient(url, max_answer=100_000) as client:
        with pytest.raises(EngineFailed, match="more than 100000 bytes"):
            await client.session(1)


async def test_waiting_for_a_session_that_dies_says_why() -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.json_response({"id": 1, "state": "dead", "log": ["stdout: ", "\nstderr: ", "no memory"]})

    async with livy(answer) as url, LivyClient(url) as client:
        with pytest.raises(EngineFailed, match="session 1 is dead: no memory"):
            await client.wait_session(1)


def test_an_invalid_url_is_refused() -> None:
    for bad in ("livy", "ftp://x", "http://"):
        with pytest.raises(BadInput):
            LivyClient(bad)
