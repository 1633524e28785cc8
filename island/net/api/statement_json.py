"""Statements as JSON whose outputs may be large: they are sent in parts, as they are read from the disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

_TOGETHER = 64 * 1024
"""Parts are joined up to this size, in bytes."""


async def with_output(view: dict[str, Any], output: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The JSON object of a statement, in parts. `output` replaces the value of the key `output`, which is not last."""
    keys = list(view)
    at = keys.index("output")
    before = msgspec.json.encode({key: view[key] for key in keys[:at]})
    yield before[:-1] + b',"output":'
    async for part in output:
        yield part
    yield b"," + msgspec.json.encode({key: view[key] for key in keys[at + 1 :]})[1:]


async def joined(objects: AsyncIterator[AsyncIterator[bytes]], head: bytes, tail: bytes) -> AsyncIterator[bytes]:
    """A JSON list of objects that are given in parts, between `head` and `tail`."""
    yield head
    separator = b""
    async for each in objects:
        yield separator
        separator = b","
        async for part in each:
            yield part
    yield tail


async def gathered(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in fewer parts: small ones are joined. There is at least one part."""
    pending, size = list[bytes](), 0
    async for part in parts:
        if pending and size + len(part) > _TOGETHER:
            yield b"".join(pending)
            pending, size = [], 0
        pending.append(part)
        size += len(part)
    yield b"".join(pending)
