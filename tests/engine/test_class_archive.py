"""The class-data archive: where it is, when it is used, and what happens when it cannot be made."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from pathlib import Path

import pytest

from island.engine.class_archive import KEEP_S, ClassArchive, archive_folder
from island.engine.jvm import find_java
from island.engine.spark import spark_home
from island.errors import EngineFailed
from tests.servers.engine import need_spark


@pytest.fixture
def archive(tmp_path: Path) -> ClassArchive:
    need_spark()
    return ClassArchive(tmp_path, find_java(os.environ), Path(spark_home()))


def test_the_folder_is_in_the_cache_of_the_account_or_in_the_engine(tmp_path: Path) -> None:
    cache, engine = tmp_path / "cache", tmp_path / "engine"
    assert archive_folder({"XDG_CACHE_HOME": str(cache)}, engine) == cache / "island"
    assert (cache / "island").stat().st_mode & 0o777 == 0o700
    (cache / "island").chmod(0o777)  # other accounts could put an archive there
    assert archive_folder({"XDG_CACHE_HOME": str(cache)}, engine) == engine / "cache"
    (tmp_path / "file").touch()
    assert archive_folder({"XDG_CACHE_HOME": str(tmp_path / "file")}, engine) == engine / "cache"


def test_an_archive_in_a_read_only_image_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere, so permissions cannot show it
    cache, engine = tmp_path / "cache", tmp_path / "engine"
    assert archive_folder({"XDG_CACHE_HOME": str(cache)}, engine) == engine / "cache"
    (cache / "island" / "classes-0-0.jsa").touch()
    assert archive_folder({"XDG_CACHE_HOME": str(cache)}, engine) == cache / "island"


def test_an_archive_is_for_one_java_and_one_set_of_jars(tmp_path: Path) -> None:
    java, spark = tmp_path / "java", tmp_path / "spark"
    for folder in (java, spark / "jars"):
        folder.mkdir(parents=True)
    (java / "release").write_text('JAVA_VERSION="17.0.1"\n')
    (spark / "jars" / "a.jar").write_bytes(b"1")

    def name() -> str:
        return ClassArchive(tmp_path, java, spark).stem

    names = [name()]
    (java / "release").write_text('JAVA_VERSION="17.0.2"\n')
    names.append(name())
    (spark / "jars" / "b.jar").write_bytes(b"1")
    names.append(name())
    os.utime(spark / "jars" / "b.jar", (1, 1))
    names.append(name())
    assert len(set(names)) == 4
    assert name() == names[-1]


def written(archive: ClassArchive) -> Path:
    """A file in the place of a whole archive."""
    path = archive.folder / f"{archive.stem}-4.jsa"
    path.write_bytes(b"1234")
    path.chmod(0o644)
    return path


def test_it_is_used_only_if_it_is_whole_and_no_other_account_can_change_it(archive: ClassArchive) -> None:
    assert archive.java_options() == []
    path = written(archive)
    assert f"-XX:SharedArchiveFile={path}" in archive.java_options()
    for mode in (0o664, 0o646):
        path.chmod(mode)
        assert archive.java_options() == []
    path.chmod(0o644)
    for mode in (0o770, 0o777):
        archive.folder.chmod(mode)  # another account could replace the file
        assert archive.java_options() == []
    archive.folder.chmod(0o755)
    assert archive.java_options() != []
    path.write_bytes(b"123")
    assert archive.java_options() == []


def test_archives_that_nothing_uses_are_deleted(archive: ClassArchive) -> None:
    old, recent = archive.folder / "classes-0-0.jsa", archive.folder / "classes-1-0.jsa"
    path = written(archive)
    for each in (old, recent):
        each.touch()
    for each in (path, old):
        os.utime(each, (time.time() - KEEP_S - 60,) * 2)
    archive.clean()
    assert sorted(archive.folder.iterdir()) == sorted([path, recent])


async def test_two_engines_do_not_make_it_twice(archive: ClassArchive) -> None:
    with (archive.folder / f"{archive.stem}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert await archive.make({}) is False
    path = written(archive)
    assert await archive.make({}) is True
    assert archive.find() == path


async def test_a_failed_attempt_says_why_and_leaves_nothing(tmp_path: Path, archive: ClassArchive) -> None:
    java = tmp_path / "java"
    (java / "bin").mkdir(parents=True)
    (java / "release").write_text('JAVA_VERSION="17.0.2"\n')
    (java / "bin" / "java").write_text("#!/bin/sh\necho 'no memory for Java' >&2\nexit 1\n")
    (java / "bin" / "java").chmod(0o755)
    broken = ClassArchive(tmp_path / "cache", java, archive.spark_home)
    with pytest.raises(EngineFailed, match="the training run of Spark exited with code"):
        async with asyncio.timeout(120):
            await broken.make(dict(os.environ))
    assert [path.suffix for path in broken.folder.iterdir()] == [".lock"]
