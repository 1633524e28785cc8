"""Checks of a request before a process is started: files, settings, inputs, memory and kind."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import msgspec

from island.engine.limits import EngineLimits
from island.livy.conf import input_views, refused_conf
from island.livy.messages import BatchRequest, SessionRequest
from island.livy.requests import memory_bytes
from island.livy.rest import LivyRefusal, bad_body, rejected

HERE = ("pyspark", "pyspark3", "sql", "shared")


class LaunchSpec(msgspec.Struct, frozen=True):
    """The checked settings of a request: Spark's conf, inputs, memory and Python files."""

    conf: dict[str, str]
    views: dict[str, str]
    aliases: dict[str, str]
    memory: str
    py_files: list[str]
    file: str = ""


def check_launch(request: SessionRequest | BatchRequest, limits: EngineLimits) -> LaunchSpec:
    """Check files, settings, inputs, kind and memory of a request. Raises `LivyRefusal`."""
    lists = [request.jars, request.files, request.archives, request.py_files]
    jars, files, archives, py_files = ([local_file(item, limits.allow_files) for item in items] for items in lists)
    file = ""
    if isinstance(request, BatchRequest):
        file = local_file(request.file or "", limits.allow_files)
        if request.class_name or not file.endswith(".py"):
            raise rejected(
                "requirement failed: this engine runs Python files (.py) only.",
                hint="Run jars at a stock Livy server.",
            )
    if refusal := refused_conf(request.conf):
        raise refusal
    views, aliases = input_views(request.conf)
    for name, path in views.items():
        _check_input(name, path)
    conf = {key: value for key, value in request.conf.items() if key.startswith("spark.")}
    jars = [_unserved(jar) for jar in jars]
    for key, paths in (("spark.jars", jars), ("spark.files", files), ("spark.archives", archives)):
        if paths:
            conf[key] = ",".join(paths)
    if py_files:
        conf["spark.submit.pyFiles"] = ",".join(py_files)
    if isinstance(request, SessionRequest) and request.kind not in (None, *HERE):
        raise unsupported_kind(str(request.kind))
    asked = request.driver_memory or conf.pop("spark.driver.memory", None)
    memory = _memory(asked, limits) if asked else limits.memory
    return LaunchSpec(conf, views, aliases, memory, py_files, file)


def unsupported_kind(kind: str) -> LivyRefusal:
    """Refusal of a kind of code that Livy has and this engine does not support."""
    return rejected(
        f"this engine does not support kind '{kind}'; it supports pyspark and sql.",
        hint="Open a session of kind pyspark or sql, or use a Livy server that supports the kind.",
    )


def statement_kind(asked: str | None, session: str) -> str:
    """The kind of a statement, pyspark or sql. Raises `LivyRefusal`."""
    kind = asked or session
    if kind in ("spark", "sparkr"):
        raise unsupported_kind(kind)
    if kind == "shared":
        raise bad_body("A statement in a session of kind shared must have a kind: pyspark or sql")
    return "sql" if kind == "sql" else "pyspark"


def local_file(path: str, allowed: Iterable[Path]) -> str:
    """The local path of a file that a client names.

    Raises `LivyRefusal` if the path is relative, remote or outside the allowed folders. The file
    need not exist: as in Livy, a missing file is an error when the job starts.
    """
    parts = urlsplit(path)
    if parts.scheme not in ("", "file"):
        raise rejected(
            f"requirement failed: {path[:1000]} is not a local path; this engine reads local files only.",
            hint="Copy the file to a folder that the engine allows.",
        )
    local = unquote(parts.path) if parts.scheme == "file" else path
    if not os.path.isabs(local) or "\0" in local or "," in local:
        raise rejected(f"requirement failed: Path '{path[:1000]}' is not absolute.")
    real = Path(os.path.realpath(local))
    if not any(real.is_relative_to(os.path.realpath(folder)) for folder in allowed):
        raise rejected(f"requirement failed: Local path {path[:1000]} cannot be added to user sessions.")
    return local


def _unserved(jar: str) -> str:
    """The `local:` URI of a jar, which Spark reads in place.

    Spark would serve a jar with another URI on its port, to any client and without authentication.
    Raises `LivyRefusal` for a path with characters that URIs escape, which Spark cannot read back.
    """
    if quote(jar, safe="/!$&'()*+;=:@~") != jar:
        raise rejected(
            f"requirement failed: Path '{jar[:1000]}' of a jar has a space or another character that URIs escape.",
            hint="Rename the jar or its folder.",
        )
    return f"local:{jar}"


def _check_input(name: str, path: str) -> None:
    """Check the path or list of paths of an input. Raises `LivyRefusal`."""
    try:
        items = json.loads(path) if path.startswith("[") else [path]
    except ValueError as error:
        raise rejected(f"requirement failed: the list of files of input {name} is not valid JSON: {error}") from error
    for item in items:
        local = unquote(urlsplit(item).path) if isinstance(item, str) and item.startswith("file:") else item
        if not isinstance(local, str) or not os.path.isabs(local):
            raise rejected(f"requirement failed: Path '{item}' of input {name} is not absolute.")


def _memory(text: str, limits: EngineLimits) -> str:
    if memory_bytes(text) > memory_bytes(limits.max_memory):
        raise rejected(f"requirement failed: {text} of driver memory; the limit of this engine is {limits.max_memory}.")
    # The JVM does not accept a trailing b, and reads a number without unit as bytes; Spark reads it as MiB.
    text = text.strip().lower().removesuffix("b")
    return text + "m" if text.isdigit() else text
