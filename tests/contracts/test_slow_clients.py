"""A daemon with 1,000 connections that never complete their requests: both ports keep serving."""

from __future__ import annotations

import contextlib
import resource
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from island.cli.demo.demo_island import ISLAND, wait_for
from island.client import Api
from island.config import split_address
from tests.servers.daemon import ServedIsland

pytestmark = pytest.mark.e2e

COUNT = 1000
FILES = 1024
"""The limit of open files that many systems give to a service."""


@pytest.fixture(scope="module", autouse=True)
def descriptors() -> Iterator[None]:
    """Raise the limit of file descriptors of the test for its ends of the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * COUNT + 500  # two sieges at once
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.fail(f"these tests need {wanted} open files and the hard limit is {hard}: raise it (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Limited(ServedIsland):
    """An island whose daemon may have at most `FILES` open files."""

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", f'ulimit -n {FILES} && exec "$@"', "sh", *ISLAND, "--home", str(self.home), "run"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        wait_for(f"island {self.name} to be ready", self._ready, 60)


@pytest.fixture(scope="module")
def islands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Limited]]:
    """Two islands that do not know each other yet."""
    made = [Limited(tmp_path_factory.mktemp("slow"), name) for name in ("kiso", "virgo")]
    try:
        for each in made:
            each.start()
        yield made
    finally:
        for each in made:
            each.stop()


@contextlib.contextmanager
def half_open(address: tuple[str, int], *beginnings: bytes) -> Iterator[None]:
    """Open `COUNT` connections that send only the beginning of a request."""
    with contextlib.ExitStack() as stack:
        for number in range(COUNT):
            connection = stack.enter_context(socket.create_connection(address, timeout=30))
            with contextlib.suppress(ConnectionError):  # it may be closed already, for a later one
                connection.sendall(beginnings[number % len(beginnings)])
        yield


def healthy(place: ServedIsland) -> bool:
    with urllib.request.urlopen(f"{place.url}/healthz", timeout=30) as answer:
        return bool(answer.status == 200)


def lines(place: ServedIsland) -> list[str]:
    return place.log.read_text("utf-8").splitlines()


@pytest.mark.parametrize(
    "beginning", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Half: "], ids=["silent", "half"]
)
def test_half_sent_requests_do_not_stop_the_user_port(islands: list[Limited], beginning: bytes) -> None:
    first, before = islands[0], len(lines(islands[0]))
    parts = urlsplit(first.url)
    with half_open((parts.hostname or "", parts.port or 0), beginning):
        for _ in range(20):
            assert healthy(first)
        assert len(Api(first.home_endpoint()).get("/api/v1/peers")) == 1
    said = lines(first)[before:]
    assert len(said) < 50, "\n".join(said[:60])


def test_silent_connections_at_both_ports_do_not_stop_the_peer_port(islands: list[Limited]) -> None:
    first, second = islands
    invitation = Api(first.home_endpoint()).post("/api/v1/peers/invitations", {})["invitation"]
    before = len(lines(first))
    parts = urlsplit(first.url)
    with (
        half_open(split_address(first.peer_listen), b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"),
        half_open((parts.hostname or "", parts.port or 0), b""),
    ):
        # Answered once there is a session with the island that invited: two handshakes.
        Api(second.home_endpoint()).post("/api/v1/peers/join", {"invitation": invitation})
        assert healthy(first)
    said = lines(first)[before:]
    assert len(said) < 50, "\n".join(said[:60])
    assert not any("accept" in line and "Too many open files" in line for line in said), "no descriptor was left"
