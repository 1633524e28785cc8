"""Paths of users that are not files: nothing waits for the other end of a FIFO, or reads a device."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from island.errors import BadInput, ConfigError, IslandError
from island.formats.files import open_binary
from island.home import token_in
from island.private_files import secret_text
from island.regular_file import open_regular, read_regular
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


def test_a_file_is_read_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 10)
    assert read_regular(tmp_path / "file", 10) == b"x" * 10
    with pytest.raises(OSError, match="it is larger than 9 bytes"):
        read_regular(tmp_path / "file", 9)


def test_a_token_may_come_from_a_pipe_that_the_user_names(fifo: Path) -> None:
    """As from the process substitution of a shell; a FIFO in a home folder is refused."""
    fifo.chmod(0o600)
    with pytest.raises(ConfigError, match="is not a regular file"):
        secret_text(fifo, "a token")
    writer = threading.Thread(target=fifo.write_text, args=("isl_a_token\n",))
    writer.start()
    assert token_in(str(fifo), "--token-file") == "isl_a_token"
    writer.join()
