"""Each import contract of `pyproject.toml` holds, and breaks when a module that is not there today breaks it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

LAYERS = "The layers: what stands higher may import what stands lower"
ROLES = "Inside jobs: home and executor are roles of their own, which meet in the service and in messages"
ENGINE = "The engine imports only livy, kernel, private_files and errors"
AIOHTTP = "aiohttp is imported by these modules only"
DATA = "Arrow, Avro and astronomy's libraries are imported by these modules only"
MULTICAST = "Multicast DNS is used by this module only"
MSGPACK = "msgpack is imported by the tests only"
PURE = "Pure modules reach no input or output, clock, randomness or logging, directly or through others"

BREACHES = [
    (LAYERS, "trust/late.py", "import island.gossip.core"),
    (LAYERS, "newcomer/late.py", ""),  # a package that no layer names
    (ROLES, "jobs/home/late.py", "import island.jobs.executor.store"),
    (ROLES, "jobs/executor/late.py", "import island.jobs.home.reports"),
    (ENGINE, "engine/late.py", "import island.config"),
    (ENGINE, "engine/late.py", "import island.newcomer.late"),
    (AIOHTTP, "net/late.py", "import aiohttp"),
    (AIOHTTP, "newcomer/late.py", "from aiohttp import web"),
    *(
        (DATA, "catalog/late.py", f"import {each}")
        for each in ("pyarrow", "fastavro", "astropy", "mocpy", "cdshealpix")
    ),
    (DATA, "formats/late.py", "import pyarrow.parquet"),
    (MULTICAST, "discovery/service.py", "import zeroconf"),
    (MULTICAST, "newcomer/late.py", "import ifaddr"),
    (MSGPACK, "kernel/codec.py", "import msgpack"),
    (MSGPACK, "newcomer/late.py", "def late():\n    from msgpack import unpackb"),
    *((PURE, f"newcomer/{name}.py", "import time") for name in ("core", "machine", "manifest", "router")),
    *(
        (PURE, "newcomer/deep/core.py", f"import {each}")
        for each in ("asyncio", "os", "random", "sqlite3", "threading")
    ),
    (PURE, "jobs/router.py", "import island.kernel.ports"),  # which import clocks and randomness
]


def contracts(folder: Path) -> dict[str, bool]:
    """Which contracts are kept in the copy in `folder`, by name."""
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run(['--no-cache'])"],
        cwd=folder,
        env={**os.environ, "COLUMNS": "1000"},  # so that no name is broken into two lines
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    found = re.findall(r"^(.+) (KEPT|BROKEN)( \(.*\))?\s*$", done.stdout, re.MULTILINE)
    assert found, done.stdout + done.stderr
    return {name: word == "KEPT" for name, word, _ in found}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program's sources and its contracts, to be changed at will."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "island", folder / "island", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_the_contracts_hold(copy: Path) -> None:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    names = {contract["name"] for contract in found["tool"]["importlinter"]["contracts"]}
    assert names == {name for name, _, _ in BREACHES}, "each contract is broken by one of the breaches"
    assert contracts(copy) == dict.fromkeys(names, True)


@pytest.mark.parametrize(("contract", "module", "source"), BREACHES)
def test_a_module_that_breaks_a_contract_is_found(copy: Path, contract: str, module: str, source: str) -> None:
    path = copy / "island" / module
    before = path.read_text("utf-8") if path.exists() else None
    packages = [copy / "island" / "newcomer", copy / "island" / "newcomer" / "deep"]
    if "newcomer" in module + source:
        for package in packages:
            package.mkdir()
            (package / "__init__.py").touch()
        (packages[0] / "late.py").touch()
    path.write_text(f"{before or ''}\n{source}\n", "utf-8")
    try:
        broken = {name for name, kept in contracts(copy).items() if not kept}
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_text(before, "utf-8")
        shutil.rmtree(packages[0], ignore_errors=True)
    # A package that no layer names breaks that contract, whatever else it does.
    assert broken == {contract} | ({LAYERS} if "newcomer" in module + source else set())
