"""The systemd unit, checked by systemd's own tools and run by a real systemd under its whole sandbox."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from island.cli.demo.demo_island import wait_for
from tests.conftest import REPOSITORY
from tests.missing import missing
from tests.servers.systemd_machine import PACKAGES, SystemdMachine, reason_against
from tests.servers.wheel import InstalledWheel

UNIT = REPOSITORY / "deploy" / "systemd" / "island.service"
SCORE = 1.2
"""The exposure that `systemd-analyze security` finds, of 10: what deploy/systemd/README.md states."""

WRITABLE = {"/var/lib/island", "/var/cache/island", "/tmp", "/var/tmp", "/dev/mqueue", "/dev/shm", "/run/lock"}
"""Where the account of the daemon may create files; systemd makes all but the last two private to the unit."""

DROP_IN = """
[Service]
# No journald runs in the machine of this test.
StandardOutput=append:/run/island.log
StandardError=append:/run/island.log
LoadCredential=island.token:/etc/island/token
LoadCredential=livy-password:/etc/island/livy-password
"""
FAST_WATCHDOG = """
[Service]
WatchdogSec=3
# A stopped process cannot handle SIGABRT.
TimeoutAbortSec=1
RestartSec=0
"""
TOKEN = "isl_a_from_the_service_manager"
ISLAND = ("runuser", "-u", "island", "--", "/opt/island/bin/island", "--home", "/var/lib/island")


def _need(reason: str) -> None:
    if reason:
        missing(reason)


def _analyze(*arguments: str) -> str:
    _need("" if shutil.which("systemd-analyze") else "systemd-analyze is absent: install systemd to run this test")
    done = subprocess.run(
        ["systemd-analyze", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"LANG": "C.UTF-8"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def test_the_unit_has_no_mistakes(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    program = tmp_path / "island"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit.write_text(UNIT.read_text("utf-8").replace("/opt/island/bin/island", str(program)), "utf-8")
    assert _analyze("verify", "--man=no", str(unit)) == ""


def test_the_exposure_is_as_documented() -> None:
    said = _analyze("security", "--offline=true", "--no-pager", str(UNIT))
    [score] = re.findall(r"Overall exposure level for island\.service: ([0-9.]+)", said)
    assert float(score) == SCORE
    assert f"**{SCORE}**" in (UNIT.parent / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdMachine]:
    """A machine on which the steps of deploy/systemd/README.md were followed; the unit is started."""
    _need(reason_against())
    folder = tmp_path_factory.mktemp("systemd")
    wheel = InstalledWheel(folder, PACKAGES)
    booted = SystemdMachine(folder / "machine", folder / "env")
    try:
        for name, target in (("sysusers", "sysusers.d/island.conf"), ("tmpfiles", "tmpfiles.d/island.conf")):
            booted.write(f"/etc/{target}", (UNIT.parent / f"island.{name}").read_text("utf-8"))
        booted.run("systemd-sysusers", "/etc/sysusers.d/island.conf")
        booted.run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/island.conf")
        booted.run(*ISLAND[:5], "init", "/var/lib/island", "--name", "kiso")
        # The archive costs more than it gains when only one session is started.
        booted.run("sed", "-i", "s/^class_archive = true/class_archive = false/", "/var/lib/island/island.toml")
        booted.write("/etc/island/token", TOKEN)
        booted.write("/etc/island/livy-password", "secret")
        booted.run("chmod", "600", "/etc/island/token", "/etc/island/livy-password")
        booted.write("/etc/systemd/system/island.service", UNIT.read_text("utf-8"))
        booted.write("/etc/systemd/system/island.service.d/test.conf", DROP_IN)
        booted.run("systemctl", "daemon-reload")
        started = booted.run("systemctl", "start", "island", check=False)
        assert booted.show("island", "ActiveState") == "active", started + _log(booted)
        yield booted
    finally:
        booted.close()
    assert wheel.names()


def _commands(machine: SystemdMachine, heading: str) -> None:
    """Run the commands below a heading of the README as root."""
    text = (UNIT.parent / "README.md").read_text("utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    [commands] = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    # The packages are those of the tests, and the environment is a mount. Nothing but a few folders can be written.
    kept = [line for line in commands.splitlines() if "/bin/pip " not in line]
    script = "\n".join(kept).replace(" /opt/island\n", "\n").replace("/var/backups/", "/home/backups/")
    machine.run("bash", "-euc", f"mkdir -p /home/backups\n{script}")


def _token(machine: SystemdMachine) -> str:
    """A file with the token of the unit's credential, for commands of the daemon's account."""
    machine.write("/run/token", TOKEN)
    machine.run("chown", "island:", "/run/token")
    machine.run("chmod", "600", "/run/token")
    return "/run/token"


def _log(machine: SystemdMachine) -> str:
    return machine.run("tail", "--bytes=4000", "/run/island.log", check=False)


def _status(machine: SystemdMachine) -> str:
    return machine.show("island", "StatusText")


@pytest.mark.e2e
def test_start_returns_when_the_island_is_ready(machine: SystemdMachine) -> None:
    assert _status(machine).split(":")[0] in {"ready", "degraded"}  # degraded while the engine starts
    assert machine.show("island", "WatchdogUSec") == "1min"
    answer = machine.run("/opt/python/bin/python3", "-c", _GET.format(path="readyz"))
    assert answer == "200"


_GET = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8990/{path}', timeout=30).status)"


@pytest.mark.e2e
def test_the_daemon_has_no_privileges_and_writes_to_its_folders_only(machine: SystemdMachine) -> None:
    pid = machine.show("island", "MainPID")
    status = dict(
        line.split(":\t", 1) for line in machine.run("cat", f"/proc/{pid}/status").splitlines() if ":\t" in line
    )
    assert {name: int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == dict.fromkeys(
        ("CapPrm", "CapEff", "CapBnd", "CapAmb"), 0
    )
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
    uid = machine.run("id", "--user", "island")
    assert status["Uid"].split() == [uid] * 4 and uid != "0"

    # Every mount that is not read-only, and in it every folder in which this account may create a file.
    inside = ["nsenter", f"--target={pid}", "--mount", "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    mounts = machine.run("cat", f"/proc/{pid}/mountinfo").splitlines()
    writable = [fields[4] for fields in map(str.split, mounts) if "rw" in fields[5].split(",")]
    assert "/" not in writable and "/var/lib/island" in writable
    found = machine.run(
        *inside, "find", *writable, "-xdev", "-path", "/proc/*", "-prune", "-o", "-type", "d", "-writable", "-print",
        check=False,
    )  # fmt: skip
    folders = {path for path in found.splitlines() if not any(path.startswith(f"{top}/") for top in WRITABLE)}
    assert folders <= WRITABLE and {"/var/lib/island", "/var/cache/island"} <= folders


@pytest.mark.e2e
def test_a_token_from_the_service_manager_is_used(machine: SystemdMachine) -> None:
    island = (*ISLAND, "--token-file", _token(machine))
    assert "kiso" in machine.run(*island, "status", check=False)
    refused = machine.run(*ISLAND, "status", check=False)
    assert "kiso" not in refused  # the token in the home folder is replaced
    found = machine.run(*island, "doctor", check=False)
    assert "daemon" in found and "cannot be asked" not in found, found
    # The password of a Livy, as the configuration names it, has the mode 0440 of a credential.
    path = "/run/credentials/island.service/livy-password"
    pid = machine.show("island", "MainPID")
    assert machine.run("nsenter", f"--target={pid}", "--mount", "cat", path) == "secret"


@pytest.mark.spark
def test_a_spark_session_runs_in_the_sandbox(machine: SystemdMachine) -> None:
    island = (*ISLAND, "--token-file", _token(machine))
    session = machine.run(*island, "session", "open", "--kind", "pyspark", seconds=300)
    code = "print(spark.range(1000).selectExpr('sum(id) AS s').collect()[0].s)"
    assert "499500" in machine.run(*island, "session", "exec", session, code, seconds=300)
    write = "try:\n  open('/etc/written', 'w')\nexcept OSError as error:\n  print(error.strerror)"
    assert "Read-only file system" in machine.run(*island, "session", "exec", session, write)
    machine.run(*island, "session", "close", session)


@pytest.mark.e2e
def test_a_daemon_that_hangs_is_restarted_and_stops_completely(machine: SystemdMachine) -> None:
    machine.write("/etc/systemd/system/island.service.d/watchdog.conf", FAST_WATCHDOG)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "island")
    pid = machine.show("island", "MainPID")
    machine.run("kill", "-STOP", pid)
    wait_for("the restart", lambda: True if machine.show("island", "NRestarts") == "1" else None)
    wait_for("the island", lambda: True if machine.show("island", "ActiveState") == "active" else None)
    assert machine.show("island", "MainPID") not in {pid, "0"}

    machine.run("systemctl", "stop", "island")
    assert machine.show("island", "Result") == "success"
    # systemd removes the cgroup when the engine and all other children have ended.
    assert machine.run("find", "/sys/fs/cgroup/system.slice", "-name", "island.service") == ""


@pytest.mark.e2e
def test_upgrade_restore_and_removal(machine: SystemdMachine) -> None:
    """Is the last test, because it removes the island."""
    machine.run("systemctl", "start", "island")
    key = machine.run("cat", "/var/lib/island/key")
    _commands(machine, "Upgrade")
    assert machine.show("island", "ActiveState") == "active"
    _commands(machine, "Restore, or go back to the older version")
    assert machine.show("island", "ActiveState") == "active"
    assert machine.run("cat", "/var/lib/island/key") == key
    assert machine.run("stat", "--format=%U %a", "/var/lib/island") == "island 700"
    island = (*ISLAND, "--token-file", _token(machine))
    assert "island.restore" in machine.run(*island, "journal")

    _commands(machine, "Remove")
    left = machine.run("find", "/etc", "/var/lib", "/var/cache", "-name", "*island*", "-print", "-prune")
    assert left.split() == ["/var/lib/island.old"]
    assert machine.run("getent", "passwd", "island", check=False) == ""
