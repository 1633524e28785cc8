"""`island doctor` beside a running daemon: what it reports itself, and what linked islands see."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from island import config
from island import daemon as daemon_module
from island.cli import base, main
from island.daemon import Daemon
from island.doctor import service
from island.doctor.core import Finding, failed
from island.errors import Full
from island.home import Home
from island.kernel.ports import SystemClock, SystemRng
from island.net.peer_checks import PeerChecks
from tests.islands.sessions import Node
from tests.standins.faults import full_disk
from tests.standins.member import home

UNREACHABLE = "127.0.0.1:9"
"""An address of this machine at which nothing listens."""


class Late(SystemClock):
    """A clock that is ten minutes late."""

    def wall(self) -> float:
        return super().wall() - 600


async def examined(place: Home) -> list[Finding]:
    def run() -> list[Finding]:
        return list(service.examine(place, SystemClock(), dict(os.environ), place.endpoint))

    return await asyncio.to_thread(run)


def about(found: Sequence[Finding], check: str) -> list[Finding]:
    return [each for each in found if each.check == check]


def made(folder: Path, **changes: dict[str, Any]) -> tuple[Home, config.Config]:
    """A home folder with its island.toml, and the lock that the daemon holds."""
    place, settings = home(folder, "here", changes)
    place.toml.touch(0o600)
    place.toml.write_text(config.render({"island": {"name": "here"}, **changes}))
    return place, settings


@pytest.fixture
def private() -> Iterator[None]:
    """Create files as `island run` does."""
    before = os.umask(0o077)
    yield
    os.umask(before)


async def test_a_running_daemon(
    tmp_path: Path, private: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "TRY_SECONDS", 3600.0)  # else the daemon may repair the database at any moment
    listen = {"user": "127.0.0.1:0", "peer": "127.0.0.1:0", "advertise": [UNREACHABLE]}
    place, settings = made(tmp_path / "here", listen=listen)
    with place.locked():
        daemon = Daemon(place, settings, SystemClock(), SystemRng())
        async with daemon.tasks() as tasks:
            found = await examined(place)  # the daemon does not listen yet
            (only,) = about(found, "daemon")
            assert only.severity == "problem" and "runs, but cannot be asked" in only.found
            assert "may still be starting" in only.advice
            await daemon.start(tasks)
            await healthy(daemon)
            await with_a_token_that_is_elsewhere(daemon, tmp_path / "token", capsys)
            await with_a_token_that_was_replaced(daemon)
            await changed_since_its_start(daemon)
            await with_a_full_disk(daemon)
            await seen_by_a_peer(daemon, tmp_path)


async def healthy(daemon: Daemon) -> None:
    # The engine of this configuration is a Livy that does not run; island.toml has the embedded one.
    found = await examined(daemon.home)
    assert not failed(found), [each for each in found if each.severity == "problem"]
    (only,) = about(found, "daemon")
    assert only == Finding("daemon", "ok", f"the daemon (pid {os.getpid()}) is ready")
    assert [each.found.rpartition(" is ")[2] for each in about(found, "ports")] == ["served by this daemon"] * 2
    assert any(f"= 127.0.0.1:{daemon.peers.port} " in each.found for each in about(found, "ports"))
    (only,) = about(found, "open files")
    assert only.found.startswith("the daemon can open")


async def with_a_token_that_is_elsewhere(daemon: Daemon, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As with a credential of the service manager: the token in the home folder is not that of the daemon."""

    def run(*options: str) -> dict[str, dict[str, str]]:
        try:
            with pytest.raises(SystemExit):
                main.run(["--home", str(daemon.home.path), *options, "doctor", "--json"])
        finally:
            base.TARGET.home = base.TARGET.token_file = None
        return {each["check"]: each for each in json.loads(capsys.readouterr().out)}

    token = daemon.home.token.read_text()
    file.write_text(token)
    daemon.home.token.write_text("isl_a_which_no_daemon_knows")
    try:
        found = (await asyncio.to_thread(run))["daemon"]
        assert found["severity"] == "problem" and "cannot be asked" in found["found"]
        found = (await asyncio.to_thread(run, "--token-file", str(file)))["daemon"]
        assert found["found"] == f"the daemon (pid {os.getpid()}) is ready"
        found = (await asyncio.to_thread(run, "--token-file", str(file.with_name("none"))))["daemon"]
        assert "none cannot be read" in found["found"] and "--token-file" in found["advice"]
    finally:
        daemon.home.token.write_text(token)


async def with_a_token_that_was_replaced(daemon: Daemon) -> None:
    token, started = daemon.home.token.read_text(), daemon.home.running.stat().st_mtime
    daemon.home.token.write_text("isl_a_which_the_next_daemon_will_know")
    for seconds, advice in (
        (60, "token was changed after the daemon started: restart it"),
        (-60, "It may have been replaced"),
    ):
        os.utime(daemon.home.token, (started + seconds, started + seconds))
        (only,) = about(await examined(daemon.home), "daemon")
        assert "does not know the token" in only.found and only.advice.startswith(advice)
    daemon.home.token.write_text(token)


async def changed_since_its_start(daemon: Daemon) -> None:
    late = daemon.home.running.stat().st_mtime + 60
    os.utime(daemon.home.toml, (late, late))
    (only,) = [each for each in about(await examined(daemon.home), "daemon") if each.severity == "warning"]
    assert "island.toml was changed after" in only.found and "island config check" in only.advice
    early = late - 3600
    os.utime(daemon.home.toml, (early, early))


async def with_a_full_disk(daemon: Daemon) -> None:
    def full(_: Any) -> None:
        raise full_disk()

    with pytest.raises(Full):
        await daemon.gossip_db.write(full)
    found = await examined(daemon.home)
    assert failed(found)
    (only,) = about(found, "daemon")
    assert "gossip.db is full" in only.found and "Troubleshoot by symptom" in only.advice
    await daemon.gossip_db.try_disk()


async def seen_by_a_peer(daemon: Daemon, folder: Path) -> None:
    (only,) = about(await examined(daemon.home), "reachability")
    assert only.severity == "unchecked" and "no island is linked" in only.found and "island peer join" in only.advice
    peer = Node(folder / "virgo", "virgo")
    PeerChecks(peer.peers, Late())
    async with peer.running():
        await peer.trust.invite([peer.address])
        await daemon.peers.join(await peer.trust.invite([peer.address]))
        found = await examined(daemon.home)
    (only,) = about(found, "reachability")
    assert only.severity == "problem"
    refused = f"{UNREACHABLE} cannot be dialled: connection refused"
    assert only.found == f"{peer.id[:10]} cannot dial this island: {refused}"
    assert "firewall" in only.advice and "listen.advertise" in only.advice
    clocks = about(found, "clock")
    assert any(f"10 minutes ahead of {peer.id[:10]}" in each.found and each.severity == "problem" for each in clocks), (
        clocks
    )
