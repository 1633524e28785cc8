"""Temporary views of inputs. An input is a Parquet file, a folder of Parquet files, or a JSON list of files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from island.errors import EngineFailed

SUFFIXES = (".parquet", ".parq", ".pq")


def create_views(spark: Any, views: Mapping[str, str], aliases: Mapping[str, str]) -> None:
    """Create a temporary view of each input and of each alias. Raises `EngineFailed` with the name of the input."""
    frames = {}
    for name, path in views.items():
        try:
            frames[name] = read_input(spark, path)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise EngineFailed(f"input {name} at {path} cannot be read: {reason}") from error
        frames[name].createOrReplaceTempView(f"`{name}`")
    for alias, name in aliases.items():
        frames[name].createOrReplaceTempView(f"`{alias}`")


def read_input(spark: Any, path: str) -> Any:
    """The input at `path` as a DataFrame. Only Parquet footers are read."""
    if path.startswith("["):
        return spark.read.parquet(*(_local(item) for item in json.loads(path)))
    local = _local(path)
    if not os.path.isdir(local):
        return spark.read.parquet(local)
    reader = spark.read.option("pathGlobFilter", "*{" + ",".join(SUFFIXES) + "}")
    if _is_nested(Path(local)):
        reader = reader.option("recursiveFileLookup", "true")
    return reader.parquet(local)


def _local(path: str) -> str:
    """The local path in a path or `file:` URI."""
    return unquote(urlsplit(path).path) if path.startswith("file:") else path


def _is_nested(folder: Path) -> bool:
    """Whether a folder has subfolders, and none of them is a `key=value` partition.

    Spark finds partitions itself, but ignores files in other subfolders unless it looks them up recursively.
    """
    nested = False
    for _root, folders, _files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        if any("=" in name for name in folders):
            return False
        nested = nested or bool(folders)
    return nested
