"""The demo is the acceptance test: three islands, real data, and every number compared.

It runs once as a site installs it, from a wheel without the source tree, and once from the checkout.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.wheel import InstalledWheel

pytestmark = [pytest.mark.e2e, pytest.mark.spark]


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "island.cli.main", "demo", "--once", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_the_demo_with_nebulae_from_the_wheel(tmp_path: Path) -> None:
    wheel = InstalledWheel(tmp_path)
    roots = {name.split("/")[0] for name in wheel.names()}
    assert {name for name in roots if not name.endswith(".dist-info")} == {"island"}
    done = wheel.island("demo", "--once", "--dir", str(tmp_path / "d"))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    for number in range(1, 8):
        assert f"\n{number}. " in done.stdout
    assert "0 differ" in done.stdout


def test_the_demo_with_alerts(tmp_path: Path, shared_data: Path) -> None:
    done = demo("--dir", str(tmp_path / "d"), "--alerts", str(shared_data / "alerts" / "ztf"))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert "0 differ" in done.stdout
    assert "from NGC5674" in done.stdout


def test_a_folder_without_alerts_is_refused(tmp_path: Path) -> None:
    done = demo("--alerts", str(tmp_path))
    assert done.returncode == 1
    assert "tns" in done.stderr and "Traceback" not in done.stderr
