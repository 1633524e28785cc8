"""Paths of users that are not files: nothing waits for the other end of a FIFO, or reads a device."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from island.errors import BadInput, IslandError
from island.formats.files import open_binary
from island.kernel.regular_file import open_regular
from island.replicas.chunk_files import read_range


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def test_a_file_is_opened_also_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"content"
    with pytest.raises(OSError, match="symbolic links"):
        open_regular(tmp_path / "link", follow=False)


def test_what_is_not_a_file_is_refused(fifo: Path) -> None:
    for path in (fifo, fifo.parent, Path("/dev/zero")):
        with pytest.raises(OSError, match="it is not a regular file"):
            open_regular(path)


@pytest.mark.parametrize(
    ("function", "error"), [(open_binary, BadInput), (lambda path: read_range(path, 0, 10), IslandError)]
)
def test_a_fifo_is_not_waited_for(fifo: Path, function: Callable[[Path], object], error: type[Exception]) -> None:
    with pytest.raises(error, match="it is not a regular file"):
        function(fifo)
