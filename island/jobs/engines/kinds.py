"""Which kinds of sessions a Livy can run: without its REPL it runs none, and without R it has no `sparkr`."""

from __future__ import annotations

import re
from typing import Final

from island.errors import BadInput, EngineFailed, NotFound
from island.kernel.ports import Rng
from island.livy.client import ANSWERED, LivyClient
from island.livy.messages import SessionRequest, SessionView
from island.livy.rest import FULL

ALL: Final = ("pyspark", "shared", "spark", "sparkr", "sql")

_MISSING: Final = re.compile(r"REPL jars|\.zip not found")
"""What Livy says if it does not have what a kind needs."""


async def probe(livy: LivyClient, rng: Rng) -> dict[str, str]:
    """Ask for sessions that Livy cannot start for another reason.

    Returns every kind that it lacks, with its reason. A kind that is refused for an unknown reason is not lacking.
    Nothing is started, except at versions that accept the name: there one session is begun and deleted. Raises
    `EngineFailed` if Livy does not answer or has no place.
    """
    lacks: dict[str, str] = {}
    name = _invalid_name(rng)
    for kind in ("spark", "pyspark", "sparkr"):
        try:
            created = await livy.create_session(SessionRequest(kind=kind, name=name))
        except BadInput as error:
            if error.code == FULL:
                raise EngineFailed(error.message, code=FULL) from error
            if _MISSING.search(error.message):
                lacks[kind] = error.message
        except EngineFailed as error:
            if error.code != ANSWERED or not _MISSING.search(error.message):
                raise
            lacks[kind] = error.message
        else:
            await _delete(livy, created)
            break  # each would start a driver
    if "spark" in lacks:
        lacks["sql"] = lacks["spark"]
        if "pyspark" in lacks:
            lacks["shared"] = lacks["spark"]
    return lacks


def _invalid_name(rng: Rng) -> str:
    """A name that Livy refuses, because digits are always an id. Before that it looks for what the kind needs.

    It is random, so that no other session has it where Livy accepts it. It is too long for an id.
    """
    return f"{int.from_bytes(rng.bytes(8)):020}"


async def _delete(livy: LivyClient, created: SessionView) -> None:
    """Delete the session of a probe. It is not found by its name, and after a restart of Livy its id is another's."""
    try:
        if (await livy.session(created.id)).name == created.name:
            await livy.delete_session(created.id)
    except NotFound:
        return  # it has ended with its Livy
