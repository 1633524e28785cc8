"""Which kinds of sessions a Livy can run: without its REPL it runs none, and without R it has no `sparkr`."""

from __future__ import annotations

from typing import Final

from island.errors import BadInput, EngineFailed
from island.livy.client import ANSWERED, LivyClient
from island.livy.messages import SessionRequest
from island.livy.rest import FULL

ALL: Final = ("pyspark", "shared", "spark", "sparkr", "sql")

_INVALID: Final = "00000000"
"""A name that Livy refuses, because digits are always an id. Before that it looks for what the kind needs."""


async def probe(livy: LivyClient) -> dict[str, str]:
    """Ask for sessions that Livy cannot start for another reason.

    Returns every kind that it lacks, with its reason. Nothing is started, except at versions that accept such a
    name: there one session is begun and deleted. Raises `EngineFailed` if Livy does not answer or has no place.
    """
    lacks: dict[str, str] = {}
    for kind in ("spark", "pyspark", "sparkr"):
        try:
            created = await livy.create_session(SessionRequest(kind=kind, name=_INVALID))
        except BadInput as error:
            if error.code == FULL:
                raise EngineFailed(error.message, code=FULL) from error
            if "Invalid session name" not in error.message:
                lacks[kind] = error.message
        except EngineFailed as error:
            if error.code != ANSWERED:
                raise
            lacks[kind] = error.message
        else:
            await livy.delete_session(created.id)
            break  # each would start a driver
    if "spark" in lacks:
        lacks["sql"] = lacks["spark"]
        if "pyspark" in lacks:
            lacks["shared"] = lacks["spark"]
    return lacks
