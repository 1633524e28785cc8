"""The commands of "Install and start" in the administrator's guide lead to a result of your own Livy, in order."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from pathlib import Path

import pytest

from island.cli.demo.demo_island import free_ports
from tests.conftest import REPOSITORY
from tests.islands.user_port import played_livy
from tests.missing import missing

SECONDS = 120.0
PROGRAMS = "/usr/bin:/bin"


def commands() -> dict[int, list[str]]:
    """The shell commands of each step, in the order of the page."""
    guide = (REPOSITORY / "docs" / "administrator.md").read_text("utf-8")
    section = guide.partition("\n## Install and start\n")[2].partition("\n## ")[0]
    steps = re.split(r"^(\d+)\. ", section, flags=re.MULTILINE)[1:]
    return {
        int(number): re.findall(r"^ *```sh\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
        for number, text in zip(steps[::2], steps[1::2], strict=True)
    }


async def shell(script: str, environment: dict[str, str]) -> tuple[int, str]:
    """Run a script in a new shell that stops at the first failure. Returns its exit code and output."""
    process = await asyncio.create_subprocess_exec(
        "bash", "-euc", script, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode is not None
    return process.returncode, output.decode()


async def ready(url: str, daemon: asyncio.subprocess.Process) -> None:
    """Wait until a daemon that was started says so in its log."""
    assert daemon.stderr is not None
    async for line in daemon.stderr:
        if b"daemon.ready" in line:
            return
    pytest.fail(f"the daemon at {url} did not start")


@pytest.mark.e2e
@pytest.mark.slow
async def test_the_commands_of_the_guide_lead_to_a_result(tmp_path: Path) -> None:
    if shutil.which("curl", path=PROGRAMS) is None:
        missing("curl is absent: install curl to run this test")
    user, peer = free_ports(2)
    environment = {"HOME": str(tmp_path), "PATH": PROGRAMS, "LANG": "C.UTF-8"}
    # Steps 1 and 2 need root and a network; this stands for the virtual environment that they make.
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").write_text(f"PATH={Path(sys.executable).parent}:$PATH\n", "utf-8")
    activate = ". ~/venv/bin/activate\n"
    steps = commands()
    assert activate.strip() in steps[2][0]

    async with played_livy() as livy:

        async def run(script: str) -> str:
            code, output = await shell(script, environment)
            assert code == 0, output
            return output

        create = steps[3][0].replace("http://127.0.0.1:8998", livy)
        assert livy in create
        ports = f"--listen 127.0.0.1:{user} --peer-listen 127.0.0.1:{peer}\n"
        await run(activate + create.rstrip() + " " + ports)
        assert "no problems" in await run(activate + "island config check")

        daemon = await asyncio.create_subprocess_exec(
            "bash", "-euc", f"{activate}exec {steps[5][0].strip()}", env=environment, stderr=asyncio.subprocess.PIPE
        )
        try:
            url = f"http://127.0.0.1:{user}"
            await asyncio.wait_for(ready(url, daemon), SECONDS)
            second_shell = steps[5][1].replace("http://127.0.0.1:8990", url)
            assert "ready" in await run(second_shell)
            assert f"answers at {livy}" in await run(activate + steps[6][0])
            assert "ran SELECT 1" in await run(activate + steps[7][0])
        finally:
            daemon.terminate()
            await asyncio.wait_for(daemon.communicate(), SECONDS)
    assert daemon.returncode == 0
    await run_below(tmp_path, environment, activate + steps[8][0])
    unit = (REPOSITORY / "deploy" / "systemd" / "README.md").read_text("utf-8").partition("\n## Readiness")[0]
    (restore,) = re.findall(r"^runuser -u island -- /opt/island/bin/(island restore .*)$", unit, re.MULTILINE)
    await run_below(tmp_path, environment, activate + restore)
    keys = [(tmp_path / home / "key").read_bytes() for home in (".island", "unit")]
    assert keys[0] == keys[1]


async def run_below(folder: Path, environment: dict[str, str], script: str) -> None:
    """Run a script with the home folders of the account and of the unit below a folder."""
    script = script.replace("/home/island", str(folder)).replace("/var/lib/island", f"{folder}/unit")
    code, output = await shell(script, environment)
    assert code == 0, output


def test_the_commands_need_no_other_page() -> None:
    """A person who follows the page has every program that it calls, and no file that it does not make."""
    text = "\n".join(block for blocks in commands().values() for block in blocks)
    called = {line.split()[0].lstrip("~/") for line in text.splitlines() if line.split()}
    from_debian = {"apt-get", "useradd", "su", "git", "cd", "python3", "curl", "."}
    assert called <= from_debian | {"venv/bin/pip", "island", "ID=$(island"}
    installed = re.findall(r"apt-get install .*", text)[0]
    assert {"git", "curl", "python3-venv", "ca-certificates"} <= set(installed.split())
