"""The Spark settings that a job may have at another island than its home. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from island.livy.conf import INPUTS_KEY

# Partitioning and sizes of its own computation, and nothing that names a class, a path, an address or a catalog.
_FOREIGN: Final = re.compile(
    r"spark\.(app\.name|default\.parallelism|rdd\.compress|speculation|serializer\.objectStreamReset"
    r"|(driver|executor)\.(memory|cores|memoryOverhead)|driver\.maxResultSize|executor\.instances"
    r"|dynamicAllocation\.(enabled|maxExecutors|minExecutors)|task\.(cpus|maxFailures)"
    r"|sql\.(shuffle\.partitions|session\.timeZone|ansi\.enabled|autoBroadcastJoinThreshold|caseSensitive"
    r"|broadcastTimeout|repl\.eagerEval\.[A-Za-z]+|adaptive\.(?!customCostEvaluatorClass)[A-Za-z.]+|execution\.arrow\.[A-Za-z.]+"
    r"|files\.maxPartitionBytes|parquet\.(binaryAsString|int96RebaseModeInRead|filterPushdown)))"
)


def refused_foreign_keys(conf: Mapping[str, str]) -> list[str]:
    """The keys of `conf` that a job of another home may not set, sorted."""
    return sorted(key for key in conf if key != INPUTS_KEY and not _FOREIGN.fullmatch(key))
