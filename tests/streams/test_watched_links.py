"""Symbolic links in a watched folder: a source never reads a file that is outside of its folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from island.errors import IslandError
from island.formats.limits import DEFAULT_LIMITS
from island.streams import tables, watched_folder
from island.streams.watched_folder import Wanted, stat_of
from tests.islands.subscribing import ALPHA, SCHEMA, Home, running, until, write
from tests.standins.peers import Wire


@pytest.fixture
def homes(tmp_path: Path) -> tuple[Home, Home]:
    """A home with the file `mine` in its watched folder, and one with the file `secret`."""
    home, private = Home(tmp_path / "home"), Home(tmp_path / "private")
    write(home, "mine", 0, 3)
    write(private, "secret", 0, 7)
    return home, private


async def test_links_out_of_the_folder_are_a_problem_of_the_source(homes: tuple[Home, Home]) -> None:
    home, private = homes
    (home.drop / "stolen.parquet").symlink_to(private.drop / "secret.parquet")
    (home.drop / "relative.parquet").symlink_to("../../private/drop/secret.parquet")
    (home.drop / "again.parquet").symlink_to("mine.parquet")
    (home.drop / "dangling.parquet").symlink_to("nowhere.parquet")
    (home.drop / "loop.parquet").symlink_to("loop.parquet")
    async with running(home, Wire(), ALPHA) as running_source:
        source = await running_source.watch()
        await until(lambda: "alerts" in running_source.records and bool(source.problem))
        assert set(source._known or {}) == {"mine.parquet", "again.parquet"}
        assert "relative.parquet is a symbolic link that leads out of the folder" in source.problem
        assert "stolen.parquet" in source.problem
        assert running_source.records["alerts"].rows == 3
        (home.drop / "stolen.parquet").unlink()
        (home.drop / "relative.parquet").unlink()
        (home.drop / "loop.parquet").unlink()
        await until(lambda: not source.problem)


def _read_all(root: Path, file: Wanted) -> object:
    return watched_folder.read_file(root, file, None, DEFAULT_LIMITS)


def _read_portion(root: Path, file: Wanted) -> object:
    return watched_folder.read_portion(root, file, tables.schema_to_bytes(tables.relaxed(SCHEMA)), 0, DEFAULT_LIMITS)


@pytest.mark.parametrize("read", [_read_all, _read_portion])
def test_a_file_that_became_a_link_after_it_was_listed_is_not_read(
    homes: tuple[Home, Home], read: Callable[[Path, Wanted], object]
) -> None:
    home, private = homes
    secret = private.drop / "secret.parquet"
    stat = stat_of(secret)
    assert stat is not None
    (home.drop / "file.parquet").symlink_to(secret)
    (home.drop / "folder").symlink_to(private.drop)
    os.mkfifo(home.drop / "pipe.parquet")
    for path in ("file.parquet", "folder/secret.parquet", "pipe.parquet", "../../private/drop/secret.parquet"):
        with pytest.raises(IslandError):
            read(home.drop, Wanted(path, stat))
    assert read(private.drop, Wanted("secret.parquet", stat))


def test_a_file_that_becomes_a_link_while_it_is_read_is_not_followed(
    homes: tuple[Home, Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, private = homes
    mine = home.drop / "mine.parquet"
    stat = stat_of(mine)
    assert stat is not None
    original = tables.open_table

    def swapped(*arguments: Any) -> Any:
        """Open the table while another process has replaced the file by a link."""
        mine.rename(home.drop / "kept")
        mine.symlink_to(private.drop / "secret.parquet")
        try:
            return original(*arguments)
        finally:
            (home.drop / "kept").rename(mine)

    monkeypatch.setattr(tables, "open_table", swapped)
    assert watched_folder.read_file(home.drop, Wanted("mine.parquet", stat), None, DEFAULT_LIMITS).rows == 3
