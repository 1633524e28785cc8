"""The Spark settings that a client may send, and the settings that pass inputs to a session.

A client of a shared Livy controls its own job. It does not control where Spark runs, which
addresses Spark listens on, which programs it starts, or where it writes temporary files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from island.livy.rest import LivyRefusal, rejected

PATH_PREFIX: Final = "spark.island.path."
"""`spark.island.path.VIEW` is the path that the view VIEW reads: a Parquet file, a folder, or a JSON list of files."""

ALIAS_PREFIX: Final = "spark.island.view."
"""`spark.island.view.ALIAS` is the name of the view of which ALIAS is another name."""

INPUTS_KEY: Final = "spark.island.inputs"

MAX_KEYS: Final = 1_000
MAX_KEY: Final = 256
MAX_VALUE: Final = 65_536

# Where and under which account Spark runs, its addresses, the programs it starts, its folders.
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
    """The refusal of these settings, or None. Reasons: protected or invalid keys, too many settings, long values."""
    if len(conf) > MAX_KEYS:
        return rejected(f"conf has {len(conf)} settings; the limit is {MAX_KEYS}.")
    for key, value in conf.items():
        if not re.fullmatch(r"[A-Za-z0-9_.\-/]+", key) or len(key) > MAX_KEY:
            return rejected(f"Invalid configuration key: {key[:MAX_KEY]!r}")
        if len(value) > MAX_VALUE or "\0" in value:
            return rejected(f"The value of {key} has more than {MAX_VALUE} characters or a NUL character.")
    if bad := protected_keys(conf):
        return rejected(
            f"Blacklisted configuration values in session config: {', '.join(bad)}",
            hint="Leave these keys out; the administrator of the engine sets them.",
        )
    return None


def input_views(conf: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The inputs in `conf` as two mappings: view to path, and alias to view.

    Raises `LivyRefusal` for an invalid name, a path that is not absolute, and an alias of an
    unknown view.
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
            raise rejected(f"The view {alias} is an alias of {view}, which is not an input ({PATH_PREFIX}{view}).")
    return paths, aliases
