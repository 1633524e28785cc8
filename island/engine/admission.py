"""Whether a request may run here, and with what. No process is started for one that may not."""

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
    """What a request comes to: Spark's settings, inputs, memory, and Python files, all checked."""

    conf: dict[str, str]
    views: dict[str, str]
    aliases: dict[str, str]
    memory: str
    py_files: list[str]
    file: str = ""


def check_launch(request: SessionRequest | BatchRequest, limits: EngineLimits) -> LaunchSpec:
    """Check files, settings, memory and kind, in Livy's order. Raises `LivyRefusal`."""
    lists = [request.jars, request.files, request.archives, request.py_files]
    jars, files, archives, py_files = ([local_file(item, limits.allow_files) for item in items] for items in lists)
    file = ""
    if isinstance(request, BatchRequest):
        file = local_file(request.file or "", limits.allow_files)
        if request.class_name or not file.endswith(".py"):
            raise rejected(
                "requirement failed: this engine runs Python files (.py) only.",
                hint="Send jars to a server that has Spark's Scala side, such as a Livy of the site's own.",
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
    """A kind that Livy knows and this engine has not."""
    return rejected(
        f"kind '{kind}' does not run on this engine; it has pyspark and sql.",
        hint="Open a session of kind pyspark or sql, or use a Livy that has the kind.",
    )


def statement_kind(asked: str | None, session: str) -> str:
    """The kind of a statement, pyspark or sql. Raises `LivyRefusal`."""
    kind = asked or session
    if kind in ("spark", "sparkr"):
        raise unsupported_kind(kind)
    if kind == "shared":
        raise bad_body("A statement in a session of kind shared names its kind: pyspark or sql")
    return "sql" if kind == "sql" else "pyspark"


def local_file(path: str, allowed: Iterable[Path]) -> str:
    """A local file that a client may name. Raises `LivyRefusal` if relative, remote or elsewhere.

    That it exists is not asked: Livy finds that out when the job starts.
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
    """A jar as Spark reads it where it lies: any other is served to whoever asks at Spark's port, without a secret.

    Raises `LivyRefusal` for a path that Spark's Java cannot read back from a URI.
    """
    if quote(jar, safe="/!$&'()*+;=:@~") != jar:
        raise rejected(
            f"requirement failed: Path '{jar[:1000]}' of a jar has a space or another character that URIs escape.",
            hint="Rename the jar or its folder.",
        )
    return f"local:{jar}"


def _check_input(name: str, path: str) -> None:
    """Refuse at once what cannot be read later. Raises `LivyRefusal`."""
    try:
        items = json.loads(path) if path.startswith("[") else [path]
    except ValueError as error:
        raise rejected(f"requirement failed: the list of files of input {name} is no JSON: {error}") from error
    for item in items:
        local = unquote(urlsplit(item).path) if isinstance(item, str) and item.startswith("file:") else item
        if not isinstance(local, str) or not os.path.isabs(local):
            raise rejected(f"requirement failed: Path '{item}' of input {name} is not absolute.")


def _memory(text: str, limits: EngineLimits) -> str:
    if memory_bytes(text) > memory_bytes(limits.max_memory):
        raise rejected(f"requirement failed: {text} of driver memory; this engine grants {limits.max_memory}.")
    # The JVM knows no trailing b and reads a bare number as bytes, Spark as MiB.
    text = text.strip().lower().removesuffix("b")
    return text + "m" if text.isdigit() else text
