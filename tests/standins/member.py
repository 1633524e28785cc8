"""A complete daemon as the victim, and members that send anything: real TLS on loopback, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
import structlog

from island import config
from island.daemon import Daemon
from island.gossip import core as gossip_core
from island.gossip.core import Head
from island.gossip.logs import SIGNATURE
from island.gossip.messages import Delta, DeltaPage, SignedBatch
from island.home import Home
from island.kernel import codec
from island.kernel.ids import IslandId, key_bytes
from island.kernel.ports import SystemClock, SystemRng
from island.trust.keys import Identity
from island.trust.users import create_tokens
from tests.islands.sessions import Node


def home(folder: Path, name: str, changes: dict[str, Any]) -> tuple[Home, config.Config]:
    """A home folder as `island init` creates it, with free ports and without an engine."""
    folder.mkdir(mode=0o700, parents=True)
    Identity.generate(SystemRng()).save(folder / "key")
    create_tokens(folder, SystemRng())
    values: dict[str, Any] = {
        "island": {"name": name, "archipelago": "test"},
        "listen": {"user": "127.0.0.1:0", "peer": "127.0.0.1:0"},
        "livy": {"embedded": False},
    }
    for section, keys in changes.items():
        values[section] = {**values.get(section, {}), **keys} if isinstance(keys, dict) else keys
    return Home(folder), config.parse(values, "test")


@contextlib.asynccontextmanager
async def victim(folder: Path, changes: dict[str, Any] | None = None) -> AsyncIterator[Daemon]:
    """A running daemon that has founded a network."""
    async with running(*home(folder / "victim", "victim", changes or {})) as daemon:
        await daemon.trust.invite([address(daemon)])
        yield daemon


@contextlib.asynccontextmanager
async def running(place: Home, settings: config.Config) -> AsyncIterator[Daemon]:
    """A running daemon with this home folder."""
    daemon = Daemon(place, settings, SystemClock(), SystemRng())
    async with daemon.tasks() as tasks:
        await daemon.start(tasks)
        yield daemon


def address(daemon: Daemon) -> str:
    return f"127.0.0.1:{daemon.peers.port}"


class Member(Node):
    """An admitted island that writes its gossip log itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.head = Head()
        self.of: Daemon | None = None

    @property
    def to(self) -> IslandId:
        assert self.of is not None
        return self.of.trust.me

    async def ask(self, kind: str, body: bytes, timeout: float = 10.0) -> bytes:
        """Send a request to the victim."""
        return await self.peers.request(self.to, kind, body, timeout=timeout)

    def say(self, *changes: tuple[str, bytes | None]) -> None:
        """Sign changes to the log, and push them to the victim."""
        self.send(self.signed(*changes))

    def signed(self, *changes: tuple[str, bytes | None]) -> tuple[bytes, ...]:
        """The signed log batches of these changes, after the earlier ones."""
        batches = []
        for body in gossip_core.cut_batches(self.id, self.head, list(changes)):
            signed = codec.encode(SignedBatch(body=body, signature=self.trust.sign(SIGNATURE, body)))
            self.head = self.head.after(gossip_core.open_batch(signed))
            batches.append(signed)
        return tuple(batches)

    def send(self, batches: tuple[bytes, ...], origin: IslandId | None = None) -> None:
        """Push log batches to the victim as batches of `origin`."""
        for signed in batches:
            delta = Delta(origin=key_bytes(origin or self.id), chain=self.trust.chain or b"", batches=(signed,))
            assert self.peers.push(self.to, "gossip.batch", codec.encode(DeltaPage(deltas=(delta,))))

    async def told(self, *changes: tuple[str, bytes | None]) -> None:
        """Call `say`, and wait until the victim has the changes."""
        self.say(*changes)
        assert self.of is not None
        await until(lambda: self.of is not None and self.of.gossip.head(self.id).seq >= self.head.seq)


@contextlib.asynccontextmanager
async def member(
    daemon: Daemon,
    folder: Path,
    name: str = "mallory",
    register: Callable[[Any], None] = lambda _: None,
    listen: str = "127.0.0.1:0",
) -> AsyncIterator[Member]:
    """Run a member that is linked with the victim."""
    async with Member(folder / name, name, register=register, listen=listen).running() as node:
        assert isinstance(node, Member)
        await node.peers.join(await daemon.trust.invite([address(daemon)]))
        node.of = daemon
        await until(lambda: daemon.peers.link(node.id) is not None)
        yield node


async def until(look: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until a condition is true."""
    async with asyncio.timeout(seconds):
        while not look():
            await asyncio.sleep(0.01)


async def until_async(look: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    """Wait until an asynchronous condition is true."""
    async with asyncio.timeout(seconds):
        while not await look():
            await asyncio.sleep(0.02)


async def get(daemon: Daemon, path: str) -> Any:
    """The answer of the operator API or the gateway to the administrator. Fails if the status is not 200."""
    token = daemon.home.token.read_text("utf-8").strip()
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as client,
        client.get(f"{daemon.server.url}{path}") as answer,
    ):
        assert answer.status == 200, (path, answer.status, await answer.text())
        return await answer.json()


LISTINGS = (
    "/api/v1/peers", "/api/v1/servers", "/api/v1/datasets", "/api/v1/datasets/search", "/api/v1/sources",
    "/api/v1/channels", "/api/v1/jobs", "/api/v1/journal", "/sessions", "/batches",
)  # fmt: skip


async def well(daemon: Daemon) -> None:
    """Check that every listing of the API answers."""
    for path in LISTINGS:
        await get(daemon, path)


def packed(**fields: Any) -> bytes:
    """Fields encoded as msgpack without any checks."""
    return bytes(msgpack.packb(fields, use_bin_type=True))


class Logs:
    """The log lines of a context."""

    def __init__(self, lines: list[Any]) -> None:
        self.lines = lines

    def of(self, event: str) -> list[Any]:
        return [line for line in self.lines if line["event"] == event]

    def no_bugs(self) -> None:
        bugs = [line for line in self.lines if line.get("exc_info") or line["event"].endswith((".bug", "_bug"))]
        assert not bugs, bugs


@contextlib.contextmanager
def logged() -> Iterator[Logs]:
    """Collect log lines. Fails at the end if one of them reports a bug."""
    quiet = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    try:
        with structlog.testing.capture_logs() as lines:
            found = Logs(lines)
            yield found
    finally:
        structlog.configure(wrapper_class=quiet)
    found.no_bugs()


def resident() -> int:
    """Resident memory of this process in bytes."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * 4096


class Timer:
    """Seconds since it was created, for bounds that only code without a limit exceeds."""

    def __init__(self) -> None:
        self._from = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._from
