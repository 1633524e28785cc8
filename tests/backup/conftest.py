"""A home folder to back up: that of the release which `tests/upgrade` keeps."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from island.home import Home

RELEASE = Path(__file__).parents[1] / "upgrade" / "home-0.1.0.tar.gz"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home folder with datasets, a subscription, a job and a journal, which no daemon uses."""
    with tarfile.open(RELEASE) as archive:
        archive.extractall(tmp_path, filter="data")
    return Home(tmp_path / "home")
