"""Which Spark settings a client may send, and those by which inputs reach a session.

A client of a shared Livy decides what its own job does, not where Spark runs, which
addresses it opens, which programs it starts, or where it writes its scratch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from island.livy.rest import LivyRefusal, rejected

PATH_PREFIX: Final = "spark.island.path."
"""`spark.island.path.VIEW` is the path that the view VIEW reads: a Parquet file or folder."""

ALIAS_PREFIX: Final = "spark.island.view."
"""`spark.island.view.ALIAS` is the name of the view that ALIAS stands for."""

INPUTS_KEY: Final = "spark.island.inputs"

MAX_KEYS: Final = 1_000
MAX_KEY: Final = 256
MAX_VALUE: Final = 65_536

# Where and as whom Spark runs, what it listens on, what it starts, where it writes.
PROTECTED: Final = frozenset(
    {
        "spark.master",
        "spark.remote",
        "spark.home",
        "spark.submit.deployMode",
        "spark.local.dir",
        "spark.sql.warehouse.dir",
        "spark.sql.catalogImplementation",
        "spark.driver.host",
        "spark.driver.bindAddress",
        "spark.driver.port",
        "spark.driver.blockManager.port",
        "spark.blockManager.port",
        "spark.driver.defaultJavaOptions",
        "spark.driver.extraJavaOptions",
        "spark.driver.extraClassPath",
        "spark.driver.extraLibraryPath",
        "spark.executor.defaultJavaOptions",
        "spark.executor.extraJavaOptions",
        "spark.executor.extraClassPath",
        "spark.executor.extraLibraryPath",
        "spark.driver.userClassPathFirst",
        "spark.executor.userClassPathFirst",
        "spark.plugins",
        "spark.extraListeners",
        "spark.sql.queryExecutionListeners",
        "spark.sql.streaming.streamingQueryListeners",
        "spark.archives",
        "spark.files",
        "spark.jars",
        "spark.repl.local.jars",
        "spark.driver.log.dfsDir",
        "spark.driver.log.persistToDfs.enabled",
    }
)
PROTECTED_PREFIXES: Final = (
    "spark.ui.",
    "spark.jars.",
    "spark.submit.",
    "spark.pyspark.",
    "spark.authenticate",
    "spark.acls.",
    "spark.admin.",
    "spark.eventLog.",
    "spark.history.",
    "spark.metrics.",
    "spark.yarn.",
    "spark.kubernetes.",
    "spark.mesos.",
    "spark.executorEnv.",
    "spark.network.crypto.",
    "spark.io.encryption.",
    "spark.ssl.",
    "spark.redaction.",
)


def is_protected(key: str) -> bool:
    """Whether a client may not set this key."""
    return key in PROTECTED or key.startswith(PROTECTED_PREFIXES)


def protected_keys(conf: Mapping[str, str]) -> list[str]:
    """The keys of `conf` that a client may not set, sorted."""
    return sorted(key for key in conf if is_protected(key))


def refused_conf(conf: Mapping[str, str]) -> LivyRefusal | None:
    """Why these settings are refused, or None: protected, too many, too large, or not of one line."""
    if len(conf) > MAX_KEYS:
        return rejected(f"{len(conf)} settings in conf; the limit is {MAX_KEYS}.")
    for key, value in conf.items():
        if not re.fullmatch(r"[A-Za-z0-9_.\-/]+", key) or len(key) > MAX_KEY:
            return rejected(f"Invalid configuration key: {key[:MAX_KEY]!r}")
        if len(value) > MAX_VALUE or "\0" in value:
            return rejected(f"The value of {key} is over {MAX_VALUE} characters, or has a NUL.")
    if bad := protected_keys(conf):
        return rejected(
            f"Blacklisted configuration values in session config: {', '.join(bad)}",
            hint="Leave these keys out; the administrator of the engine sets them.",
        )
    return None


def input_views(conf: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """(view → path, alias → view) of the inputs in `conf`.

    Raises `LivyRefusal` for a name that is no identifier, a path that is not absolute, and an
    alias of nothing.
    """
    paths = {key[len(PATH_PREFIX) :]: path for key, path in conf.items() if key.startswith(PATH_PREFIX)}
    aliases = {key[len(ALIAS_PREFIX) :]: view for key, view in conf.items() if key.startswith(ALIAS_PREFIX)}
    for name in (*paths, *aliases):
        if not re.fullmatch(r"[A-Za-z0-9_]{1,200}", name):
            raise rejected(f"Invalid name of an input view: {name!r}")
    for view, path in paths.items():
        if not path.startswith(("/", "file:/", "[")):
            raise rejected(f"requirement failed: Path '{path}' of the input view {view} is not absolute.")
    for alias, view in aliases.items():
        if view not in paths:
            raise rejected(f"The view {alias} is to stand for {view}, which is no input ({PATH_PREFIX}{view}).")
    return paths, aliases
