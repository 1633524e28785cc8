"""What clients may ask for: settings, inputs and pins of their requests. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from island.errors import BadInput
from island.livy.conf import INPUTS_KEY, is_protected

QUEUE_PREFIX: Final = "island:"


# Keys that a client may never set, in addition to those that the engine refuses: where data come
# from, how names are resolved outside Spark, and all island settings except the inputs.
_REFUSED_PREFIXES: Final = ("spark.hadoop.", "spark.hive.", "spark.island.", "spark.jars", "spark.submit.")


def refused_keys(conf: Mapping[str, str]) -> list[str]:
    """The keys of `conf` that no client may set, sorted."""
    return sorted(key for key in conf if is_protected(key) or (key.startswith(_REFUSED_PREFIXES) and key != INPUTS_KEY))


def named_inputs(conf: Mapping[str, str]) -> list[str]:
    """The dataset names in `spark.island.inputs`, in order, without duplicates. Raises `BadInput` above 64 names."""
    names = [part.strip() for part in conf.get(INPUTS_KEY, "").split(",")]
    found = list(dict.fromkeys(name for name in names if name))
    if len(found) > 64:
        raise BadInput(f"{len(found)} inputs; the limit is 64", hint="Combine them into fewer datasets.")
    return found


def pinned(queue: str | None) -> str:
    """The island that `queue = "island:NAME"` names, or ""."""
    return queue[len(QUEUE_PREFIX) :].strip() if queue and queue.startswith(QUEUE_PREFIX) else ""
