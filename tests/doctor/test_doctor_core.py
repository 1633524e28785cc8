"""Decisions on facts that a test cannot bring about: another machine's disks, limits, accounts and neighbours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from island.doctor import core
from island.doctor.core import Finding
from island.doctor.facts import (
    ClockFacts,
    DaemonFacts,
    DatabaseFacts,
    DiskFacts,
    EngineFacts,
    EngineFileFacts,
    EntryFacts,
    HomeFacts,
    PeerFacts,
    PeerView,
    PortFacts,
    SandboxFacts,
)

GIB = 2**30


def disk(*, free: int = 50 * GIB, inodes: int | None = 10**6, read_only: bool = False) -> Iterable[Finding]:
    return core.disk(DiskFacts("/srv", free, inodes, read_only, stored=0, reserve=GIB, quota=20 * GIB))


def home(*, owner: str = "island", account: str = "island", writable: bool = True) -> Iterable[Finding]:
    return core.home(HomeFacts("/srv", True, True, owner, account, 0o700, True, writable))


def clock(synchronized: bool | None, *others: tuple[str, float, float]) -> Iterable[Finding]:
    return core.clock(ClockFacts(synchronized, 60.0, others))


def peers(*views: PeerView, asked: bool = True, listen: str = "0.0.0.0:1", hosts: Iterable[str] = ()) -> list[Finding]:
    facts = PeerFacts(listen, loopback=False, unknown_hosts=list(hosts), views=views if asked else None)
    return list(core.peers(facts))


def port(state: str, holder: str = "") -> Iterable[Finding]:
    return core.ports([PortFacts("listen.user", "127.0.0.1:80", state, holder)])  # type: ignore[arg-type]  # a literal


def entries(*foreign: str) -> Iterable[Finding]:
    return core.entries(EntryFacts([], foreign, home="/srv", owner="kiso"))


def daemon(**more: object) -> Iterable[Finding]:
    facts = {"running": True, "home": "/srv", "pid": 7, "state": "ready", "version": "1", "program": "1", **more}
    return core.daemon(DaemonFacts(**facts))  # type: ignore[arg-type]  # the values have the types of the fields


def sandbox_of_livy(accounts: list[str] | None) -> Iterable[Finding]:
    return core.sandbox(SandboxFacts(False, False, False, "isl", accounts))


LOST, SEEN = PeerView("virgo", False, "connection refused"), PeerView("lapalma", True, "")


def livy_files(
    accounts: list[str] | None = None, *, problem: str = "", denied: Sequence[str] = (), shared: bool = True
) -> Iterable[Finding]:
    return core.engine_files(EngineFileFacts("a", "/srv", shared, problem, accounts, list(denied)))


@pytest.mark.parametrize(
    ("findings", "severity", "words", "advice"),
    [
        (disk(free=100 * 2**20), "problem", "only 100 MiB are free", "island dataset drop"),
        (disk(inodes=12), "problem", "only 12 inodes", "Delete files"),
        (disk(read_only=True), "problem", "is read-only", "system's log"),
        (home(account="kim"), "warning", "belongs to island, not to the account kim", "chown -R kim: /srv"),
        (home(writable=False), "problem", "cannot be written by island", "chmod u+rwx"),
        (
            entries("a", "b", "c", "d"),
            "problem",
            "a, b, c and 1 more",
            "chown -R kiso: /srv",
        ),
        (core.open_files(300, "it"), "problem", "300 files: too few", "LimitNOFILE=65536"),
        (core.open_files(1024, "it"), "warning", "each port accepts 256 connections", "LimitNOFILE=65536"),
        (clock(False), "warning", "not synchronized (NTP)", "set-ntp true"),
        (clock(None), "unchecked", "no other clock could be asked", "date -u"),
        (clock(True, ("virgo", 20.0, 1.0)), "warning", "20 seconds behind virgo", "Or the other clock is wrong"),
        (clock(True, ("virgo", -9000.0, 1.0)), "problem", "2 hours ahead of virgo", "Or the other clock is wrong"),
        (core.engine(EngineFacts("", "4.0.1", "/java")), "problem", "PySpark 4.0.1 is installed", "extra `spark`"),
        (core.engine(EngineFacts("http://h", error="down", engine="a")), "problem", "engine 'a': down", ""),
        (livy_files(problem="/srv is not a folder"), "problem", "/srv is not a folder", "A Livy of another account"),
        (
            livy_files(["livy"], denied=["livy"]),
            "problem",
            "runs as livy, which cannot read /srv",
            "to the group of /srv",
        ),
        (
            livy_files(["livy"], denied=["livy"], shared=False),
            "problem",
            "runs as livy, which cannot read /srv",
            "A Livy of another account",
        ),
        (livy_files(None), "unchecked", "is on another machine", "Run a batch"),
        (port("denied"), "problem", "cannot be used by this account", "below 1024"),
        (port("silent"), "problem", "nothing answers at listen.user", "restart"),
        (port("taken"), "problem", "in use by another program", "change listen.user"),
        (peers(LOST), "problem", "virgo cannot dial this island: connection refused", "firewall"),
        (peers(LOST, SEEN), "warning", "virgo cannot dial this island", "firewall"),
        (peers(asked=False), "unchecked", "were not asked", "Start the daemon"),
        (peers(SEEN, hosts=["nowhere.example:1"]), "problem", "'nowhere.example:1'", "DNS entry"),
        (daemon(version="0"), "warning", "runs version 0, but version 1 is installed", "Restart"),
        (
            daemon(problems=["the engine exited"], state="degraded"),
            "problem",
            "the engine exited",
            "Troubleshoot by symptom",
        ),
        (daemon(discovery="failed: in use"), "warning", "discovery on the local network failed: in use", "[discovery]"),
        (daemon(error="no token", hint="Set one."), "problem", "cannot be asked: no token", "Set one."),
        (core.sandbox(SandboxFacts(True, True, False, "isl")), "warning", "code of users and other islands", "livy"),
        (sandbox_of_livy(None), "unchecked", "a Livy on another machine", "cannot run as isl"),
        (sandbox_of_livy([]), "unchecked", "its account is not known", "while Livy is running"),
        (sandbox_of_livy(["isl"]), "warning", "runs as isl: the code of its sessions can read the key", "of its own"),
        (sandbox_of_livy(["root"]), "warning", "runs as root: the code of its sessions can read the key", "of its own"),
        (
            core.sandbox(SandboxFacts(False, False, True, "root", ["livy"])),
            "warning",
            "runs as root",
            "account of its own",
        ),
    ],
)
def test_what_is_wrong_and_what_to_do(findings: Iterable[Finding], severity: str, words: str, advice: str) -> None:
    found = [each for each in findings if each.severity != "ok"]
    (only,) = found
    assert only.severity == severity and words in only.found and advice in only.advice, only


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        (disk(inodes=None), "50.0 GiB are free"),
        (clock(None, ("virgo", 0.5, 0.1)), "agrees with virgo"),
        (clock(True), "is synchronized (NTP)"),
        (peers(SEEN), "lapalma can dial this island"),
        (peers(listen=""), "only dials out"),
        (core.databases([DatabaseFacts("state.db", "/s", 3, 8)]), "the daemon migrates it when it starts"),
        (core.engine(EngineFacts("http://h", "0.9.0")), "Livy 0.9.0 answers at http://h"),
        (core.engine(EngineFacts("http://h", "0.9.0", engine="a")), "engine 'a': Livy 0.9.0 answers at http://h"),
        (livy_files(["livy"]), "runs as livy, which can read /srv"),
        (sandbox_of_livy(["livy"]), "runs as livy, not as isl"),
    ],
)
def test_what_is_right(findings: Iterable[Finding], words: str) -> None:
    (only,) = findings
    assert only.severity == "ok" and words in only.found


def test_only_problems_fail() -> None:
    assert not core.failed([Finding("x", "warning", "", ""), Finding("x", "unchecked", "", "")])
    assert core.failed([Finding("x", "ok", ""), Finding("x", "problem", "", "")])


def test_the_sections_of_the_guide_that_are_named_exist() -> None:
    root = Path(__file__).resolve().parents[2]
    source = "".join(path.read_text("utf-8") for path in (root / "island" / "doctor").glob("*.py"))
    named = set(re.findall(r"'([A-Z][a-z, ]+)' in", source))
    assert named == {
        "Troubleshoot by symptom", "Connect islands", "Code from other islands", "Restore", "Upgrade, and back",
    }  # fmt: skip
    guide = (root / "docs" / "administrator.md").read_text("utf-8")
    assert all(f"\n## {each}\n" in guide for each in named)


def test_every_check_is_in_the_guide() -> None:
    root = Path(__file__).resolve().parents[2]
    source = (root / "island" / "doctor" / "core.py").read_text("utf-8")
    guide = (root / "docs" / "administrator.md").read_text("utf-8").partition("\n## Troubleshoot by symptom\n")[2]
    checks = set(re.findall(r'Finding\("([a-z ]+)"', source)) | {"configuration"}
    assert len(checks) == 16
    assert all(f"`{each}`" in guide for each in checks), checks
