"""What passes between `kernel.processes` and its children, and what a function in a child may call.

A child imports this module and not `kernel.processes`, so that it starts without asyncio and the log.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import Meta

T = TypeVar("T")

Emit = Callable[[T], None]
"""A callback with which a function in a child sends one item."""

HEAD = struct.Struct(">IB")
"""The header of each message: its length and its kind."""

ITEM, DONE, FAILED, BEGUN, ALIVE = range(5)
OUT_OF_MEMORY = 77
"""The exit status of a child that reached its memory limit."""

MAX_TEXT = 4000
_Text = Annotated[str, Meta(max_length=MAX_TEXT)]


class Request(msgspec.Struct, frozen=True):
    """A call: a function as `module:name`, and its encoded arguments."""

    function: str
    arguments: bytes
    emits: bool
    cpu_seconds: float


class Failure(msgspec.Struct, frozen=True):
    """An exception that a function raised: the name of its class, its message and its attributes."""

    kind: _Text
    message: _Text
    hint: _Text = ""
    code: _Text = ""
    number: int = 0


class Begun(msgspec.Struct, frozen=True):
    """The subject of the following work, for error messages, and the processor time that it may take."""

    subject: _Text
    cpu_seconds: float


# --- called by functions in a child -----------------------------------------------------------

_report: Callable[[int, msgspec.Struct | None], None] | None = None
"""In a child: sends a message to the parent. Set by `process_main`; None in other processes."""


def begin(subject: str, cpu_seconds: float) -> None:
    """Set the subject of the following work and the processor time in seconds that it may take.

    Errors about limits name the subject. Does nothing outside a child of `ProcessPool`.
    """
    if _report is not None:
        _report(BEGUN, Begun(subject, cpu_seconds))


def alive() -> None:
    """Report to the parent that the work continues. Cheap enough for every batch. Does nothing outside a child."""
    if _report is not None:
        _report(ALIVE, None)


# --- messages ---------------------------------------------------------------------------------


def encode(value: Any) -> bytes:
    """Encode arguments, an item or a result; paths are encoded as text."""
    return msgspec.msgpack.encode(value, enc_hook=_to_plain)  # noqa: TID251 - not a `Message`: has paths, any type


def _to_plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} cannot be sent between processes")


def decode(data: bytes, kind: Any) -> Any:
    """Decode a value of an annotated type; raises `msgspec.DecodeError` if the bytes are not such a value."""
    return msgspec.msgpack.decode(data, type=kind, dec_hook=_from_plain)  # noqa: TID251 - as above


def _from_plain(kind: type, value: Any) -> Any:
    if issubclass(kind, Path) and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} cannot be sent between processes")


def types_of(function: Callable[..., Any], *, emits: bool) -> tuple[list[Any], Any]:
    """Return (types of the arguments, type of an item or of the result) from the annotations of a function."""
    hints = get_type_hints(function)
    result = hints.pop("return", None)
    kinds = list(hints.values())
    if emits:
        return kinds[1:], get_args(kinds[0])[0][0]
    return kinds, result
