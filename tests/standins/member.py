"""A whole island as the victim, and members that do whatever they like: real TLS on loopback, one process."""

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
from island.daemon import Daemon, Stopped
from island.gossip import core as gossip_core
from island.gossip.core import Head
from island.gossip.logs import SIGNATURE
from island.gossip.messages import Delta, DeltaPage, SignedBatch
from island.home import Home
from island.kernel import codec
from island.kernel.ids import IslandId, key_bytes
from island.kernel.loops import Tasks
from island.kernel.ports import SystemClock, SystemRng
from island.trust.keys import Identity
from island.trust.users import create_tokens
from tests.islands.sessions import Node


def home(folder: Path, name: str, changes: dict[str, dict[str, Any]]) -> tuple[Home, config.Config]:
    """A home as `island init` makes it, on free ports, with a Livy that nobody answers at."""
    folder.mkdir(mode=0o700, parents=True)
    Identity.generate(SystemRng()).save(folder / "key")
    create_tokens(folder, SystemRng())
    values: dict[str, Any] = {
        "island": {"name": name, "archipelago": "test"},
        "listen": {"user": "127.0.0.1:0", "peer": "127.0.0.1:0"},
        "livy": {"url": "http://127.0.0.1:9"},
    }
    for section, keys in changes.items():
        values[section] = {**values.get(section, {}), **keys}
    return Home(folder), config.parse(values, "test")


@contextlib.asynccontextmanager
async def victim(folder: Path, changes: dict[str, dict[str, Any]] | None = None) -> AsyncIterator[Daemon]:
    """A running daemon that has founded a network."""
    place, settings = home(folder / "victim", "victim", changes or {})
    daemon = Daemon(place, settings, SystemClock(), SystemRng())
    try:
        async with asyncio.TaskGroup() as group:
            try:
                await daemon.start(Tasks(group, daemon.faults))
                await daemon.trust.invite([address(daemon)])
                yield daemon
            finally:
                await daemon.stop()
            raise Stopped
    except* Stopped:
        pass
    finally:
        daemon.close()


def address(daemon: Daemon) -> str:
    return f"127.0.0.1:{daemon.peers.port}"


class Member(Node):
    """An admitted island with a log of its own making."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.head = Head()
        self.of: Daemon | None = None

    @property
    def to(self) -> IslandId:
        assert self.of is not None
        return self.of.trust.me

    async def ask(self, kind: str, body: bytes, timeout: float = 10.0) -> bytes:
        """A request to the victim."""
        return await self.peers.request(self.to, kind, body, timeout=timeout)

    def say(self, *changes: tuple[str, bytes | None]) -> None:
        """Sign these changes of the log, and push them to the victim."""
        self.send(self.signed(*changes))

    def signed(self, *changes: tuple[str, bytes | None]) -> tuple[bytes, ...]:
        """The batches of these changes, after those before."""
        batches = []
        for body in gossip_core.cut_batches(self.id, self.head, list(changes)):
            signed = codec.encode(SignedBatch(body=body, signature=self.trust.sign(SIGNATURE, body)))
            self.head = self.head.after(gossip_core.open_batch(signed))
            batches.append(signed)
        return tuple(batches)

    def send(self, batches: tuple[bytes, ...], origin: IslandId | None = None) -> None:
        """Push batches, as those of `origin`."""
        for signed in batches:
            delta = Delta(origin=key_bytes(origin or self.id), chain=self.trust.chain or b"", batches=(signed,))
            assert self.peers.push(self.to, "gossip.batch", codec.encode(DeltaPage(deltas=(delta,))))

    async def told(self, *changes: tuple[str, bytes | None]) -> None:
        """`say`, and wait until the victim has it."""
        self.say(*changes)
        assert self.of is not None
        await until(lambda: self.of is not None and self.of.gossip.head(self.id).seq >= self.head.seq)


@contextlib.asynccontextmanager
async def member(
    daemon: Daemon, folder: Path, name: str = "mallory", register: Callable[[Any], None] = lambda _: None
) -> AsyncIterator[Member]:
    """A member that is linked with the victim."""
    async with Member(folder / name, name, register=register).running() as node:
        assert isinstance(node, Member)
        await node.peers.join(await daemon.trust.invite([address(daemon)]))
        node.of = daemon
        await until(lambda: daemon.peers.link(node.id) is not None)
        yield node


async def until(look: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(seconds):
        while not look():
            await asyncio.sleep(0.01)


async def until_async(look: Callable[[], Awaitable[bool]], seconds: float = 15.0) -> None:
    """Wait until something that has to be asked for is so."""
    async with asyncio.timeout(seconds):
        while not await look():
            await asyncio.sleep(0.02)


async def get(daemon: Daemon, path: str) -> Any:
    """What the operator API or the gateway answers the administrator; fails the test unless it is 200."""
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
    """Every listing answers."""
    for path in LISTINGS:
        await get(daemon, path)


def packed(**fields: Any) -> bytes:
    """Msgpack as an attacker writes it, past every check of ours."""
    return bytes(msgpack.packb(fields, use_bin_type=True))


class Logs:
    """The log lines of a block."""

    def __init__(self, lines: list[Any]) -> None:
        self.lines = lines

    def of(self, event: str) -> list[Any]:
        return [line for line in self.lines if line["event"] == event]

    def no_bugs(self) -> None:
        bugs = [line for line in self.lines if line.get("exc_info") or line["event"].endswith((".bug", "_bug"))]
        assert not bugs, bugs


@contextlib.contextmanager
def logged() -> Iterator[Logs]:
    """Collect log lines; at the end there must be no trace of a bug among them."""
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
    """Resident memory of this process, bytes."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * 4096


class Timer:
    """Seconds since it was made: for bounds so wide that only something unbounded breaks them."""

    def __init__(self) -> None:
        self._from = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._from
