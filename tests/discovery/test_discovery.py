"""Islands find each other over real multicast DNS on loopback, and a machine without multicast stops nothing."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from island.cli.demo.demo_island import ISLAND
from island.daemon import Daemon
from island.discovery.multicast import Responder
from tests.contracts import document
from tests.standins.member import get, home, logged, running, until

NEARBY = "/api/v1/peers/nearby"


def discovering(interface: str, **listen: str) -> dict[str, dict[str, Any]]:
    return {"discovery": {"enabled": True, "interfaces": [interface]}, "listen": listen}


def announced(daemon: Daemon, other: Daemon) -> bool:
    """Whether `daemon` hears `other`. Islands of other test runs may be heard on the same interface."""
    return any(
        each.network == other.trust.network and each.key_prefix == other.trust.me[:10]
        for each in daemon.discovery.nearby().islands
    )


async def command(daemon: Daemon, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command of the daemon's island."""
    process = await asyncio.create_subprocess_exec(
        *ISLAND, "--home", str(daemon.home.path), *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={key: value for key, value in os.environ.items() if not key.startswith("ISLAND_")},
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_islands_link_at_addresses_that_nobody_told_them(tmp_path: Path, loopback: str) -> None:
    """Two islands restart at other ports, so that both know only addresses of the other that are out of date."""
    on = discovering(loopback)
    kiso, nanten = home(tmp_path / "kiso", "kiso", on), home(tmp_path / "nanten", "nanten", on)
    stranger = home(tmp_path / "stranger", "stranger", discovering(loopback, peer=""))
    async with running(*home(tmp_path / "off", "off", {})) as off:
        assert (await get(off, NEARBY))["state"] == "off" and (await get(off, "/api/v1/island"))["discovery"] == "off"
        code, out, err = await command(off, "peer", "nearby")
        assert (code, out) == (1, "") and "[discovery]" in err
    async with running(*kiso) as one, running(*nanten) as two:
        await two.peers.join(await one.trust.invite(one.peers.local_addresses()))
        await until(lambda: two.membership.view(one.trust.me).addresses != [])
        await until(lambda: one.membership.view(two.trust.me).addresses != [])
        old = {one.peers.port, two.peers.port}
    async with running(*stranger) as away, running(*kiso) as one, running(*nanten) as two:
        assert not old & {one.peers.port, two.peers.port}
        await until(lambda: one.peers.link(two.trust.me) is not None)
        link = one.peers.link(two.trust.me) or two.peers.link(one.trust.me)
        assert link is not None
        new = {f"{loopback}:{one.peers.port}", f"{loopback}:{two.peers.port}"}
        assert {hint for each in (one, two) for hints in each.discovery.hints().values() for hint in hints} <= new
        # The addresses that gossip spreads are those of the islands' own records.
        await until(lambda: one.membership.addresses() == {two.trust.me: [f"{loopback}:{two.peers.port}"]})

        await until(lambda: announced(away, one) and announced(away, two))
        assert away.discovery.hints() == {}
        found = await get(away, NEARBY)
        document.check({"$ref": "#/components/schemas/Nearby"}, found, NEARBY)
        assert (found["state"], found["problem"], found["announced"]) == ("on", "", []) and "dials out" in found["note"]
        rows = [each for each in found["islands"] if each["network"] == one.trust.network]
        assert sorted(each["addresses"] for each in rows) == sorted([[address] for address in new])
        assert all(not each["mine"] and each["island"] == "" for each in rows)
        code, out, err = await command(away, "peer", "nearby")
        [line] = [each for each in out.splitlines() if each.startswith(str(one.trust.network)[:10])]
        assert code == 0 and all(address in line for address in new) and "island peer join" in err

        await until(lambda: announced(one, two))  # perhaps `two` heard `one` and dialled
        [row] = [each for each in (await get(one, NEARBY))["islands"] if each["network"] == one.trust.network]
        assert row["mine"] and row["island"] == "nanten" and row["key_prefix"] == two.trust.me[:10]
        code, out, _ = await command(two, "peer", "nearby", "--json")
        assert code == 0 and json.loads(out)["announced"] == [f"{loopback}:{two.peers.port}"]

        await one.discovery.stop()
        await until(lambda: not announced(away, one))


async def test_without_multicast_the_daemon_runs_and_says_so_once(tmp_path: Path) -> None:
    with logged() as logs:
        async with running(*home(tmp_path / "kiso", "kiso", discovering("nosuch0"))) as daemon:
            await until(lambda: daemon.discovery.nearby().problem != "")
            for _ in range(3):
                await daemon.discovery._look()
            found = await get(daemon, NEARBY)
            assert found["state"] == "failed" and "nosuch0" in found["problem"]
            status = await get(daemon, "/api/v1/island")
            assert status["discovery"].startswith("failed: ") and status["problems"] == []
            code, _, err = await command(daemon, "peer", "nearby")
            assert code == 1 and "nosuch0" in err
    assert len(logs.of("discovery.failed")) == 1
    assert not logs.of("loop.retry")


async def test_a_contested_name_is_reported_and_replaced(
    tmp_path: Path, loopback: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    contested, announce = [True], Responder._announce

    async def contest(responder: Responder, label: str) -> bool:
        return not contested and await announce(responder, label)

    monkeypatch.setattr(Responder, "_announce", contest)
    async with running(*home(tmp_path / "kiso", "kiso", discovering(loopback))) as daemon:
        await daemon.trust.invite(daemon.peers.local_addresses())
        await until(lambda: "contests" in daemon.discovery.nearby().problem)
        now = daemon.discovery.nearby()
        assert (now.state, now.announced, now.note) == ("on", [], "") and "NonUnique" not in now.problem
        contested.clear()
        await daemon.discovery._look()
        assert daemon.discovery.nearby().announced == [f"{loopback}:{daemon.peers.port}"]
        assert daemon.discovery.nearby().problem == ""


async def test_an_island_announces_itself_when_it_founds_an_archipelago(tmp_path: Path, loopback: str) -> None:
    async with running(*home(tmp_path / "kiso", "kiso", discovering(loopback))) as daemon:
        await until(lambda: daemon.discovery.nearby().note != "")
        now = daemon.discovery.nearby()
        assert now.state == "on" and now.announced == [] and "does not belong" in now.note
        await daemon.trust.invite(daemon.peers.local_addresses())
        await until(lambda: daemon.discovery.nearby().announced == [f"{loopback}:{daemon.peers.port}"])
        assert daemon.discovery.nearby().note == ""
