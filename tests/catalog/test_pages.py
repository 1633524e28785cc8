"""Packs of manifest pages on a disk that is full."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from island.catalog.pages import PackWriter
from island.errors import Full

MOST = 4096


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may become larger than `MOST` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.usefixtures("small_files")
def test_a_pack_that_does_not_fit_leaves_no_file_and_its_error(tmp_path: Path) -> None:
    writer = PackWriter(tmp_path, "pack", set())
    writer.add(bytes(MOST + 1))  # the end is still in the buffer
    try:
        with pytest.raises(Full, match=r"pack\.tmp cannot be written: File too large"):
            writer.finish()
    finally:
        writer.abandon()
    assert list(tmp_path.iterdir()) == []
